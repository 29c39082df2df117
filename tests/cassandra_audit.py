"""What the tables in Cassandra hold, read past the defender, against the verdicts that were published; and
what tests of its faults wait for.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
from cassandra_server import CassandraServer
from fleet import until

from bench.lab.pods import Pod
from runtime.config import Settings
from runtime.history import rows, schema
from runtime.history.cluster import open_cluster
from runtime.history.rows import Row
from tests.load import DIFFERENCES_SHOWN
from tests.oracle import Stored

CQL_S_MAX = 30.0
HEALS_S = 60.0
COLUMNS = ", ".join(name for name in Row._fields)


async def cql(settings: Settings, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements over a connection of its own; the rows of the last one."""

    def run() -> list[tuple[Any, ...]]:
        cluster, session = open_cluster(msgspec.structs.replace(settings, cassandra_timeout_s=CQL_S_MAX))
        try:
            *before, last = statements
            for statement in before:
                session.execute(statement)
            return list(session.execute(last))
        finally:
            cluster.shutdown()

    return await asyncio.to_thread(run)


async def audit_table(settings: Settings, verdicts: Iterable[Stored], *, lost_before_ns: int = 0) -> None:
    """Fails unless `reports` holds exactly *verdicts*, byte for byte, and those of each chamber are numbered
    1, 2, ... and lie in the blocks up to the one that `chambers` names.

    What was published before *lost_before_ns* may be missing: a node that dies loses what it acknowledged in
    its last 100 ms, until somebody reads the chamber's history anew.
    """
    published = {(one.chamber, msgspec.msgpack.decode(one.payload)["seq"]): one for one in verdicts}
    found = await cql(settings, f"SELECT block, {COLUMNS} FROM reports")
    stored = {(row.chamber, row.seq): (block, row) for block, *cells in found for row in [Row(*cells)]}
    problems = [
        f"report {key} is not in the table"
        for key in sorted(published.keys() - stored.keys())
        if published[key].time_ns >= lost_before_ns
    ]
    problems += [f"report {key} was never published" for key in sorted(stored.keys() - published.keys())]
    ordinals = defaultdict(list)
    for key, (block, row) in sorted(stored.items()):
        ordinals[row.chamber].append(row.ordinal)
        if key in published and rows.payload(row) != published[key].payload:
            problems.append(f"report {key} is not as it was published")
        if block != row.ordinal // schema.BLOCK_REPORTS:
            problems.append(f"report {key} has number {row.ordinal} and lies in block {block}")
    for chamber, numbers in ordinals.items():
        if not lost_before_ns and numbers != list(range(1, len(numbers) + 1)):
            problems.append(f"the reports of {chamber} are numbered {numbers[:10]}...")
    problems += _index_problems(settings, await cql(settings, "SELECT * FROM chambers"), ordinals)
    shown = "\n".join(problems[:DIFFERENCES_SHOWN])
    assert not problems, f"{len(problems)} differences between the table and VERDICTS:\n{shown}"


def _index_problems(
    settings: Settings, found: list[tuple[Any, ...]], ordinals: dict[str, list[int]]
) -> list[str]:
    index = {chamber: (partition, block) for partition, chamber, block in found}
    expected = {
        chamber: (settings.names.partition_of(chamber), numbers[-1] // schema.BLOCK_REPORTS)
        for chamber, numbers in ordinals.items()
    }
    differing = sorted(
        chamber for chamber in index.keys() | expected.keys() if index.get(chamber) != expected.get(chamber)
    )
    return [f"{name} is indexed as {index.get(name)}, expected {expected.get(name)}" for name in differing]


async def comes_back(cassandra: CassandraServer) -> None:
    """Starts it anew, while the load goes on."""
    cassandra.launch()
    await until(cassandra.serves, deadline_s=HEALS_S, what="Cassandra serves")


async def is_told(pod: Pod, cassandra: CassandraServer) -> None:
    """Until /readyz says that the history takes nothing, and where that is."""

    def tells() -> bool:
        why = " ".join(pod.not_ready())
        return "the history takes nothing" in why and cassandra.contact_point in why

    await until(tells, deadline_s=20.0, what="/readyz tells of the history")


async def is_ready(pod: Pod) -> None:
    """Until /readyz has nothing to say."""
    await until(lambda: not pod.not_ready(), deadline_s=HEALS_S, what=f"ready; it says {pod.not_ready()}")


async def left(pod: Pod) -> None:
    """SIGTERM, and it is gone."""
    pod.sigterm()
    assert await pod.wait_exit() == 0


async def rebuilt(pod: Pod, verdicts: Iterable[Stored]) -> None:
    """Until a pod that is started has read all chambers of *verdicts*, while nothing is reported."""
    chambers = len({message.chamber for message in verdicts})

    def read() -> int:
        return sum(line["chambers"] for line in pod.lines("rebuilt"))

    await until(lambda: read() >= chambers, deadline_s=HEALS_S, what=f"{chambers} chambers are read")
    await is_ready(pod)
    assert read() == chambers
