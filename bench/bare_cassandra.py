"""Bare loops over Cassandra's driver, each a process of its own: what a worker is compared with.

    python bench/bare_cassandra.py read   SETTINGS FIRST STEP   every STEP-th chamber's rows, read and dropped
    python bench/bare_cassandra.py append SETTINGS COUNT        rows, by execute_concurrent, a statement each

SETTINGS as JSON. The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import msgspec
from cassandra.cluster import ResponseFuture, Session
from cassandra.concurrent import execute_concurrent_with_args
from rig import rows_to_append

from runtime.config import Settings
from runtime.history.cluster import open_cluster
from runtime.history.schema import BLOCK_REPORTS

CHAMBERS_AT_ONCE = 4
"""As a worker has it."""


def read(session: Session, settings: Settings, first: int, step: int) -> dict[str, Any]:
    """The rows that a rebuild reads, in the pages that it asks for."""
    query = session.prepare(
        "SELECT seq, layout, ordinal, epoch, reset, charts, samples, carried FROM reports "
        "WHERE chamber = ? AND block = ? LIMIT ?"
    )
    query.fetch_size = 64
    blocks = session.prepare("SELECT chamber, block FROM chambers WHERE partition = ?")
    chambers = [
        row for partition in range(settings.partitions) for row in session.execute(blocks, (partition,))
    ]
    asked, rows = threading.Semaphore(CHAMBERS_AT_ONCE), [0]

    def ask(chamber: str, block: int, count: int) -> None:
        response: ResponseFuture = session.execute_async(query, (chamber, block, count))
        had = [0]

        def came(page: list[Any]) -> None:
            had[0] += len(page)
            if response.has_more_pages:
                response.start_fetching_next_page()
            elif had[0] < count and block:
                rows[0] += had[0]
                ask(chamber, block - 1, count - had[0])
            else:
                rows[0] += had[0]
                asked.release()

        response.add_callbacks(came, lambda error: asked.release())

    began_s = time.perf_counter()
    for chamber, block in chambers[first::step]:
        asked.acquire()
        ask(chamber, block, settings.history_depth)
    for _ in range(CHAMBERS_AT_ONCE):
        asked.acquire()
    return {"rows": rows[0], "seconds": time.perf_counter() - began_s}


def append(session: Session, count: int) -> dict[str, Any]:
    """Rows of 50 samples, bound by the driver, a hundred statements at a time."""
    insert = session.prepare(
        "INSERT INTO reports (chamber, block, seq, layout, ordinal, epoch, at_ns, run, reset, charts, "
        "samples, carried, shown) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    values = [(row[0], row.ordinal // BLOCK_REPORTS, *row[1:]) for row in rows_to_append(count)]
    began_s = time.perf_counter()
    execute_concurrent_with_args(session, insert, values, concurrency=100)
    return {"rows": count, "seconds": time.perf_counter() - began_s}


def main() -> None:
    settings = msgspec.json.decode(sys.argv[2], type=Settings)
    cluster, session = open_cluster(settings)
    if sys.argv[1] == "read":
        found = read(session, settings, int(sys.argv[3]), int(sys.argv[4]))
    else:
        found = append(session, int(sys.argv[3]))
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
