"""The tables of the history in Cassandra: `chambers` (which there are, the newest block of each), `reports`
(a row a report). `runtime.history.schema` makes them.

A block is 512 of a chamber's reports by their number: its last D reports lie in at most D / 512 + 2 of the
table's partitions, whatever its rate. The newest block is written before the block's first row, with the
sequence of that row's sample as its write time: so the newest wins, whatever any clock says.

Rows go in unlogged batches of those whose replicas are the same nodes: ten at a time cost the driver a fifth,
the server half, of ten statements. A batch stays below the limits of a server that nobody set up for more.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final, NamedTuple

from cassandra.cluster import Session
from cassandra.query import (
    UNSET_VALUE,
    BatchStatement,
    BatchType,
    BoundStatement,
    PreparedStatement,
    Statement,
)

from runtime import log
from runtime.config import Settings
from runtime.counters import Counter, WorkerCounters
from runtime.errors import DefenderError
from runtime.history import schema
from runtime.history.requests import BatchTooLarge, Requests
from runtime.history.rows import Row

BATCH_ROWS_MAX: Final = 10
"""A server warns of unlogged batches over more partitions."""
BATCH_BYTES_MAX: Final = 40_000
"""A server refuses batches above 50 KiB, unless it was told otherwise."""
ROW_BYTES: Final = 100
"""Of a row besides its blobs, about."""
WRITES_MAX: Final = 4
"""Batches under way at the same time. With 16 the loop is late by 36 ms (p99), with 4 by 2-6 ms."""
FETCH_ROWS: Final = 64
"""Of one page: 0.4 MB of 150 charts a row, 10 MB of the largest rows that there can be."""
WATCH_S: Final = 5.0
"""Without an answer, before an idle worker asks for one."""
CHAMBERS_KNOWN_MAX: Final = 100_000
_LOG: Final = log.get("cassandra")

_int, _bigint, _tinyint = (struct.Struct(form).pack for form in (">i", ">q", ">b"))


class _Prepared(NamedTuple):
    insert: PreparedStatement
    note: PreparedStatement
    chambers: PreparedStatement
    block: PreparedStatement
    remembered: PreparedStatement
    whole: PreparedStatement
    oldest_first: PreparedStatement


_REMEMBERED: Final = "seq, layout, ordinal, epoch, reset, charts, samples, carried"
_WHOLE: Final = "seq, layout, ordinal, epoch, at_ns, run, reset, charts, samples, carried, shown"


def _prepare(session: Session, keyspace: str) -> _Prepared:
    """In a thread: each is a round trip. With the keyspace: a node prepares them again after its start."""
    reports, chambers = f"{keyspace}.reports", f"{keyspace}.chambers"
    of_block = f"FROM {reports} WHERE chamber = ? AND block = ?"
    return _Prepared(
        insert=session.prepare(
            f"INSERT INTO {reports} (chamber, block, seq, layout, ordinal, epoch, at_ns, run, reset, charts, "
            "samples, carried, shown) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ),
        note=session.prepare(
            f"INSERT INTO {chambers} (partition, chamber, block) VALUES (?, ?, ?) USING TIMESTAMP ?"
        ),
        chambers=session.prepare(f"SELECT chamber, block FROM {chambers} WHERE partition = ?"),
        block=session.prepare(f"SELECT block FROM {chambers} WHERE partition = ? AND chamber = ?"),
        remembered=session.prepare(f"SELECT {_REMEMBERED} {of_block} LIMIT ?"),
        whole=session.prepare(f"SELECT {_WHOLE} {of_block} LIMIT ?"),
        oldest_first=session.prepare(f"SELECT {_WHOLE} {of_block} ORDER BY seq ASC"),
    )


class Tables:
    """Reads and writes rows; every call waits while Cassandra is down. One a worker, for all its sessions."""

    def __init__(
        self,
        settings: Settings,
        counters: WorkerCounters | None = None,
        random: Random | None = None,
        *,
        patience_s: float = math.inf,
    ) -> None:
        self._names = settings.names
        self._keyspace = settings.cassandra_keyspace
        self._counters = counters
        self._requests = Requests(settings, self._prepared, counters, random, patience_s=patience_s)
        self._settings = settings
        self._newest: dict[str, int] = {}
        """The newest block that is known to be written down, of some chambers."""
        self._outages = 0
        """Those after which blocks were written down again."""
        self._writes = asyncio.Semaphore(WRITES_MAX)
        self._batch_bytes_max = BATCH_BYTES_MAX

    def _prepared(self, session: Session) -> _Prepared:
        schema.check(session, self._settings)
        return _prepare(session, self._keyspace)

    @property
    def down(self) -> str:
        return self._requests.down

    @property
    def ttl_s(self) -> float:
        """How long a row is kept."""
        return self._settings.history_ttl_s

    async def open(self) -> None:
        """Connects, unless it is connected; see `Requests.open`."""
        await self._requests.open()

    async def watch(self) -> None:
        """Returns never: asks for a chamber when nothing was answered for a while, so that `down` is true of
        an idle worker, too."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._requests.silence_s > WATCH_S:
                with suppress(DefenderError):  # `down` says it, and the log
                    await self.block(0, "-")

    async def close(self) -> None:
        await self._requests.close()

    @property
    def _statements(self) -> _Prepared:
        prepared: _Prepared = self._requests.prepared
        return prepared

    # --- writing --------------------------------------------------------------------------------

    async def append(self, rows: Sequence[Row]) -> None:
        """Returns when these rows are stored; storing one again changes nothing."""
        await self.open()
        await self._note_blocks(rows)
        await self.open()  # a request that was refused may have ended the connections
        await asyncio.gather(*(self._write(some) for some in self._by_replicas(rows)))
        if self._counters is not None:
            self._counters.add(Counter.HISTORY_ROWS, len(rows))

    async def _note_blocks(self, rows: Iterable[Row]) -> None:
        if self._outages != self._requests.outages:
            self._outages = self._requests.outages
            self._newest.clear()  # a node that died may have lost what it had acknowledged last
        begun: dict[str, tuple[int, int]] = {}
        for row in rows:
            block = row.ordinal // schema.BLOCK_REPORTS
            if block > self._newest.get(row.chamber, -1):
                begun[row.chamber] = max(begun.get(row.chamber, (-1, 0)), (block, row.seq))
        if not begun:
            return
        await asyncio.gather(*(self._note(chamber, *found) for chamber, found in begun.items()))
        if len(self._newest) > CHAMBERS_KNOWN_MAX:
            self._newest.clear()
        self._newest.update({chamber: block for chamber, (block, _) in begun.items()})

    async def _note(self, chamber: str, block: int, seq: int) -> None:
        partition = self._names.partition_of(chamber)
        values = [_int(partition), chamber.encode(), _int(block), _bigint(seq)]
        async with self._writes:
            await self._requests.send(_bound(self._statements.note, values))

    def _by_replicas(self, rows: Iterable[Row]) -> list[list[BoundStatement]]:
        """Inserts of rows, together where one batch may have them."""
        groups: dict[Any, list[BoundStatement]] = {}
        sizes: dict[Any, int] = {}
        batches: list[list[BoundStatement]] = []
        metadata, keyspace = self._requests.cluster.metadata, self._keyspace
        for row in rows:
            insert = _bound(self._statements.insert, _values(row))
            size = _size(row)
            replicas = frozenset(map(id, metadata.get_replicas(keyspace, insert.routing_key)))
            group = groups.get(replicas)
            if (
                group is None
                or len(group) == BATCH_ROWS_MAX
                or sizes[replicas] + size > self._batch_bytes_max
            ):
                groups[replicas] = group = []
                sizes[replicas] = 0
                batches.append(group)
            group.append(insert)
            sizes[replicas] += size
        return batches

    async def _write(self, inserts: list[BoundStatement]) -> None:
        statement: Statement = inserts[0]
        if len(inserts) > 1:
            batch = BatchStatement(BatchType.UNLOGGED, consistency_level=inserts[0].consistency_level)
            for insert in inserts:
                batch.add(insert)
            statement = batch
        try:
            async with self._writes:
                await self._requests.send(statement)
        except BatchTooLarge:
            if len(inserts) == 1:
                raise
            half = len(inserts) // 2
            values = [value for insert in inserts for value in insert.values if isinstance(value, bytes)]
            size = sum(map(len, values))
            if size // 2 < self._batch_bytes_max:  # else others have learned of it already
                self._batch_bytes_max = size // 2
                _LOG.warning(
                    "Cassandra refuses batches of this size", bytes=size, now_at_most_bytes=size // 2
                )
            await self._write(inserts[:half])
            await self._write(inserts[half:])

    # --- reading --------------------------------------------------------------------------------

    async def chambers(self, partition: int) -> dict[str, int]:
        """The newest block of each chamber of a partition."""
        await self.open()
        query = _bound(self._statements.chambers, [_int(partition)])
        return {chamber: block async for page in self._pages(query) for chamber, block in page}

    async def block(self, partition: int, chamber: str) -> int | None:
        """The newest block of a chamber; None for one that was never stored."""
        await self.open()
        query = _bound(self._statements.block, [_int(partition), chamber.encode()])
        page = await self._requests.send(query)
        return page.rows[0][0] if page.rows else None

    async def newest(self, chamber: str, block: int, count: int, *, whole: bool = False) -> list[Row]:
        """A chamber's last *count* rows, newest first, from its newest *block* down. Unless *whole*, without
        what only people read (``at_ns``, ``run``, ``shown``)."""
        await self.open()
        rows: list[Row] = []
        for at in range(block, -1, -1):
            before = len(rows)
            prepared = self._statements.whole if whole else self._statements.remembered
            query = _bound(prepared, [chamber.encode(), _int(at), _int(count - before)])
            async for page in self._pages(query):
                rows += [_row(chamber, cells, whole) for cells in page]
            if len(rows) >= count or (at < block and len(rows) == before):
                break
        return rows

    async def pages(self, chamber: str, block: int) -> AsyncIterator[list[Row]]:
        """Everything that is kept of a chamber up to its newest *block*, oldest first."""
        await self.open()
        first = block
        while first > 0 and (first == block or await self._has_rows(chamber, first)):
            first -= 1
        for at in range(first, block + 1):
            query = _bound(self._statements.oldest_first, [chamber.encode(), _int(at)])
            async for page in self._pages(query):
                yield [_row(chamber, cells, whole=True) for cells in page]

    async def _has_rows(self, chamber: str, block: int) -> bool:
        query = _bound(self._statements.remembered, [chamber.encode(), _int(block), _int(1)])
        return bool((await self._requests.send(query)).rows)

    async def _pages(self, query: BoundStatement) -> AsyncIterator[list[tuple[Any, ...]]]:
        query.fetch_size = FETCH_ROWS
        start: bytes | None = None
        while True:
            page = await self._requests.send(query, start)
            if page.rows:
                yield page.rows
            if page.next is None:
                return
            start = page.next


def _bound(prepared: PreparedStatement, values: Sequence[bytes | object]) -> BoundStatement:
    """With its values as they go over the wire: the driver's own conversions take half of its time."""
    statement = BoundStatement(prepared)
    statement.values = list(values)
    return statement


def _values(row: Row) -> list[bytes | object]:
    return [
        row.chamber.encode(),
        _int(row.ordinal // schema.BLOCK_REPORTS),
        _bigint(row.seq),
        _tinyint(row.layout),
        _bigint(row.ordinal),
        _bigint(row.epoch),
        _bigint(row.at_ns),
        row.run.encode(),
        UNSET_VALUE if row.reset is None else row.reset.encode(),  # a null would be a tombstone
        row.charts,
        row.samples,
        UNSET_VALUE if row.carried is None else row.carried,
        row.shown,
    ]


def _size(row: Row) -> int:
    return ROW_BYTES + len(row.charts) + len(row.samples) + len(row.carried or b"") + len(row.shown)


def _row(chamber: str, cells: tuple[Any, ...], whole: bool) -> Row:
    if whole:
        seq, layout, ordinal, epoch, at_ns, run, reset, charts, samples, carried, shown = cells
    else:
        seq, layout, ordinal, epoch, reset, charts, samples, carried = cells
        at_ns, run, shown = 0, "", b""
    return Row(
        *(chamber, seq, layout, ordinal, epoch, at_ns or 0, run or "", reset),
        *(charts or b"\x90", samples or b"", carried, shown or b"\x80"),
    )
