"""One producer: a process that publishes its part of a load, open loop, until each report is stored.

`bench.lab.load` starts it, gives it a `Task` and then `Order`s on its standard input, and reads what it
`Said` from its standard output, one JSON object a line. The end of the input ends it, and so does the end of
its parent.

A report is made when it is due and there is room: while the server is away or slow, reports fall due without
being published, and are published late with the time at which they were due. So a stall shows as latency, and
memory stays bounded. What is not acknowledged is sent again, in order, after a reconnect, after a refusal,
and when an acknowledgement does not come; the stream drops what it has by its message ID.

20,000 reports/s of 10 samples take 0.3-0.4 of a core (of two, shared with the server); by cProfile two fifths
are the kernel's send, a quarter making frames, a quarter hearing of them. Beyond it the server is the limit,
at 50-65 thousand a second.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import uvloop
from msgspec import Struct

from bench.lab.errors import LabError
from bench.lab.load_reports import NS, Reports, Schedule, divided
from bench.lab.scenario import LoadOf
from runtime import log
from runtime.bus import connect
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import DefenderError
from runtime.frames import status_of
from runtime.jetstream import Disconnected, Reply, checked_ack

UNSTORED_MAX: Final = 8192
"""Reports of all producers that are sent and not acknowledged. The server refuses a stream's messages beyond
10,000 that wait to be stored (its max_buffered_msgs)."""
UNSTORED_BYTES_MAX: Final = 64_000_000
"""The same of one producer, in bytes of its memory."""
UNSENT_BYTES_MAX: Final = 4_000_000
"""What may wait for the socket before nothing more is made."""
WRITE_REPORTS_MAX: Final = 256
"""In one write; acknowledgements are read between two. 256 take 1 ms to make."""
TICK_S: Final = 0.001
"""Between two looks at the schedule; libuv's timers are no finer."""
PAUSE_S_MAX: Final = 0.05
AGAIN_S: Final = 0.25
"""From a refusal until what is not stored is sent again; nothing new is sent meanwhile: it would overtake."""
ACK_S_MAX: Final = 5.0
"""An acknowledgement that did not come for so long is not waited for any more."""
SAY_S: Final = 0.2


class Produced(Struct, frozen=True):
    """What became of a load's reports so far."""

    due: int = 0
    published: int = 0
    """Sent at least once."""
    stored: int = 0
    again: int = 0
    """Sent again."""
    refused: int = 0
    """Answers of the server that it stored nothing; such a report is sent again."""
    late_ms_max: float = 0.0
    """By how much a report was sent after it was due through the producer's own fault: time in which the
    server was away or had `UNSTORED_MAX` reports to acknowledge does not count."""
    unstored_max: int = 0
    """Sent and not acknowledged at a time."""
    seconds: float = 0.0
    """From the first report's due time to the end of publishing."""


class Task(Struct, frozen=True):
    """What a producer is told first."""

    settings: Settings
    load: LoadOf
    producer: int
    token: str
    """Begins the name of each run."""


class Order(Struct, frozen=True):
    """From *at_ns* on *per_s* reports a second; None: publish nothing new, and end when all is stored."""

    at_ns: int
    per_s: float | None


class Said(Struct, frozen=True):
    """What a producer says of itself."""

    state: Literal["ready", "publishing", "ended", "failed"]
    produced: Produced = Produced()
    problem: str = ""
    """failed: why; else the last refusal, "" before any."""


class Producer:
    """Publishes its part of the load."""

    def __init__(
        self, connection: Connection, task: Task, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        load = task.load
        part = divided(load)[task.producer]
        self.problem = ""
        self._connection, self._clock_ns = connection, clock_ns
        self._inbox = connection.inbox()
        self._reports = Reports(load, task.settings.names, part, task.token, self._inbox)
        self._schedule = Schedule(max(1, round(load.burst * part.share)))
        self._room = self._room_for(task)
        self._is_away = False
        self._is_ending = False
        self._unstored: dict[bytes, bytes] = {}
        self._begun_ns = self._ended_ns = 0
        self._published = self._stored = self._again = self._refused = self._unstored_max = 0
        self._late_ns_max = 0
        self._hindered_ns = 0
        """When the server was last away or behind."""
        self._again_at_ns = 0
        """When to send again what is not stored; 0: there is no need to."""
        self._oldest: tuple[bytes, int] = (b"", 0)
        """The first report that is not stored, and since when it has been this one."""

    def _room_for(self, task: Task) -> int:
        """How many reports may be unacknowledged. Raises LabError for reports that nobody would take."""
        [(_, frame)] = self._reports.frames(0, self._schedule.due_ns(0, 1))
        for limit, name in (
            (task.settings.report_bytes_max, "REPORT_BYTES_MAX"),
            (self._connection.max_payload, "the server's max_payload"),
        ):
            if len(frame) > limit:
                raise LabError(
                    f"a report of {task.load.samples} samples has about {len(frame)} bytes, "
                    f"{name} is {limit}: give fewer samples, or raise it"
                )
        return max(1, min(UNSTORED_MAX // task.load.producers, UNSTORED_BYTES_MAX // len(frame)))

    def progress(self) -> Produced:
        now_ns = self._ended_ns or self._clock_ns()
        return Produced(
            due=self._schedule.due_by(now_ns),
            published=self._published,
            stored=self._stored,
            again=self._again,
            refused=self._refused,
            late_ms_max=round(self._late_ns_max / 1e6, 3),
            unstored_max=self._unstored_max,
            seconds=round(max(0, now_ns - self._begun_ns) / NS, 3) if self._begun_ns else 0.0,
        )

    def obey(self, order: Order) -> None:
        """Another rate, or the end."""
        if order.per_s is None:
            self._ended_ns = self._clock_ns()
            self._schedule.change(self._ended_ns, 0.0)
            self._is_ending = True
            return
        self._begun_ns = self._begun_ns or order.at_ns
        self._schedule.change(order.at_ns, order.per_s)

    async def went_away(self) -> None:
        """The connection broke."""
        self._is_away = True

    async def came_back(self) -> None:
        self._is_away = False
        self._again_at_ns = 1

    async def publish(self) -> None:
        """Until the end is ordered and all is stored."""
        await self._connection.tap(f"{self._inbox.decode()}.*", self._hear)
        while not self._is_ending or self._unstored:
            if self._connection.ended.is_set():
                raise Disconnected(f"the session ended for good: {self._connection.failure}")
            now_ns = self._clock_ns()
            try:
                pause_s = self._advance(now_ns)
            except Disconnected:  # `went_away` is about to be called
                self._hindered_ns, pause_s = now_ns, TICK_S
            await asyncio.sleep(pause_s)

    def _advance(self, now_ns: int) -> float:
        """Sends what is due. The pause after it, s."""
        if self._is_away or self._connection.unsent_bytes > UNSENT_BYTES_MAX:
            self._hindered_ns = now_ns
            return TICK_S
        if self._is_to_be_sent_again(now_ns):
            self._send_again()
        if self._again_at_ns or len(self._unstored) >= self._room:
            self._hindered_ns = now_ns
            return TICK_S
        if self._is_ending:
            return TICK_S
        due, room = self._schedule.due_by(now_ns) - self._published, self._room - len(self._unstored)
        if due > room:
            self._hindered_ns = now_ns
        count = min(due, room, WRITE_REPORTS_MAX)
        if count > 0:
            self._send(count, now_ns)
        if due > count:
            return 0.0
        return max(TICK_S, self._schedule.pause_s(self._published, now_ns, PAUSE_S_MAX))

    def _send(self, count: int, now_ns: int) -> None:
        due_ns = self._schedule.due_ns(self._published, count)
        made = self._reports.frames(self._published, due_ns)
        self._connection.write(b"".join([frame for _, frame in made]))
        self._unstored.update(made)
        self._published += count
        self._unstored_max = max(self._unstored_max, len(self._unstored))
        self._late_ns_max = max(self._late_ns_max, now_ns - max(int(due_ns[0]), self._hindered_ns))

    def _is_to_be_sent_again(self, now_ns: int) -> bool:
        oldest = next(iter(self._unstored), b"")
        if oldest != self._oldest[0]:
            self._oldest = oldest, now_ns
        is_overdue = bool(oldest) and now_ns - self._oldest[1] > ACK_S_MAX * NS
        return is_overdue or 0 < self._again_at_ns <= now_ns

    def _send_again(self) -> None:
        if self._unstored:
            self._connection.write(b"".join(self._unstored.values()))
            self._again += len(self._unstored)
        self._again_at_ns = 0
        self._oldest = b"", 0

    def _hear(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None or b'"error"' in payload:
            self._refused += 1
            self.problem = _refusal(payload, headers)
            self._again_at_ns = self._again_at_ns or self._clock_ns() + int(AGAIN_S * NS)
        elif self._unstored.pop(subject[len(self._inbox) + 1 :], None) is not None:
            self._stored += 1


def _refusal(payload: bytes, headers: bytes | None) -> str:
    """What the server's answer says."""
    try:
        checked_ack("publishing", Reply(payload, headers))
    except (DefenderError, msgspec.MsgspecError) as error:
        return str(error)
    return f"publishing: an answer with status {status_of(headers).decode()}"


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


async def _orders() -> asyncio.StreamReader:
    """Our standard input."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


async def _obey(orders: asyncio.StreamReader, producer: Producer) -> None:
    """Until the parent closes our input or ends."""
    decoder = msgspec.json.Decoder(Order)
    while line := await orders.readline():
        producer.obey(decoder.decode(line))


async def _tell(producer: Producer) -> None:
    while True:
        _say(Said("publishing", producer.progress(), producer.problem))
        await asyncio.sleep(SAY_S)


async def _produce() -> None:
    orders = await _orders()
    task = msgspec.json.decode(await orders.readline(), type=Task)
    made: list[Producer] = []

    async def went_away() -> None:
        for producer in made:
            await producer.went_away()

    async def came_back() -> None:
        for producer in made:
            await producer.came_back()

    connection = await connect(
        task.settings, f"lab-load-{task.producer}", on_disconnect=went_away, on_reconnect=came_back
    )
    producer = Producer(connection, task)
    made.append(producer)
    gc.freeze()  # what was imported is not looked through again
    _say(Said("ready"))
    publishing = asyncio.create_task(producer.publish())
    obeying = asyncio.create_task(_obey(orders, producer))
    telling = asyncio.create_task(_tell(producer))
    await asyncio.wait([publishing, obeying, telling], return_when=asyncio.FIRST_COMPLETED)
    for task_ in (publishing, obeying, telling):
        if task_.done():
            task_.result()
    telling.cancel()  # else it may say after "ended" that we are publishing
    if publishing.done():
        _say(Said("ended", producer.progress(), producer.problem))
    await connection.cut()


def main() -> int:
    """Runs a producer; the exit code."""
    log.setup("console", "warning")
    try:
        uvloop.run(_produce())
    except DefenderError as error:
        _say(Said("failed", problem=str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # what is left, the input's transport above all, has nothing to say any more
