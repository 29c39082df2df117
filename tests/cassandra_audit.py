"""What the tables in Cassandra hold, read past the defender, against the verdicts that were published."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from runtime.config import Settings
from runtime.history import rows, schema
from runtime.history.cluster import open_cluster
from runtime.history.rows import Row
from tests.load import DIFFERENCES_SHOWN
from tests.oracle import Stored

CQL_S_MAX = 30.0
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


async def audit_table(settings: Settings, verdicts: Iterable[Stored]) -> None:
    """Fails unless `reports` holds exactly *verdicts*, byte for byte, those of each chamber numbered 1, 2, ...
    in the blocks up to which `chambers` names it."""
    published = {
        (message.chamber, msgspec.msgpack.decode(message.payload)["seq"]): message for message in verdicts
    }
    found = await cql(settings, f"SELECT block, {COLUMNS} FROM reports")
    stored = {(row.chamber, row.seq): (block, row) for block, *cells in found for row in [Row(*cells)]}
    problems = [f"report {key} is not in the table" for key in sorted(published.keys() - stored.keys())]
    problems += [f"report {key} was never published" for key in sorted(stored.keys() - published.keys())]
    ordinals = defaultdict(list)
    for key, (block, row) in sorted(stored.items()):
        ordinals[row.chamber].append(row.ordinal)
        if key in published and rows.payload(row) != published[key].payload:
            problems.append(f"report {key} is not as it was published")
        if block != row.ordinal // schema.BLOCK_REPORTS:
            problems.append(f"report {key} has number {row.ordinal} and lies in block {block}")
    for chamber, numbers in ordinals.items():
        if numbers != list(range(1, len(numbers) + 1)):
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
