"""A stream read once from its first message to its last, a page at a time, and what it no longer holds.

    open ──► page, page, … ──► (no more) ──► close

Messages are pulled ahead within a bound, so a stream of any length takes the memory of a few pages.
One pass over a stream and not one a partition: the server reads its files once. (A consumer with a
partition's filter has the server walk all blocks, 64 times over in 64 partitions.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from bench.lab.errors import LabError, NotInTime
from runtime.connection import Connection
from runtime.frames import delivery_of, frame_pub, pull_left
from runtime.jetstream import NotFound

PAGE_MESSAGES: Final = 4_096
PULL_MESSAGES: Final = 2_048
"""Of one pull; pulls go on until a page more than the one in hand is there or asked for."""
PULL_EXPIRES_S: Final = 5.0
SILENCE_S_MAX: Final = 30.0
"""The server has so long to deliver the next message of a page."""
CONSUMER_IDLE_S: Final = 300.0
"""The server forgets a reader that stopped asking for so long."""


class Stored(NamedTuple):
    """One message as the server delivered it; *reply* tells its sequence and its time."""

    subject: bytes
    reply: bytes
    payload: bytes
    headers: bytes | None


class Extent(NamedTuple):
    """What a stream holds of what it was given."""

    stream: str
    first_seq: int
    """Of the oldest message that it holds."""
    last_seq: int
    begin_seq: int
    """Of its very first message, held or not."""
    deleted: int
    """Missing between the first and the last one."""
    per_subject: int
    """Messages that it keeps of a subject; 0: all."""
    max_age_ns: int
    is_bounded: bool
    """Whether its bytes or messages are limited."""
    made_ns: int
    """When it was made."""

    @property
    def missing_at_begin(self) -> int:
        """Messages before its oldest one."""
        return max(0, self.first_seq - self.begin_seq)

    def may_have_dropped(self, now_ns: int) -> bool:
        """Whether a limit of the whole stream may have taken messages from its begin."""
        aged = 0 < self.max_age_ns < now_ns - self.made_ns
        return self.missing_at_begin > 0 and (aged or self.is_bounded)


async def extent_of(connection: Connection, stream: str) -> Extent:
    """What *stream* holds now. Raises LabError when there is no such stream."""
    try:
        found = await connection.api(f"STREAM.INFO.{stream}")
    except NotFound as error:
        remedy = "audit with the settings that the fleet runs with"
        raise LabError(f"stream {stream} does not exist; {remedy}") from error
    config, state = found["config"], found["state"]
    limited = any(_limit(config, name) for name in ("max_bytes", "max_msgs"))
    return Extent(
        stream,
        int(state["first_seq"]),
        int(state["last_seq"]),
        max(1, int(config.get("first_seq") or 0)),
        int(state.get("num_deleted") or 0),
        _limit(config, "max_msgs_per_subject"),
        _limit(config, "max_age"),
        limited,
        int(datetime.fromisoformat(found["created"]).timestamp() * 1e9),
    )


def _limit(config: dict[str, Any], name: str) -> int:
    """A limit of a stream; 0 without one, for which the server has 0 and -1."""
    return max(0, int(config.get(name) or 0))


class Reader:
    """The messages of one stream, in its order, as many as it had when it was opened."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection, self.stream = connection, stream
        self._buffer: deque[Stored] = deque()
        self._came = asyncio.Event()
        self._sid = 0
        self._inbox = b""
        self._consumer = ""
        self._left = self._asked = 0
        """Messages that did not come yet; of these, those that were asked for."""
        self._refusal: bytes | None = None

    async def open(self) -> None:
        """Makes the consumer and asks for the first messages."""
        self._inbox = self._connection.inbox()
        self._sid = await self._connection.tap(self._inbox.decode(), self._deliver)
        config = {
            "deliver_policy": "all",
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(CONSUMER_IDLE_S * 1e9),
        }
        request = {"stream_name": self.stream, "config": config}
        created = await self._connection.api(f"CONSUMER.CREATE.{self.stream}", request)
        self._consumer = created["name"]
        self._left = int(created["num_pending"])
        self._pull()

    async def close(self) -> None:
        """Deletes the consumer."""
        await self._connection.untap(self._sid)
        if self._consumer:
            await self._connection.api(f"CONSUMER.DELETE.{self.stream}.{self._consumer}")

    async def head_ns(self) -> int | None:
        """When the next message was stored; None at the end. Raises as `page`."""
        await self._wait_for(1)
        return delivery_of(self._buffer[0].reply).time_ns if self._buffer else None

    async def page(self) -> list[Stored]:
        """The next messages; none at the end. Raises NotInTime, LabError when the server delivers no more."""
        await self._wait_for(PAGE_MESSAGES)
        taken = [self._buffer.popleft() for _ in range(min(PAGE_MESSAGES, len(self._buffer)))]
        self._pull()
        return taken

    async def _wait_for(self, messages: int) -> None:
        while len(self._buffer) < messages and self._left:
            self._came.clear()
            self._pull()
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    await self._came.wait()
            except TimeoutError:
                raise NotInTime(
                    f"{self.stream}: {self._left} messages did not come within {SILENCE_S_MAX:g} s; "
                    "audit when the server is at rest, with limits that keep the run's messages"
                ) from None
            if self._refusal is not None:
                raise LabError(f"{self.stream}: the server ended the reading: {self._refusal!r}; audit again")

    def _pull(self) -> None:
        while self._asked < self._left and self._asked + len(self._buffer) < 2 * PAGE_MESSAGES:
            request = {"batch": PULL_MESSAGES, "expires": int(PULL_EXPIRES_S * 1e9)}
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}".encode()
            self._connection.write(frame_pub(subject, msgspec.json.encode(request), self._inbox))
            self._asked += PULL_MESSAGES

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and not reply:
            left = pull_left(headers)
            self._asked = max(0, self._asked - (left or 0))
            self._refusal = headers if left is None else self._refusal
            if left is not None:
                self._pull()
                return
        elif self._left:
            self._asked -= 1
            self._left -= 1
            self._buffer.append(Stored(subject, reply, payload, headers))
        if len(self._buffer) >= PAGE_MESSAGES or not self._left or not self._asked or self._refusal:
            self._came.set()
