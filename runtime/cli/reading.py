"""Reading a stream from the outside: in order, without missing a message, and without leaving a trace.

A read uses a consumer of its own that the server forgets a minute after the reader left. When that consumer
or the connection is lost the read goes on with a new one just after the last message that came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from runtime.connection import Connection
from runtime.errors import DefenderError
from runtime.frames import delivery_of, frame_pub, status_of
from runtime.jetstream import Disconnected, NoAnswer, NotFound

BATCH: Final = 500
_EXPIRES_S: Final = 20.0
_HEARTBEAT_S: Final = 5.0
_FORGET_S: Final = 60.0
_NS: Final = 1_000_000_000


class Record(Struct, frozen=True):
    """One message of a stream; *pending*: how many more there were behind it."""

    stream: str
    seq: int
    at_ns: int
    pending: int
    subject: str
    payload: bytes
    headers: bytes | None

    @property
    def chamber(self) -> str:
        """The last token of the subject."""
        return self.subject.rpartition(".")[2]


class Start(Struct, frozen=True):
    """Where a read begins: at a sequence, at a time, or with the last message of each subject."""

    seq: int = 1
    at: datetime | None = None
    last_of_each: bool = False

    def policy(self) -> dict[str, Any]:
        """The fields of a consumer's configuration."""
        if self.last_of_each:
            return {"deliver_policy": "last_per_subject"}
        if self.at is not None:
            return {"deliver_policy": "by_start_time", "opt_start_time": self.at.isoformat()}
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(self.seq, 1)}


_Delivery = tuple[bytes, bytes, bytes, bytes | None]


async def read(
    connection: Connection, stream: str, subject: str, start: Start, *, follow: bool = False
) -> AsyncIterator[Record]:
    """Messages of *subject* (wildcards allowed) from *start*; ends at the newest one unless *follow*.

    Raises NotFound (no such stream) and the errors of `Connection.api`.
    """
    arrivals: asyncio.Queue[_Delivery] = asyncio.Queue()
    inbox = connection.inbox()
    sid = await connection.tap(inbox.decode(), lambda *delivery: arrivals.put_nowait(delivery))
    last = 0
    try:
        while True:
            consumer, pending = await _create(connection, stream, subject, start)
            try:
                async with aclosing(
                    _deliveries(connection, stream, consumer, inbox, arrivals, pending, follow)
                ) as part:
                    async for record in part:
                        if record.seq > last:
                            last, start = record.seq, Start(seq=record.seq + 1)
                            yield record
                return
            except (Disconnected, NoAnswer, _Lost):
                if not follow:
                    raise
                await asyncio.sleep(0.5)
    finally:
        if connection.is_connected:
            await connection.untap(sid)


class _Lost(DefenderError):
    """The server forgot the consumer of a read."""

    exit_code = 69
    temporary = True


async def _create(connection: Connection, stream: str, subject: str, start: Start) -> tuple[str, int]:
    """(consumer, messages that it will deliver)."""
    config = {
        "ack_policy": "none",
        "filter_subject": subject,
        "replay_policy": "instant",
        "inactive_threshold": int(_FORGET_S * _NS),
        "mem_storage": True,
        "num_replicas": 1,
        **start.policy(),
    }
    created = await connection.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    return created["name"], created["num_pending"]


async def _deliveries(
    connection: Connection,
    stream: str,
    consumer: str,
    inbox: bytes,
    arrivals: asyncio.Queue[_Delivery],
    pending: int,
    follow: bool,
) -> AsyncGenerator[Record]:
    """What one consumer brings. One pull at a time keeps the order, and bounds what waits here."""
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
    while follow or pending:
        request: dict[str, Any] = {"batch": BATCH, "no_wait": True}
        if follow:
            request = {
                "batch": BATCH,
                "expires": int(_EXPIRES_S * _NS),
                "idle_heartbeat": int(_HEARTBEAT_S * _NS),
            }
        connection.write(frame_pub(subject, msgspec.json.encode(request), inbox))
        for _ in range(BATCH):
            delivery = await _next(arrivals, stream)
            if delivery is None:
                break
            record = _record(stream, delivery)
            pending = record.pending
            yield record
            if not (follow or pending):
                return
        else:
            continue
        if not follow:
            return


async def _next(arrivals: asyncio.Queue[_Delivery], stream: str) -> _Delivery | None:
    """The next message; None when the pull is over. Raises _Lost when the consumer is."""
    while True:
        try:
            async with asyncio.timeout(2.5 * _HEARTBEAT_S):
                delivery = await arrivals.get()
        except TimeoutError:
            raise _Lost(f"{stream}: the server sends nothing any more; try again") from None
        status = status_of(delivery[3]) if not delivery[2] else b""
        if not status:
            return delivery
        if status in (b"404", b"408"):
            return None
        if status != b"100":
            raise _Lost(f"{stream}: the server ended the read ({status.decode()}); try again")


def _record(stream: str, delivery: _Delivery) -> Record:
    subject, reply, payload, headers = delivery
    said = delivery_of(reply)
    return Record(
        stream, said.seq, said.time_ns, said.pending, subject.decode(errors="replace"), payload, headers
    )


async def bounds(connection: Connection, stream: str) -> tuple[int, int]:
    """(first, last) sequence of a stream. Raises NotFound."""
    state = (await connection.api(f"STREAM.INFO.{stream}"))["state"]
    return state["first_seq"], state["last_seq"]


async def newest(
    connection: Connection, stream: str, subject: str, count: int, end: int, wanted: Callable[[Record], bool]
) -> list[Record]:
    """The newest *count* messages up to sequence *end* that are *wanted*, oldest first.

    It looks at the end of the stream first and goes further back only while too few were found.
    """
    span = max(8 * count, 1000)
    while count:
        part = read(connection, stream, subject, Start(seq=end - span + 1))
        found = [record async for record in part if record.seq <= end and wanted(record)]
        if len(found) >= count or span >= end:
            return found[-count:]
        span *= 8
    return []


async def merged(parts: list[AsyncIterator[Record]]) -> AsyncIterator[Record]:
    """Several reads as one, in the order of the messages' times."""
    heads = [(await anext(part, None), part) for part in parts]
    while True:
        live = [(head.at_ns, place, head) for place, (head, _) in enumerate(heads) if head is not None]
        if not live:
            return
        _, place, head = min(live)
        yield head
        heads[place] = (await anext(heads[place][1], None), heads[place][1])


async def followed(connection: Connection, begins: dict[str, int], subject: str) -> AsyncIterator[Record]:
    """New messages of several streams as they come, each stream from its sequence; without end."""
    arrivals: asyncio.Queue[Record | Exception] = asyncio.Queue(maxsize=BATCH)

    async def pump(stream: str, begin: int) -> None:
        try:
            async for record in read(connection, stream, subject, Start(seq=begin), follow=True):
                await arrivals.put(record)
        except Exception as error:
            await arrivals.put(error)

    pumps = [asyncio.create_task(pump(stream, begin)) for stream, begin in begins.items()]
    try:
        while True:
            arrival = await arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            yield arrival
    finally:
        for task in pumps:
            task.cancel()


async def last_of_each(connection: Connection, streams: list[str], subject: str) -> AsyncIterator[Record]:
    """The last message of each subject that matches, over several streams; a missing stream has none."""
    for stream in streams:
        try:
            async for record in read(connection, stream, subject, Start(last_of_each=True)):
                yield record
        except NotFound:
            continue
