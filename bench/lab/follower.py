"""Follows every report of a fleet to its verdict, live, in a process of its own.

    parent  Following.start ──settings──► follower (python -m bench.lab.follower)
                            ◄─Followed──  every quarter of a second
            Following.finish ─"finish"──► reads on until every report has its verdict or its rejection
                            ◄─columns───  in memory that the two share

It reads the heads of SAMPLES and REJECTED, and VERDICTS whole, of each shard, and keeps what
`bench.lab.tally` counts. The process dies with its parent, and goes on over restarts of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec
import numpy as np
import uvloop

from bench.lab.errors import LabError, NotInTime
from bench.lab.histogram import Histogram
from bench.lab.ordered import OrderedReading
from bench.lab.tally import Followed, Tally, Waits
from runtime.bus import TRANSIENT, Connection, NotFound, connect
from runtime.config import Settings
from runtime.errors import DefenderError
from runtime.lifeline import die_with
from runtime.names import PARTITIONS_A_STREAM

TELL_S: Final = 0.25
START_S_MAX: Final = 20.0
END_S_MAX: Final = 30.0
"""For the columns to be written once the follower is through."""
COLLECT_EVERY: Final = 100_000
"""Python's collector of cycles would look through the lists of a second again and again; there are none."""
STDERR_LINES: Final = 5


class _Order(msgspec.Struct):
    """What the parent says, a line each: how to connect, then when to finish."""

    settings: Settings | None = None
    finish_s: float = 0.0
    until_settled: bool = True


class _Word(msgspec.Struct, omit_defaults=True):
    """What the follower says, a line each."""

    followed: Followed = Followed()
    failed: str = ""
    late: str = ""
    is_done: bool = False


class Following:
    """The parent's handle: ``await start()``, then `progress` at any time, then ``await finish()``.

    A run that breaks off calls `stop` instead, which is always allowed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._words: asyncio.Queue[None] = asyncio.Queue()
        self._word, self._late = _Word(), ""
        self._columns_fd = -1
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)

    @property
    def pid(self) -> int:
        """Of the follower's process. Raises LabError before `start`."""
        return self._running().pid

    async def start(self) -> Self:
        """Everything stored from now on is seen when this returns. Raises LabError."""
        self._columns_fd = os.memfd_create("waits")
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.lab.follower", str(os.getpid()), str(self._columns_fd)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(self._columns_fd,),
            start_new_session=True,  # Ctrl-C is for the lab to handle; it then asks for what was seen
        )
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._hear()), loop.create_task(self._hear_errors())]
        try:
            self._say(_Order(settings=self._settings))
            await self._wait(lambda: self._word.followed.at_ns > 0, START_S_MAX, "did not begin")
        except BaseException:
            await self.stop()
            raise
        return self

    def progress(self) -> Followed:
        """As of the last quarter of a second. Raises LabError when the follower is gone."""
        self._require_alive()
        return self._word.followed

    async def finish(self, deadline_s: float, *, until_settled: bool = True) -> Waits:
        """What was seen, once all that is stored is read and every report has its verdict or its rejection.

        Raises NotInTime when that takes longer than *deadline_s*; the follower then goes on, and may be asked
        again. Without *until_settled* it is what was read by then. Raises LabError when the follower is gone.
        """
        self._require_alive()
        self._late = ""
        self._say(_Order(finish_s=deadline_s, until_settled=until_settled))
        limit_s = deadline_s + END_S_MAX
        await self._wait(lambda: self._word.is_done or bool(self._late), limit_s, "did not finish")
        if self._late:
            raise NotInTime(f"not every report had its verdict within {deadline_s:g} s: {self._late}")
        try:
            with os.fdopen(os.dup(self._columns_fd), "rb") as columns:
                columns.seek(0)
                at, stored, partition, came, latency = (np.load(columns) for _ in range(5))
        finally:
            await self.stop()
        wait_ms = ((stored - at) / 1e6).astype(np.float32)
        return Waits(at, stored, wait_ms, partition, came, Histogram(latency), self._word.followed)

    async def stop(self) -> None:
        """Ends the follower, if it still runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await asyncio.gather(*self._tasks)
        if self._columns_fd >= 0:
            os.close(self._columns_fd)
            self._columns_fd = -1

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise LabError("the follower was not started: call start() first")
        return self._process

    def _require_alive(self) -> None:
        code = self._running().returncode
        if self._word.failed:
            raise LabError(f"the follower failed: {self._word.failed}")
        if code is not None and not self._word.is_done:
            said = " | ".join(self._stderr) or "nothing"
            raise LabError(f"the follower left with code {code}; it said: {said}")

    def _say(self, order: _Order) -> None:
        stdin = self._running().stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(order) + b"\n")

    async def _hear(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        async for line in stdout:
            self._word = msgspec.json.decode(line, type=_Word)
            self._late = self._word.late or self._late
            self._words.put_nowait(None)
        await self._running().wait()
        self._words.put_nowait(None)

    async def _hear_errors(self) -> None:
        stderr = self._running().stderr
        assert stderr is not None
        async for line in stderr:
            self._stderr.append(line.decode(errors="replace").rstrip())

    async def _wait(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                while not condition():
                    self._require_alive()
                    await self._words.get()
        except TimeoutError:
            raise NotInTime(
                f"the follower {what} within {deadline_s:g} s; is the machine overloaded?"
            ) from None


class Follower:
    """The process: its readings, and how it is getting on."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        names = settings.names
        self.tally = Tally(names)
        self._begun = self._told = (time.monotonic(), time.process_time())
        self._ended: tuple[float, float] | None = None

        def reading(stream: str, take: str, headers_only: bool) -> OrderedReading:
            found = getattr(self.tally, take)
            timeout_s = settings.request_timeout_s
            return OrderedReading(connection, stream, found, headers_only=headers_only, timeout_s=timeout_s)

        firsts = range(0, names.partitions, PARTITIONS_A_STREAM)
        self._readings = [reading(names.samples_stream(first), "report", True) for first in firsts]
        self._readings += [reading(names.verdicts_stream(first), "verdict", False) for first in firsts]
        self._readings.append(reading(names.rejected, "rejection", True))

    async def begin(self) -> None:
        """Raises LabError for a stream that is not there, and the TRANSIENT errors."""
        for reading in self._readings:
            try:
                await reading.begin()
            except NotFound:
                raise LabError(
                    f"there is no stream {reading.stream}: make the fleet's streams first (defender init)"
                ) from None
        self._begun = self._told = (time.monotonic(), time.process_time())

    def followed(self, *, is_last: bool = False) -> Followed:
        """The figures of the moment; the cores are those since the last call, at the last since `begin`."""
        self.tally.settle()
        now, now_ns = (time.monotonic(), time.process_time()), time.time_ns()
        since, self._told = self._begun if is_last else self._told, now
        late = [reading for reading in self._readings if reading.behind and reading.time_ns]
        return self.tally.followed(
            now_ns,
            behind=sum(reading.behind for reading in self._readings),
            behind_ms=max(((now_ns - reading.time_ns) / 1e6 for reading in late), default=0.0),
            missed=sum(reading.missed for reading in self._readings),
            resumed=sum(reading.made - 1 for reading in self._readings),
            cores=(now[1] - since[1]) / max(now[0] - since[0], 1e-9),
            trouble="; ".join(reading.trouble for reading in self._readings if reading.trouble),
        )

    async def is_read(self) -> bool:
        """Whether all that is stored is read."""
        try:
            lasts = [await reading.last_seq() for reading in self._readings]
        except TRANSIENT:
            return False
        return all(reading.seq >= last for reading, last in zip(self._readings, lasts, strict=True))

    @property
    def unsettled(self) -> int:
        """Reports that were read and have neither verdict nor rejection."""
        return self.tally.reports - self.tally.settled

    async def stop(self) -> None:
        for reading in self._readings:
            await reading.stop()

    def write(self, columns: BinaryIO) -> None:
        """The tally's columns and its histogram, as NumPy files one after another."""
        for column in (*self.tally.columns(), self.tally.latency.counts):
            np.save(columns, column)


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _tell(word: _Word) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


async def _follow(columns_fd: int) -> None:
    orders = await _orders()
    order = msgspec.json.decode(await orders.readline(), type=_Order)
    if order.settings is None:
        raise LabError("the first order must bring the settings")
    connection = await connect(order.settings, "lab-follower")
    follower = Follower(connection, order.settings)
    await follower.begin()
    _tell(_Word(follower.followed()))
    while line := await _next_order(orders, follower):
        order = msgspec.json.decode(line, type=_Order)
        late = await _finished(follower, order)
        if not late:
            break
        _tell(_Word(follower.followed(), late=late))
    else:
        return  # the parent is gone
    last = follower.followed(is_last=True)
    await follower.stop()
    with os.fdopen(columns_fd, "wb") as columns:
        follower.write(columns)
    _tell(_Word(last, is_done=True))
    await connection.close()


async def _next_order(orders: asyncio.StreamReader, follower: Follower) -> bytes:
    """The parent's next line; meanwhile it is told how things are."""
    line = asyncio.ensure_future(orders.readline())
    while not line.done():
        await asyncio.wait([line], timeout=TELL_S)
        _tell(_Word(follower.followed()))
    return line.result()


async def _finished(follower: Follower, order: _Order) -> str:
    """Reads on as ordered; what is missing when the time is over, "" when nothing is or none is asked for."""
    end = time.monotonic() + order.finish_s
    while True:
        is_read = await follower.is_read()
        if is_read and (follower.unsettled <= 0 or not order.until_settled):
            return ""
        if time.monotonic() >= end:
            break
        await asyncio.sleep(TELL_S / 5)
        _tell(_Word(follower.followed()))
    if not order.until_settled:
        return ""
    unread = "" if is_read else ", and not all that is stored was read"
    return f"{max(0, follower.unsettled):,} reports wait{unread}"


def main() -> None:
    """``python -m bench.lab.follower <parent's pid> <descriptor for the columns>``"""
    parent_pid, columns_fd = map(int, sys.argv[1:])
    die_with(parent_pid)
    gc.set_threshold(COLLECT_EVERY)
    try:
        uvloop.run(_follow(columns_fd))
    except DefenderError as error:
        _tell(_Word(failed=str(error)))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
