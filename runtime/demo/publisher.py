"""The fab's host software, in a process of its own: ``python -m runtime.demo.publisher PLAN``.

An open loop: each report leaves when it is due, whether or not the server has acknowledged the ones
before, so that a stall shows as latency instead of as a pause of the fab. It writes what the server
acknowledged to standard output (`runtime.demo.plan.Word`, JSON lines) and starts when it reads a line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

import msgspec
import uvloop

from runtime import config, log
from runtime.bus import connect
from runtime.config import Settings
from runtime.connection import Connection
from runtime.demo.plan import Finished, Plan, Prepared, Refused, Stored, Word, messages
from runtime.errors import DefenderError
from runtime.fab import Planned
from runtime.jetstream import Reply, checked_ack

AHEAD_MAX: Final = 30_000
"""Reports made before the start, 0.1 ms of work and 0.5 kB each: that is no part of the show's load."""
ACKS_WITHIN_S: Final = 15.0
TELL_EVERY_S: Final = 0.02
YIELD_EVERY: Final = 50
"""Reports after which a publisher that is late lets its socket write."""


def main() -> int:
    """Returns the exit code: 0, or that of the error, which is on stderr."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    settings = config.load(os.environ)
    log.setup("console", "warning")
    waiting = messages(plan, time.time_ns())
    ready = deque(islice(waiting, AHEAD_MAX))
    try:
        uvloop.run(_Publisher(plan).run(settings, chain(ready, waiting)))
    except DefenderError as error:
        print(f"publisher: {error}", file=sys.stderr)
        return error.exit_code
    return 0


class _Publisher:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._words: list[Word] = []
        self._open: set[asyncio.Future[Reply]] = set()
        self._sent = 0
        self._behind_ns_max = 0

    async def run(self, settings: Settings, waiting: Iterator[Planned]) -> None:
        connection = await connect(settings, "demo publisher")
        self._words.append(Prepared())
        self._tell()
        if not await asyncio.to_thread(sys.stdin.readline):
            return  # who started us is gone
        telling = asyncio.create_task(self._keep_telling())
        begun_ns = time.monotonic_ns()
        await self._publish(connection, settings, waiting, begun_ns)
        seconds = (time.monotonic_ns() - begun_ns) / 1e9
        if self._open:
            await asyncio.wait(self._open, timeout=ACKS_WITHIN_S)
        for future in list(self._open):
            future.cancel()
        await asyncio.sleep(0)
        telling.cancel()
        self._words.append(Finished(self._sent, seconds, self._behind_ns_max / 1e6))
        self._tell()
        await connection.close()

    async def _publish(
        self, connection: Connection, settings: Settings, waiting: Iterator[Planned], begun_ns: int
    ) -> None:
        names, spacing_ns = settings.names, self._plan.spacing_ns
        for number, message in enumerate(waiting):
            ahead_ns = begun_ns + number * spacing_ns - time.monotonic_ns()
            if ahead_ns > 0:
                await asyncio.sleep(ahead_ns / 1e9)
            else:
                self._behind_ns_max = max(self._behind_ns_max, -ahead_ns)
                if number % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            self._send(connection, names.sample(message.chamber), message)

    def _send(self, connection: Connection, subject: str, message: Planned) -> None:
        sent_ns = time.monotonic_ns()
        future = connection.ask(subject, message.payload)
        self._sent += 1
        self._open.add(future)
        future.add_done_callback(lambda done: self._heard(done, subject, message, sent_ns))

    def _heard(self, done: asyncio.Future[Reply], subject: str, message: Planned, sent_ns: int) -> None:
        self._open.discard(done)
        if done.cancelled():
            cause = f"no acknowledgement within {ACKS_WITHIN_S:g} s"
            self._words.append(Refused(message.chamber, message.run, cause))
            return
        try:
            seq = checked_ack(subject, done.result()).seq
        except DefenderError as error:
            self._words.append(Refused(message.chamber, message.run, str(error)))
            return
        planted = tuple((plant.number, plant.kind, plant.chart) for plant in message.planted)
        self._words.append(
            Stored(
                seq,
                message.chamber,
                message.run,
                sent_ns,
                message.expect,
                message.samples,
                planted,
                message.reason,
            )
        )

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            self._tell()

    def _tell(self) -> None:
        words, self._words = self._words, []
        if words:
            sys.stdout.buffer.write(b"".join(msgspec.json.encode(word) + b"\n" for word in words))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
