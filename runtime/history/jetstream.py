"""History in JetStream: the stream VERDICTS itself, by its depth a subject. Appending is publishing.

A partition is read by an ephemeral consumer without acks and overlapping pulls; a chamber, and last
sequences, by the server's batched direct gets (one request, many replies).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from runtime.connection import Connection
from runtime.frames import Message, frame_pub, header, pull_left, status_of
from runtime.history import Take
from runtime.jetstream import NoAnswer, UnexpectedAnswer, last_messages
from runtime.names import Names
from runtime.wire import StoredVerdict, Verdict, decode_stored, decode_verdict

PULL_MESSAGES: Final = 512
PULL_BYTES: Final = 4_000_000
"""Of one pull; two overlap, so at most 8 MB of one partition are under way."""


class JetStreamHistory:
    """The protocol `runtime.history.History` over one connection."""

    def __init__(self, connection: Connection, names: Names, depth: int, timeout_s: float) -> None:
        self._connection, self._names = connection, names
        self._depth, self._timeout_s = depth, timeout_s

    async def append(self, verdicts: Sequence[Message]) -> None:
        """Nothing is left to do: the verdicts are stored when their batch is acknowledged."""

    async def load_partition(self, partition: int, take: Take) -> int:
        stream = self._names.verdicts_stream(partition)
        created = await self._connection.api(
            f"CONSUMER.CREATE.{stream}",
            {
                "stream_name": stream,
                "config": {
                    "filter_subject": self._names.verdict(partition),
                    "ack_policy": "none",
                    "deliver_policy": "all",
                    "mem_storage": True,
                    "inactive_threshold": 60_000_000_000,
                    "num_replicas": 1,
                },
            },
            timeout_s=self._timeout_s,
        )
        name, waiting = created["name"], int(created["num_pending"])
        try:
            return await self._read(stream, name, waiting, take) if waiting else 0
        finally:
            if self._connection.is_connected:
                await self._connection.api(f"CONSUMER.DELETE.{stream}.{name}", timeout_s=self._timeout_s)

    async def _read(self, stream: str, consumer: str, waiting: int, take: Take) -> int:
        reader = _Reader(self._connection, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", waiting)
        await reader.start()
        given = 0
        try:
            while given < waiting:
                rows = await reader.rows(self._timeout_s)
                given += len(rows)
                if not take([decode_stored(row) for row in rows]):
                    break
        finally:
            await reader.stop()
        return given

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        return [decode_stored(row) for row in await self._messages_of(partition, chamber)]

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        verdicts = [decode_verdict(row) for row in await self._messages_of(partition, chamber)]
        return [verdict for verdict in verdicts if verdict.seq > seq]

    async def _messages_of(self, partition: int, chamber: str) -> list[bytes]:
        subject, stream = self._names.verdict(partition, chamber), self._names.verdicts_stream(partition)
        messages: list[bytes] = []
        start = 1
        while True:
            request = {"seq": start, "next_by_subj": subject, "batch": self._depth}
            *replies, end = await self._connection.call_several(
                f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), timeout_s=self._timeout_s
            )
            if end.status == b"404":
                return messages
            if end.status != b"204" or not replies:
                raise UnexpectedAnswer(f"{stream}: direct get of {subject} ended with status {end.status!r}")
            messages.extend(reply.payload for reply in replies)
            if int(header(end.headers, b"Nats-Num-Pending") or 0) == 0:
                return messages
            start = int(header(replies[-1].headers, b"Nats-Sequence") or 0) + 1

    async def last_sequences(self, chambers: Mapping[str, int]) -> dict[str, int]:
        by_stream: dict[str, list[str]] = {}
        for chamber, partition in chambers.items():
            subjects = by_stream.setdefault(self._names.verdicts_stream(partition), [])
            subjects.append(self._names.verdict(partition, chamber))
        last = dict.fromkeys(chambers, 0)
        for stream, subjects in by_stream.items():
            for message in await last_messages(self._connection, stream, subjects, self._timeout_s):
                verdict = decode_stored(message)
                last[verdict.chamber] = verdict.seq
        return last


class _Reader:
    """Overlapping pulls of a consumer without acks, until *waiting* messages have come."""

    def __init__(self, connection: Connection, next_subject: str, waiting: int) -> None:
        self._connection = connection
        self._next = next_subject.encode()
        self._to_ask = waiting
        self._asked = 0
        self._rows: list[bytes] = []
        self._came = asyncio.Event()
        self._broken: bytes = b""
        self._inbox = connection.inbox()
        self._sid = 0

    async def start(self) -> None:
        self._sid = await self._connection.tap(self._inbox.decode(), self._deliver)
        self._pull()
        self._pull()

    async def stop(self) -> None:
        await self._connection.untap(self._sid)

    async def rows(self, timeout_s: float) -> list[bytes]:
        """What has come since the last call, at least one message."""
        if not self._rows:
            self._came.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._came.wait()
            except TimeoutError:
                raise NoAnswer(f"the history sent nothing for {timeout_s:g} s") from None
        if self._broken:
            raise UnexpectedAnswer(f"a pull of the history ended with {self._broken.decode()!r}")
        rows, self._rows = self._rows, []
        return rows

    def _pull(self) -> None:
        batch = min(PULL_MESSAGES, self._to_ask)
        if batch > 0:
            self._to_ask -= batch
            self._asked += batch
            request = {"batch": batch, "expires": 30_000_000_000, "max_bytes": PULL_BYTES}
            self._connection.write(frame_pub(self._next, msgspec.json.encode(request), self._inbox))

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and status_of(headers):
            left = pull_left(headers)
            if left is None:
                self._broken = headers.split(b"\r\n", 1)[0]
            else:
                self._asked -= left
                self._to_ask += left
        else:
            self._asked -= 1
            self._rows.append(payload)
        if self._asked <= PULL_MESSAGES and not self._broken:
            self._pull()
        self._came.set()
