"""What a chamber's history is when the table lacks some of it: its rows and the stream's verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import pytest
from drawn import CHAMBER, constant_units

from runtime.counters import Board, Counter, WorkerCounters
from runtime.history.cassandra import CassandraHistory
from runtime.history.rows import Row, pack

VERDICTS = constant_units().verdicts[:40]
PAYLOADS = [msgspec.msgpack.encode(verdict) for verdict in VERDICTS]
DEPTH = 64
EVER_S = 1e9


class Tables:
    """The tables, with the rows of some of the reports."""

    def __init__(self, numbers: Sequence[int], ttl_s: float) -> None:
        self.rows = {row.seq: row for row in map(pack, PAYLOADS) if row.ordinal in numbers}
        self.ttl_s, self.stored = ttl_s, list[int]()

    async def block(self, partition: int, chamber: str) -> int | None:
        return 0 if self.rows else None

    async def newest(self, chamber: str, block: int, count: int) -> list[Row]:
        return [self.rows[seq] for seq in sorted(self.rows, reverse=True)][:count]

    async def append(self, rows: Sequence[Row]) -> None:
        self.stored += [row.ordinal for row in rows]
        self.rows |= {row.seq: row for row in rows}


class Stream:
    """VERDICTS, with all of them or the last ones."""

    def __init__(self, last: int) -> None:
        self.payloads = PAYLOADS[-last:] if last else []

    async def newest_of(self, chambers: Mapping[str, int]) -> list[bytes]:
        return self.payloads[-1:]

    async def messages_of(self, partition: int, chamber: str) -> list[bytes]:
        return self.payloads


@pytest.fixture
def counters() -> Iterator[WorkerCounters]:
    board = Board.create(1, 1)
    yield board.worker(0)
    board.close()


@pytest.fixture
def history_of(counters: WorkerCounters) -> Callable[..., tuple[CassandraHistory, Tables]]:
    def made(
        numbers: Sequence[int], *, stream: int = 40, ttl_s: float = EVER_S
    ) -> tuple[CassandraHistory, Tables]:
        tables = Tables(numbers, ttl_s)
        return CassandraHistory(tables, Stream(stream), DEPTH, counters), tables  # type: ignore[arg-type]

    return made


HistoryOf = Callable[..., tuple[CassandraHistory, Tables]]
ALL = range(1, 41)


async def numbers_read(history: CassandraHistory) -> list[int]:
    return [stored.ordinal for stored in await history.load_chamber(0, CHAMBER)]


@pytest.mark.parametrize(
    ("lost", "counted"),
    [([], 0), ([40], 0), ([7], 1), ([7, 8, 30], 3), ([38, 39, 40], 2), ([1, 2, 3], 3), ([5, 40], 1)],
)
async def test_what_the_table_lacks_is_read_from_the_stream_and_stored_again(
    history_of: HistoryOf, counters: WorkerCounters, lost: list[int], counted: int
) -> None:
    """The newest verdict may only be on its way: it is stored, and does not count as a loss."""
    history, tables = history_of([number for number in ALL if number not in lost])
    assert await numbers_read(history) == list(ALL)
    assert tables.stored == lost
    assert counters.get(Counter.HISTORY_REPAIRED) == counted
    assert await numbers_read(history) == list(ALL)
    assert tables.stored == lost, "once is enough"


async def test_rows_that_have_expired_are_not_stored_again(history_of: HistoryOf) -> None:
    """VERDICTS keeps a slow chamber's reports for longer than the table: they count, and stay out of it."""
    since = VERDICTS[19].at
    history, tables = history_of(range(21, 40), ttl_s=time.time() - since / 1e9)
    assert await numbers_read(history) == list(ALL)
    assert tables.stored == [40]


async def test_without_verdicts_the_table_alone_is_the_history_up_to_its_last_gap(
    history_of: HistoryOf,
) -> None:
    history, tables = history_of([number for number in ALL if number != 12], stream=0)
    assert await numbers_read(history) == list(range(13, 41))
    assert not tables.stored


async def test_a_chamber_that_was_never_in_the_table_is_not_brought_there_by_reading_it(
    history_of: HistoryOf,
) -> None:
    """A fleet that changes its store reads VERDICTS; `defender history copy` moves it."""
    history, tables = history_of([])
    assert await numbers_read(history) == list(ALL)
    assert not tables.stored
