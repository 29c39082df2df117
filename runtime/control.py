"""What pods and operators ask of a pod, as requests on ``<root>.pod.<pod uid>``.

A request is never what safety rests on: ownership changes by compare-and-set alone. A lost request, or one
that a dead pod does not answer, costs time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from msgspec import Struct

from runtime import log
from runtime.bus import Connection, NoAnswer, frame_pub, within
from runtime.errors import DefenderError
from runtime.ownership_record import Record

_LOG = log.get("control")


class Yield(Struct, frozen=True, tag=True):
    """*stable_id*, held by *pod_uid*, has copied the partition and asks its owner to release it."""

    partition: int
    stable_id: str
    pod_uid: str
    ring_version: int


class Succeed(Struct, frozen=True, tag=True):
    """A draining pod asks a standby whether it takes the stable ID over."""

    stable_id: str
    pod_uid: str


class Drain(Struct, frozen=True, tag=True):
    """An operator: hand everything over and stay idle; with *undo*: take part again."""

    undo: bool = False


class Yielded(Struct, frozen=True, tag=True):
    """The partition's *record* is released, at *revision*; its owner had stopped *stopped_ms* before, and
    had judged by chart specs of *spec_revision*: who goes on with older ones would judge as they were."""

    partition: int
    record: Record
    revision: int
    stopped_ms: float
    spec_revision: int = 0


class Accepted(Struct, frozen=True, tag=True):
    pass


class Absent(Struct, frozen=True, tag=True):
    """Nothing is served here: the pod lives, and is not the owner that it was."""


class Refused(Struct, frozen=True, tag=True):
    why: str


Request = Yield | Succeed | Drain
Answer = Yielded | Accepted | Absent | Refused

_request: Final = msgspec.json.Decoder(Request)
_answer: Final = msgspec.json.Decoder(Answer)


class NobodyListens(DefenderError):
    """No pod listens under this UID: it is gone, or it is connecting again."""

    exit_code = 69
    temporary = True


async def ask(connection: Connection, subject: str, request: Request, *, timeout_s: float) -> Answer:
    """The pod's answer. Raises NobodyListens, NoAnswer, Disconnected."""
    reply = await within(connection.ask(subject, msgspec.json.encode(request)), timeout_s, subject)
    if reply.status == b"503":
        raise NobodyListens(f"nobody listens on {subject}: the pod is gone, or connecting again")
    try:
        answer: Answer = _answer.decode(reply.payload)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"{subject} answered what is no answer: {error}") from None
    return answer


class Listener:
    """Answers the requests to one pod; *answer* may take its time, others are answered meanwhile."""

    def __init__(
        self, connection: Connection, subject: str, answer: Callable[[Request], Awaitable[Answer]]
    ) -> None:
        self._connection, self._subject, self._answer = connection, subject, answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._sid: int | None = None

    async def start(self) -> None:
        self._sid = await self._connection.tap(self._subject, self._deliver)

    async def stop(self) -> None:
        """Whoever asks from now on is told that nobody listens."""
        if self._sid is not None:
            await self._connection.untap(self._sid)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        task = asyncio.get_running_loop().create_task(self._respond(reply, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, reply: bytes, payload: bytes) -> None:
        answer: Answer
        try:
            answer = await self._answer(_request.decode(payload))
        except (msgspec.MsgspecError, DefenderError) as error:
            answer = Refused(str(error))
        if reply and self._connection.is_connected:
            self._connection.write(frame_pub(reply, msgspec.json.encode(answer)))
