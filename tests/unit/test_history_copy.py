"""Copying the history: the bytes, what is passed over, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import drawn
import msgspec
import pytest

from runtime.frames import Message
from runtime.history import History, Span
from runtime.history_copy import Copied, IntoStore, Trouble, copy_all, digests, newest, published
from runtime.names import Names
from runtime.wire import Verdict, decode_verdict
from tests.memory_history import MemoryHistory

NAMES = Names(partitions=4)
DEPTH = 16


class Rows(MemoryHistory):
    """A store that keeps what it is given; a row has its place by its key."""

    def __init__(self, lost: frozenset[int] = frozenset()) -> None:
        super().__init__(NAMES, 10_000)
        self.appended: list[int] = []
        self._lost = lost

    async def append(self, verdicts: Sequence[Message]) -> None:
        for subject, _, payload in verdicts:
            seq = decode_verdict(payload).seq
            self.appended.append(seq)
            if seq not in self._lost:
                kept = dict(self.stream._by_subject.get(subject, []))
                self.stream._by_subject[subject] = sorted((kept | {seq: payload}).items())
        await asyncio.sleep(0)


def verdict(chamber: str, seq: int, **fields: object) -> Verdict:
    return Verdict(chamber, seq, seq, 1, 0, at=seq, **fields)  # type: ignore[arg-type]


def source_of(verdicts: Sequence[Verdict]) -> MemoryHistory:
    """A stream that has these, as they are published."""
    history = MemoryHistory(NAMES, DEPTH)
    for one in verdicts:
        subject = NAMES.verdict(NAMES.partition_of(one.chamber), one.chamber)
        history.stream.store((subject, f"{one.chamber}:{one.seq}", published(one)))
    return history


async def copied(source: History, target: History, chambers: Mapping[str, int]) -> dict[str, Copied]:
    done: dict[str, Copied] = {}
    await copy_all(source, IntoStore(target, NAMES), chambers, lambda one: done.update({one.chamber: one}))
    return done


def test_a_verdict_is_encoded_as_it_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: of plain and of detailed verdicts, of resets, with empty runs."""
    payloads: list[bytes] = []

    def noted(payload: bytes) -> Verdict:
        payloads.append(payload)
        return decode_verdict(payload)

    monkeypatch.setattr(drawn, "decode_verdict", noted)
    for scene in (drawn.varying_units, drawn.clustered, drawn.two_phases, drawn.overdispersed):
        scene()
    chamber = drawn.Chamber(drawn.ChartSpec())
    chamber.report(charts=["a", "b"], counts=[0, 2**53 - 1], units=[2.0**-20, 1e6])
    chamber.report(charts=["a"], reset="kit")
    assert len(payloads) > 400
    assert any(decode_verdict(payload).cusum_up for payload in payloads)
    for payload in payloads:
        assert published(decode_verdict(payload)) == payload


async def test_everything_is_copied_and_a_second_copy_stores_nothing() -> None:
    source = source_of([verdict(name, seq) for seq in range(1, 11) for name in ("A", "B")])
    chambers = {name: NAMES.partition_of(name) for name in ("A", "B")}
    target = Rows()
    done = await copied(source, target, chambers)
    assert {name: (one.read, one.stored, one.there, one.last) for name, one in done.items()} == {
        "A": (10, 10, 0, 10),
        "B": (10, 10, 0, 10),
    }
    for name, partition in chambers.items():
        assert await digests(target, partition, name) == await digests(source, partition, name)
    again = await copied(source, target, chambers)
    assert [(one.stored, one.there, one.troubles) for one in again.values()] == [(0, 10, {})] * 2
    assert sorted(target.appended) == sorted([*range(1, 11)] * 2)


async def test_a_row_that_differs_is_written_anew() -> None:
    """What was published counts."""
    target = Rows()
    partition = NAMES.partition_of("A")
    wrong = published(verdict("A", 2, run="other"))
    await target.append([(NAMES.verdict(partition, "A"), "", wrong)])
    source = source_of([verdict("A", seq) for seq in (1, 2, 3)])
    done = (await copied(source, target, {"A": partition}))["A"]
    assert (done.stored, done.there, done.troubles) == (3, 0, {})
    assert await digests(target, partition, "A") == await digests(source, partition, "A")


async def test_what_is_not_read_back_is_told() -> None:
    partition = NAMES.partition_of("A")
    source = source_of([verdict("A", seq) for seq in range(1, 6)])
    done = (await copied(source, Rows(lost=frozenset({2, 4})), {"A": partition}))["A"]
    assert (done.stored, done.troubles) == (5, {Trouble.LOST: 2})


async def test_what_the_target_has_besides_is_no_trouble() -> None:
    """It keeps more, and for longer; a fleet goes on meanwhile."""
    partition = NAMES.partition_of("A")
    target = Rows()
    more = [published(verdict("A", seq)) for seq in range(1, 30)]
    await target.append([(NAMES.verdict(partition, "A"), "", payload) for payload in more])
    source = source_of([verdict("A", seq) for seq in range(5, 16)])
    done = (await copied(source, target, {"A": partition}))["A"]
    assert (done.read, done.stored, done.there, done.troubles) == (11, 0, 11, {})


async def test_the_first_error_ends_a_copy() -> None:
    """Nothing goes on behind it."""

    class Broken(Rows):
        async def append(self, verdicts: Sequence[Message]) -> None:
            if decode_verdict(verdicts[0][2]).chamber == "C3":
                raise OSError("full")
            await asyncio.sleep(3600)

    names = [f"C{n}" for n in range(20)]
    source = source_of([verdict(name, 1) for name in names])
    with pytest.raises(OSError, match="full"):
        await copied(source, Broken(), {name: NAMES.partition_of(name) for name in names})
    assert len(asyncio.all_tasks()) == 1


async def test_the_newest_are_the_last_that_the_store_has() -> None:
    source = source_of([verdict("A", seq) for seq in range(1, DEPTH + 5)])
    partition = NAMES.partition_of("A")
    assert [one.seq for one in await newest(source, partition, "A", 3)] == [DEPTH + 2, DEPTH + 3, DEPTH + 4]
    assert len(await newest(source, partition, "A", 100)) == DEPTH
    assert await newest(source, partition, "nobody", 3) == []


async def test_the_memory_gives_chambers_and_spans_as_the_stores_do() -> None:
    """The one judged last first; first inclusive, end exclusive."""
    source = source_of([verdict(name, seq) for seq, name in enumerate(("A", "E", "A", "E", "A"), 1)])
    listed = [name for partition in range(4) for name in await source.chambers(partition)]
    assert sorted(listed) == ["A", "E"]
    partition = NAMES.partition_of("A")
    pages = [page async for page in source.verdicts(partition, "A", Span(1, 5))]
    assert [one.seq for page in pages for one in page] == [1, 3]


def test_counts_of_a_copy_can_be_told_as_json() -> None:
    one = Copied("A", read=3)
    one.note(Trouble.OLDER, 2)
    one.note(Trouble.LOST, 0)
    assert msgspec.to_builtins(one)["troubles"] == {"older": 2}
