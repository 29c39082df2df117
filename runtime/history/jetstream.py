"""History in JetStream: the stream VERDICTS itself, by its depth a subject. Appending is publishing.

A whole partition is read by an ephemeral consumer without acks and overlapping pulls; what came since, a
chamber, and last sequences, by the server's batched direct gets (one request, many replies).

Of a stream with several replicas any of them may answer, also one that lags. What is read must be all that
was stored before, or a chart would go on from a former state: the stream's leader is asked for the newest
message, and the reading goes on until that has come.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import msgspec

from runtime.connection import Connection
from runtime.frames import Message, delivery_of, frame_pub, header, is_unheard, pull_left, status_of
from runtime.history import Last, Loaded, Rest, Span, Take
from runtime.jetstream import NoAnswer, NotFound, Reply, UnexpectedAnswer, last_messages
from runtime.names import Names
from runtime.stored import StoredVerdict, decode_stored
from runtime.wire import Verdict, decode_verdict

PULL_MESSAGES: Final = 512
PULL_BYTES: Final = 4_000_000
"""Of one pull; two overlap, so at most 8 MB of one partition are under way."""
GENTLE_MESSAGES: Final = 64
GENTLE_BYTES: Final = 250_000
"""Of one pull with a rest between portions: what arrives is read from the socket in one go, 1-2 ms."""
PORTION_S: Final = 0.003
"""What decoding and taking one portion may take before the rest."""
PORTION_FIRST: Final = 16
"""Rows of the first portion; the next ones are as large as the time allows."""
LEADER_GETS_MAX: Final = 64
"""Gets that a stream's leader is asked for at the same time."""
LAG_PAUSE_S: Final = 0.01
"""Between two looks at a replica that lags."""
SINCE_MESSAGES: Final = 512
"""Of one direct get of what came since; the server's limit is 1024."""
PAGE_VERDICTS: Final = 256
"""Of one page of `verdicts`."""


class JetStreamHistory:
    """The protocol `runtime.history.History` over one connection."""

    def __init__(self, connection: Connection, names: Names, depth: int, timeout_s: float) -> None:
        self._connection, self._names = connection, names
        self._depth, self._timeout_s = depth, timeout_s
        self._replicas: dict[str, int] = {}

    reads_chambers = False
    """A partition is read in the order of its stream; chamber by chamber takes several times as long."""
    down = ""
    """Without its server nothing is judged at all."""

    async def append(self, verdicts: Sequence[Message]) -> None:
        """Nothing is left to do: the verdicts are stored when their batch is acknowledged."""

    async def make_up(self, chambers: Mapping[str, int]) -> None:
        """Nothing is left to do: what is published is stored."""

    async def chambers(self, partition: int) -> list[str]:
        return list(await self.newest(partition))[::-1]

    async def newest(self, partition: int) -> dict[str, bytes]:
        """The last stored verdict of each chamber of a partition, in the order in which they were stored."""
        newest: dict[str, bytes] = {}

        def take(payloads: list[bytes]) -> bool:
            for payload in payloads:
                chamber = decode_stored(payload).chamber
                newest.pop(chamber, None)
                newest[chamber] = payload
            return True

        portions = _Portions(take, None)
        loaded = await self._load_whole(partition, portions, "last_per_subject")
        if await self._lags(partition, self._names.verdict(partition), loaded.last):
            await self._load_since(partition, portions, loaded.last)
        return newest

    async def verdicts(self, partition: int, chamber: str, span: Span) -> AsyncIterator[list[Verdict]]:
        found = [decode_verdict(row) for row in await self.messages_of(partition, chamber)]
        found = [verdict for verdict in found if span.has(verdict.at)]
        for first in range(0, len(found), PAGE_VERDICTS):
            yield found[first : first + PAGE_VERDICTS]

    async def load_partition(
        self, partition: int, take: Take, *, after: int | None = None, rest: Rest | None = None
    ) -> Loaded:
        portions = _Portions(lambda rows: take([decode_stored(row) for row in rows]), rest)
        if after is None:
            loaded = await self._load_whole(partition, portions, "all")
            after = loaded.last
            if portions.ended or not await self._lags(partition, self._names.verdict(partition), after):
                return loaded
        return await self._load_since(partition, portions, after)

    async def _load_whole(self, partition: int, portions: _Portions, which: str) -> Loaded:
        """*which*: the consumer's ``deliver_policy``."""
        stream = self._names.verdicts_stream(partition)
        created = await self._connection.api(
            f"CONSUMER.CREATE.{stream}",
            {
                "stream_name": stream,
                "config": {
                    "filter_subject": self._names.verdict(partition),
                    "ack_policy": "none",
                    "deliver_policy": which,
                    "mem_storage": True,
                    "inactive_threshold": 60_000_000_000,
                    "num_replicas": 1,
                },
            },
            timeout_s=self._timeout_s,
        )
        name, waiting = created["name"], int(created["num_pending"])
        try:
            if not waiting:
                return Loaded(0, 0)
            return await self._read(stream, name, waiting, portions)
        finally:
            self._let_go(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")

    async def position(self, partition: int) -> int:
        stream = self._names.verdicts_stream(partition)
        answer = await self._connection.api(f"STREAM.INFO.{stream}", timeout_s=self._timeout_s)
        return int(answer["state"]["last_seq"])

    def _let_go(self, request: str) -> None:
        """Asks without waiting for the answer: a consumer that stays after all ends by its inactivity."""
        if self._connection.is_connected:
            self._connection.ask(request).add_done_callback(_hear_nothing)

    async def _read(self, stream: str, consumer: str, waiting: int, portions: _Portions) -> Loaded:
        next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        reader = _Reader(self._connection, next_subject, waiting, gentle=portions.rest is not None)
        await reader.start()
        try:
            while portions.given < waiting:
                if not await portions.give(await reader.rows(self._timeout_s)):
                    break
        finally:
            await reader.stop()
        return Loaded(portions.given, portions.last)

    async def _load_since(self, partition: int, portions: _Portions, after: int) -> Loaded:
        portions.last = after
        stream, subject = self._names.verdicts_stream(partition), self._names.verdict(partition)
        begun_s = time.monotonic()
        while True:
            async for page in self._pages(stream, subject, portions.last + 1, SINCE_MESSAGES):
                if not await portions.give([(reply.payload, _sequence(reply)) for reply in page]):
                    return Loaded(portions.given, portions.last)
            if not await self._lags(partition, subject, portions.last):
                return Loaded(portions.given, portions.last)
            await self._wait_for_replica(stream, begun_s)

    async def _lags(self, partition: int, subject: str, last: int) -> bool:
        """Whether the stream's leader has a message on *subject* after the sequence *last*."""
        stream = self._names.verdicts_stream(partition)
        if await self._replicas_of(stream) == 1:
            return False
        return await self._newest(stream, subject) > last

    async def _replicas_of(self, stream: str) -> int:
        if stream not in self._replicas:
            info = await self._connection.api(f"STREAM.INFO.{stream}", timeout_s=self._timeout_s)
            self._replicas[stream] = int(info["config"].get("num_replicas", 1))
        return self._replicas[stream]

    async def _newest(self, stream: str, subject: str) -> int:
        """The sequence of the newest message on *subject*, by the stream's leader; 0 without one."""
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout_s=self._timeout_s
            )
        except NotFound:
            return 0
        return int(answer["message"]["seq"])

    async def _wait_for_replica(self, stream: str, begun_s: float) -> None:
        if time.monotonic() - begun_s > self._timeout_s:
            raise NoAnswer(f"{stream}: the replica that answers has lagged for {self._timeout_s:g} s")
        await asyncio.sleep(LAG_PAUSE_S)

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        return [decode_stored(row) for row in await self.messages_of(partition, chamber)]

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        verdicts = [decode_verdict(row) for row in await self.messages_of(partition, chamber)]
        return [verdict for verdict in verdicts if verdict.seq > seq]

    async def messages_of(self, partition: int, chamber: str) -> list[bytes]:
        """Everything that is stored of a chamber, oldest first."""
        subject, stream = self._names.verdict(partition, chamber), self._names.verdicts_stream(partition)
        begun_s = time.monotonic()
        while True:
            pages = self._pages(stream, subject, 1, self._depth)
            replies = [reply async for page in pages for reply in page]
            if not await self._lags(partition, subject, _sequence(replies[-1]) if replies else 0):
                return [reply.payload for reply in replies]
            await self._wait_for_replica(stream, begun_s)

    async def _pages(
        self, stream: str, subject: str, start: int, messages: int
    ) -> AsyncIterator[list[Reply]]:
        """The messages on *subject* from sequence *start* on, up to so many at once."""
        while True:
            request = {"seq": start, "next_by_subj": subject, "batch": messages}
            *replies, end = await self._connection.call_several(
                f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), timeout_s=self._timeout_s
            )
            if end.status == b"404":
                return
            if end.status != b"204" or not replies:
                raise UnexpectedAnswer(f"{stream}: direct get of {subject} ended with status {end.status!r}")
            yield replies
            if int(header(end.headers, b"Nats-Num-Pending") or 0) == 0:
                return
            start = _sequence(replies[-1]) + 1

    async def last_stored(self, chambers: Mapping[str, int]) -> dict[str, Last]:
        last = dict.fromkeys(chambers, Last(0, 0))
        for message in await self.newest_of(chambers):
            verdict = decode_stored(message)
            last[verdict.chamber] = Last(verdict.seq, verdict.epoch)
        return last

    async def newest_of(self, chambers: Mapping[str, int]) -> list[bytes]:
        """The last stored verdict of each of these chambers (name -> partition) that has one, in no order."""
        by_stream: dict[str, list[str]] = {}
        for chamber, partition in chambers.items():
            subjects = by_stream.setdefault(self._names.verdicts_stream(partition), [])
            subjects.append(self._names.verdict(partition, chamber))
        found = [await self._last_messages(stream, subjects) for stream, subjects in by_stream.items()]
        return [message for messages in found for message in messages]

    async def _last_messages(self, stream: str, subjects: list[str]) -> list[bytes]:
        if await self._replicas_of(stream) == 1:
            return await last_messages(self._connection, stream, subjects, self._timeout_s)
        messages = []
        for first in range(0, len(subjects), LEADER_GETS_MAX):
            some = subjects[first : first + LEADER_GETS_MAX]
            messages += await asyncio.gather(*(self._last_message(stream, subject) for subject in some))
        return [message for message in messages if message is not None]

    async def _last_message(self, stream: str, subject: str) -> bytes | None:
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout_s=self._timeout_s
            )
        except NotFound:
            return None
        return b64decode(answer["message"].get("data", ""))


class _Portions:
    """Rows on their way to *take*: with a *rest*, so many at once as take PORTION_S."""

    def __init__(self, take: Callable[[list[bytes]], bool], rest: Rest | None) -> None:
        self.given = self.last = 0
        self.ended = False
        """Whether no more was taken."""
        self.rest = rest
        self._take = take
        self._most = PORTION_FIRST

    async def give(self, rows: list[tuple[bytes, int]]) -> bool:
        """Rows with their sequences in the stream; False when no more are taken."""
        if self.rest is None:
            return self._some(rows)
        while rows:
            some, rows = rows[: self._most], rows[self._most :]
            begun = time.perf_counter()
            goes_on = self._some(some)
            took_s = time.perf_counter() - begun
            if took_s > PORTION_S:
                self._most = max(1, self._most // 2)
            elif took_s < PORTION_S / 2 and len(some) == self._most:
                self._most *= 2
            await self.rest(took_s)
            if not goes_on:
                return False
        return True

    def _some(self, rows: list[tuple[bytes, int]]) -> bool:
        self.given += len(rows)
        self.last = rows[-1][1]
        self.ended = not self._take([payload for payload, _ in rows])
        return not self.ended


def _sequence(reply: Reply) -> int:
    return int(header(reply.headers, b"Nats-Sequence") or 0)


def _hear_nothing(reply: asyncio.Future[Reply]) -> None:
    if not reply.cancelled():
        reply.exception()  # the connection may have ended


class _Reader:
    """Overlapping pulls of a consumer without acks, until *waiting* messages have come."""

    def __init__(self, connection: Connection, next_subject: str, waiting: int, *, gentle: bool) -> None:
        self._connection = connection
        self._next = next_subject.encode()
        self._to_ask = waiting
        self._asked = 0
        self._rows: list[tuple[bytes, int]] = []
        self._came = asyncio.Event()
        self._broken: bytes = b""
        self._gentle = gentle
        self._messages = GENTLE_MESSAGES if gentle else PULL_MESSAGES
        self._bytes = GENTLE_BYTES if gentle else PULL_BYTES
        self._inbox = connection.inbox()
        self._sid = 0
        self._is_unheard = False

    async def start(self) -> None:
        self._sid = await self._connection.tap(f"{self._inbox.decode()}.*", self._deliver)
        self._pull()
        self._pull()

    async def stop(self) -> None:
        await self._connection.untap(self._sid)

    async def rows(self, timeout_s: float) -> list[tuple[bytes, int]]:
        """What has come since the last call, at least one message, with the sequences in the stream."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._rows and not self._broken:
                    if self._is_unheard:
                        await asyncio.sleep(LAG_PAUSE_S)
                        self._is_unheard = False
                        self._pull()
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise NoAnswer(f"the history sent nothing for {timeout_s:g} s") from None
        if self._broken:
            raise UnexpectedAnswer(f"a pull of the history ended with {self._broken.decode()!r}")
        rows, self._rows = self._rows, []
        self._pull()
        return rows

    def _pull(self) -> None:
        """Two pulls overlap; gently, what has come and was not given counts with what is asked for."""
        asked = self._asked + len(self._rows) if self._gentle else self._asked
        batch = min(self._messages, self._to_ask)
        if batch > 0 and asked <= self._messages and not self._broken and not self._is_unheard:
            self._to_ask -= batch
            self._asked += batch
            request = {"batch": batch, "expires": 30_000_000_000, "max_bytes": self._bytes}
            inbox = b"%b.%d" % (self._inbox, batch)  # a status comes on it: it says how many it ends
            self._connection.write(frame_pub(self._next, msgspec.json.encode(request), inbox))

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and status_of(headers):
            if is_unheard(headers):
                self._is_unheard = True
                left: int | None = int(subject.rpartition(b".")[2])
            else:
                left = pull_left(headers)
            if left is None:
                self._broken = headers.split(b"\r\n", 1)[0]
            else:
                self._asked -= left
                self._to_ask += left
        else:
            self._asked -= 1
            self._rows.append((payload, delivery_of(reply).seq))
        self._pull()
        self._came.set()
