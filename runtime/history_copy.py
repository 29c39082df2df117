"""Copying the history from one store into the other, a chamber at a time, while a fleet runs or not.

What is copied are verdicts, byte for byte as they were published; what is there already is passed over, so a
copy can be made again. Then it is read back and compared.

Into Cassandra goes everything that the other store has: a row's place is its key, so the order is nothing,
and a row that differs is written anew: VERDICTS says what was published.

Into VERDICTS go the last D reports of a chamber, and only those that are newer than what it has. A stream has
its messages in the order in which they came, and the last one of a subject says how far its chamber is
judged: an older verdict behind a newer one would have reports judged again. So each is published on the
condition that nobody published on the subject in between (``Nats-Expected-Last-Subject-Sequence``); when
somebody did, the chamber is looked at anew. Nothing goes there either from a chamber whose newest report has
a number that the stream SAMPLES has not reached: the reports to come would pass for judged.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from msgspec import Raw

from runtime.connection import Connection
from runtime.frames import Message
from runtime.history import History, Span
from runtime.jetstream import NotFound, UnexpectedAnswer, WrongLastSequence
from runtime.judge import message_id_prefix
from runtime.names import Names
from runtime.stored import decode_stored
from runtime.wire import DetailedVerdict, Verdict, msgpack_encoder

CHAMBERS_AT_ONCE: Final = 8
APPENDED_AT_ONCE: Final = 64


class Trouble(StrEnum):
    """Why a report is not in the target as it is in the source."""

    OLDER = "older"
    """Than the newest verdict that VERDICTS has of the chamber."""
    UNNUMBERED = "unnumbered"
    """The chamber's newest report has a number that SAMPLES has not reached."""
    DROPPED = "dropped"
    """The server took it for a repeat of a message that it had lately, and has no more."""
    DIFFERENT = "different"
    """The target has another verdict of the same report, and keeps it."""
    LOST = "lost"
    """It was stored, and was not read back."""


@dataclass
class Copied:
    """What became of a chamber's reports; *last* is the number of the newest that was read."""

    chamber: str
    read: int = 0
    stored: int = 0
    there: int = 0
    """Already, and the same."""
    beyond: int = 0
    """Among the last D when they were read, and not any more."""
    last: int = 0
    troubles: dict[Trouble, int] = field(default_factory=dict)

    def note(self, trouble: Trouble, reports: int) -> None:
        if reports:
            self.troubles[trouble] = self.troubles.get(trouble, 0) + reports


class Target(Protocol):
    """A store that chambers are copied into."""

    async def copy(self, source: History, partition: int, chamber: str) -> Copied: ...


def published(verdict: Verdict) -> bytes:
    """A verdict as a worker publishes it, byte for byte: with all its plain fields, the empty ones too."""
    fields = {name: getattr(verdict, name) for name in DetailedVerdict.__struct_fields__}
    fields["charts"] = Raw(msgpack_encoder.encode(verdict.charts))
    return msgpack_encoder.encode(DetailedVerdict(**fields))


class _Report(NamedTuple):
    seq: int
    payload: bytes

    @property
    def digest(self) -> bytes:
        return blake2b(self.payload, digest_size=16).digest()


async def digests(store: History, partition: int, chamber: str) -> dict[int, bytes]:
    """What a store has of a chamber: a digest of each verdict by its report's sequence, oldest first."""
    found: dict[int, bytes] = {}
    async for page in store.verdicts(partition, chamber, Span()):
        for verdict in page:
            found[verdict.seq] = _Report(verdict.seq, published(verdict)).digest
    return found


async def copy_all(
    source: History, target: Target, chambers: Mapping[str, int], tell: Callable[[Copied], None]
) -> None:
    """Copies chambers (name -> partition), several at a time; *tell* hears of each that is done. The first
    error ends it."""
    waiting = iter(chambers.items())

    async def work() -> None:
        for chamber, partition in waiting:
            tell(await target.copy(source, partition, chamber))

    workers = [asyncio.create_task(work()) for _ in range(CHAMBERS_AT_ONCE)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class IntoStore:
    """Into a store whose rows have their places by their keys."""

    def __init__(self, store: History, names: Names) -> None:
        self._store, self._names = store, names

    async def copy(self, source: History, partition: int, chamber: str) -> Copied:
        done = Copied(chamber)
        there = await digests(self._store, partition, chamber)
        read: dict[int, bytes] = {}
        async for page in source.verdicts(partition, chamber, Span()):
            reports = [_Report(verdict.seq, published(verdict)) for verdict in page]
            read |= {report.seq: report.digest for report in reports}
            new = [report for report in reports if there.get(report.seq) != read[report.seq]]
            for first in range(0, len(new), APPENDED_AT_ONCE):
                some = new[first : first + APPENDED_AT_ONCE]
                await self._store.append(_messages(self._names, partition, chamber, some))
            done.stored += len(new)
        done.read, done.last = len(read), max(read, default=0)
        done.there = done.read - done.stored
        if done.stored:
            there = await digests(self._store, partition, chamber)
        done.note(Trouble.LOST, sum(there.get(seq) != digest for seq, digest in read.items()))
        return done


class IntoVerdicts:
    """Into the stream VERDICTS, which *history* reads: the last *depth* reports of a chamber."""

    def __init__(
        self, connection: Connection, history: History, names: Names, depth: int, timeout_s: float
    ) -> None:
        self._connection, self._history, self._names = connection, history, names
        self._depth, self._timeout_s = depth, timeout_s

    async def copy(self, source: History, partition: int, chamber: str) -> Copied:
        verdicts = await newest(source, partition, chamber, self._depth)
        reports = [_Report(verdict.seq, published(verdict)) for verdict in verdicts]
        done = Copied(chamber, read=len(reports), last=reports[-1].seq if reports else 0)
        there = await digests(self._history, partition, chamber)
        done.there = sum(there.get(report.seq) == report.digest for report in reports)
        done.note(Trouble.DIFFERENT, sum(there.get(r.seq, r.digest) != r.digest for r in reports))
        new = [report for report in reports if report.seq not in there]
        if new and done.last > await self._reached(partition):
            done.note(Trouble.UNNUMBERED, len(new))
            return done
        stored, dropped = await self._publish(partition, chamber, new)
        done.stored = len(stored)
        done.note(Trouble.DROPPED, dropped)
        if len(stored) + dropped < len(new):  # or a fleet published them meanwhile
            there = await digests(self._history, partition, chamber)
        older = [report for report in new[: len(new) - dropped] if report.seq not in stored]
        done.there += sum(there.get(report.seq) == report.digest for report in older)
        done.beyond = sum(self._is_beyond(report.seq, there) for report in older)
        done.note(Trouble.OLDER, sum(report.seq not in there for report in older) - done.beyond)
        if stored:
            there = await digests(self._history, partition, chamber)
            lost = (
                there.get(seq) != digest for seq, digest in stored.items() if not self._is_beyond(seq, there)
            )
            done.note(Trouble.LOST, sum(lost))
        return done

    def _is_beyond(self, seq: int, there: Mapping[int, bytes]) -> bool:
        """Whether newer reports have pushed this one out of the last D, as they do while a fleet runs."""
        return len(there) >= self._depth and seq < min(there)

    async def _reached(self, partition: int) -> int:
        """The last sequence of the partition's stream of samples."""
        stream = self._names.samples_stream(partition)
        answer = await self._connection.api(f"STREAM.INFO.{stream}", timeout_s=self._timeout_s)
        return int(answer["state"]["last_seq"])

    async def _publish(
        self, partition: int, chamber: str, reports: Iterable[_Report]
    ) -> tuple[dict[int, bytes], int]:
        """Those that were stored, with their digests; and how many the server dropped as repeats."""
        stored: dict[int, bytes] = {}
        seen = -1
        while True:
            last, newest_seq = await self._last(partition, chamber)
            reports = [report for report in reports if report.seq > newest_seq]
            if not reports:
                return stored, 0
            if last == seen:
                subject = self._names.verdict(partition, chamber)
                raise UnexpectedAnswer(f"{subject}: the server takes nothing behind its message {last}")
            seen = last
            for place, report in enumerate(reports):
                try:
                    last, is_repeat = await self._store(partition, chamber, report, last)
                except WrongLastSequence:
                    break  # a defender published
                if is_repeat:
                    if (await self._last(partition, chamber))[1] < report.seq:
                        return stored, len(reports) - place
                    break  # it was published meanwhile
                stored[report.seq] = report.digest
            else:
                return stored, 0

    async def _store(self, partition: int, chamber: str, report: _Report, last: int) -> tuple[int, bool]:
        """Publishes behind the message *last* of the subject, 0: as its first."""
        ((subject, identity, payload),) = _messages(self._names, partition, chamber, [report])
        headers = f"Nats-Msg-Id:{identity}\r\nNats-Expected-Last-Subject-Sequence:{last}\r\n".encode()
        return await self._connection.store(subject, payload, headers=headers, timeout_s=self._timeout_s)

    async def _last(self, partition: int, chamber: str) -> tuple[int, int]:
        """Of the chamber's last verdict: (sequence in the stream, sequence of its report); zeros without."""
        request = {"last_by_subj": self._names.verdict(partition, chamber)}
        stream = self._names.verdicts_stream(partition)
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{stream}", request, timeout_s=self._timeout_s
            )
        except NotFound:
            return 0, 0
        message = answer["message"]
        return int(message["seq"]), decode_stored(b64decode(message["data"])).seq


async def newest(store: History, partition: int, chamber: str, count: int) -> list[Verdict]:
    """The last *count* verdicts of a chamber that the store itself has, oldest first."""
    found: deque[Verdict] = deque(maxlen=count)
    async for page in store.verdicts(partition, chamber, Span()):
        found.extend(page)
    return list(found)


def _messages(names: Names, partition: int, chamber: str, reports: Sequence[_Report]) -> list[Message]:
    subject, prefix = names.verdict(partition, chamber), message_id_prefix(names, partition)
    return [(subject, f"{prefix}{report.seq}", report.payload) for report in reports]
