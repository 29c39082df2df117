"""The history in Cassandra: what is published, in a store that keeps more of it than the stream, and longer.

A verdict goes into the table after it is published, and before its sample is acknowledged. So it can lack

    the last report of a chamber    its worker, or Cassandra, died between the two: the sample comes again, is
                                    skipped, and `make_up` stores its verdict before the chamber's next turn
    a few reports in the middle     the only node lost the last 100 ms of its commit log: they are read from
                                    the stream, and stored again

and what is read is therefore the table's rows, and of the stream VERDICTS what these lack. An empty stream is
no fault: then the table says what was judged last. What came since a position is read from the stream alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from runtime.counters import Counter, WorkerCounters
from runtime.frames import Message
from runtime.history import Last, Loaded, Rest, Span, Take, rows
from runtime.history.jetstream import JetStreamHistory
from runtime.history.rows import Row
from runtime.history.tables import Tables
from runtime.stored import StoredVerdict, decode_stored
from runtime.wire import Verdict, decode_verdict

CHAMBERS_AT_ONCE: Final = 4
"""Chambers of a partition that are read at the same time."""
CHAMBERS_AT_REST: Final = 1
"""The same beside live work."""
PORTION_ROWS: Final = 32
"""Rows that are taken in one go beside live work: 1-2 ms."""


class CassandraHistory:
    """The protocol `runtime.history.History` over the tables and the stream, for one NATS session."""

    reads_chambers = True

    def __init__(
        self,
        tables: Tables,
        stream: JetStreamHistory,
        depth: int,
        counters: WorkerCounters | None = None,
    ) -> None:
        self._tables, self._stream = tables, stream
        self._depth, self._counters = depth, counters

    @property
    def down(self) -> str:
        return self._tables.down

    async def append(self, verdicts: Sequence[Message]) -> None:
        if not verdicts:
            return
        begun_s = time.monotonic()
        await self._tables.append([rows.pack(payload) for _, _, payload in verdicts])
        if self._counters is not None:
            self._counters.add(Counter.HISTORY_APPENDS)
            self._counters.add(Counter.HISTORY_APPEND_US, int((time.monotonic() - begun_s) * 1e6))

    async def make_up(self, chambers: Mapping[str, int]) -> None:
        newest = await self._stream.newest_of(chambers)
        await self._tables.append([rows.pack(payload) for payload in newest])

    async def position(self, partition: int) -> int:
        return await self._stream.position(partition)

    # --- reading --------------------------------------------------------------------------------

    async def chambers(self, partition: int) -> list[str]:
        return _last_judged_first(*await self._overview(partition))

    async def _overview(self, partition: int) -> tuple[dict[str, bytes], dict[str, int]]:
        """By chamber: its last verdict in the stream, and its newest block in the table."""
        return await asyncio.gather(self._stream.newest(partition), self._tables.chambers(partition))

    async def load_partition(
        self, partition: int, take: Take, *, after: int | None = None, rest: Rest | None = None
    ) -> Loaded:
        if after:
            return await self._stream.load_partition(partition, take, after=after, rest=rest)
        position = await self._stream.position(partition)
        newest, blocks = await self._overview(partition)
        given, left = 0, _last_judged_first(newest, blocks)
        at_once = CHAMBERS_AT_ONCE if rest is None else CHAMBERS_AT_REST
        reading: list[asyncio.Task[list[StoredVerdict]]] = []
        try:
            while left or reading:
                while left and len(reading) < at_once:
                    chamber = left.pop(0)
                    read = self._read(partition, chamber, blocks.get(chamber), newest.get(chamber))
                    reading.append(asyncio.create_task(read))
                found = await reading.pop(0)
                for first in range(0, len(found), PORTION_ROWS):
                    some = found[first : first + PORTION_ROWS]
                    given += len(some)
                    begun_s = time.perf_counter()
                    if not take(some):
                        return Loaded(given, 0)  # where it goes on is no position of the stream
                    if rest is not None:
                        await rest(time.perf_counter() - begun_s)
        finally:
            for task in reading:
                task.cancel()
        return Loaded(given, position)

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        newest, block = await asyncio.gather(
            self._stream.newest_of({chamber: partition}), self._tables.block(partition, chamber)
        )
        return await self._read(partition, chamber, block, newest[0] if newest else None)

    async def _read(
        self, partition: int, chamber: str, block: int | None, newest: bytes | None
    ) -> list[StoredVerdict]:
        """A chamber's last D reports, oldest first; *newest* is its last verdict in the stream."""
        found: list[Row] = []
        if block is not None:
            found = await self._tables.newest(chamber, block, self._depth)
        stored = [rows.stored(row) for row in reversed(found)]
        if newest is not None:
            last, lacking = decode_stored(newest), list[bytes]()
            if not stored or last.seq > stored[-1].seq:
                stored.append(last)
                lacking.append(newest)
            if not _is_whole(stored, self._depth):
                in_table = {row.seq for row in found}
                stored, lacking = await self._with_the_stream(partition, chamber, stored, in_table)
            if found and lacking:
                await self._repair(lacking, last.seq)
        return _unbroken(stored)[-self._depth :]

    async def _with_the_stream(
        self, partition: int, chamber: str, stored: list[StoredVerdict], in_table: set[int]
    ) -> tuple[list[StoredVerdict], list[bytes]]:
        """The rows and what the stream has besides; those of the stream that the table lacks."""
        by_seq = {verdict.seq: verdict for verdict in stored}
        lacking = []
        for payload in await self._stream.messages_of(partition, chamber):
            verdict = decode_stored(payload)
            by_seq.setdefault(verdict.seq, verdict)
            if verdict.seq not in in_table:
                lacking.append(payload)
        return [by_seq[seq] for seq in sorted(by_seq)], lacking

    async def _repair(self, payloads: list[bytes], newest: int) -> None:
        """Stores what the table lacks, but for what is old enough to have expired there. A chamber's *newest*
        verdict may only be on its way: it does not count as a loss."""
        oldest_ns = time.time_ns() - int(self._tables.ttl_s * 1e9)
        lost = [row for row in map(rows.pack, payloads) if row.at_ns > oldest_ns]
        await self._tables.append(lost)
        if self._counters is not None:
            self._counters.add(Counter.HISTORY_REPAIRED, sum(row.seq < newest for row in lost))

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        payloads = await self._stream.messages_of(partition, chamber)
        if payloads:
            found = [decode_verdict(payload) for payload in payloads]
        else:
            block = await self._tables.block(partition, chamber)
            whole = await self._newest_whole(chamber, block, self._depth)
            found = [rows.verdict(row) for row in reversed(whole)]
        return [verdict for verdict in found if verdict.seq > seq]

    async def _newest_whole(self, chamber: str, block: int | None, count: int) -> list[Row]:
        return [] if block is None else await self._tables.newest(chamber, block, count, whole=True)

    async def last_stored(self, chambers: Mapping[str, int]) -> dict[str, Last]:
        last = await self._stream.last_stored(chambers)
        silent = [chamber for chamber, found in last.items() if not found.seq]
        found = await asyncio.gather(*(self._last_row(chambers[chamber], chamber) for chamber in silent))
        return last | dict(zip(silent, found, strict=True))

    async def _last_row(self, partition: int, chamber: str) -> Last:
        block = await self._tables.block(partition, chamber)
        newest = [] if block is None else await self._tables.newest(chamber, block, 1)
        return Last(newest[0].seq, newest[0].epoch) if newest else Last(0, 0)

    async def verdicts(self, partition: int, chamber: str, span: Span) -> AsyncIterator[list[Verdict]]:
        block = await self._tables.block(partition, chamber)
        if block is None:
            return
        async for page in self._tables.pages(chamber, block):
            wanted = [row for row in page if span.has(row.at_ns)]
            if wanted:
                yield [rows.verdict(row) for row in wanted]


def _last_judged_first(newest: Mapping[str, bytes], blocks: Mapping[str, int]) -> list[str]:
    """All chambers; those that the stream does not have come last."""
    return [*reversed(list(newest)), *(chamber for chamber in blocks if chamber not in newest)]


def _is_whole(stored: list[StoredVerdict], depth: int) -> bool:
    """Whether these are the last *depth* reports, or all that there ever were, none missing in between."""
    newest, oldest = stored[-1].ordinal, stored[0].ordinal
    reaches = len(stored) >= depth or oldest == 1
    return reaches and newest - oldest == len(stored) - 1


def _unbroken(stored: list[StoredVerdict]) -> list[StoredVerdict]:
    """What follows the last gap: the reports before it are no longer all among the last D."""
    first = len(stored) - 1
    while first > 0 and stored[first - 1].ordinal == stored[first].ordinal - 1:
        first -= 1
    return stored[max(first, 0) :]
