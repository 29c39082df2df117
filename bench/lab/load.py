"""The parent's side of a load: producers as processes, one rate for all of them, what became of the reports.

new ──begin──► publishing ──finish──► ended
                   │  set_rate            close, at any time: the producers are killed
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.lab.errors import LabError, NotInTime
from bench.lab.load_producer import Order, Produced, Said, Task
from bench.lab.load_reports import SPECS, Part, checked, divided
from bench.lab.scenario import LoadOf
from runtime.config import Settings
from runtime.lifeline import die_with

__all__ = ["SPECS", "Produced", "Producers"]

READY_S_MAX: Final = 20.0
"""From the start of the processes until all are connected; 0.4 s each on a free core."""
LEAD_S: Final = 0.05
"""From the last producer's readiness to the first report's due time, so that none begins late."""
LAST_LINES: Final = 5
"""Of a producer's stderr, for the error when it ends."""


class Producers:
    """A load's producers; one to a part of the chambers. *start_ns*: when the first report is due, and what
    makes the runs' names differ from those of another load; None: as soon as all producers are connected."""

    def __init__(self, settings: Settings, load: LoadOf, *, start_ns: int | None = None) -> None:
        self._settings, self._load, self._start_ns = settings, checked(load), start_ns
        self._processes: list[_Process] = []

    @property
    def pids(self) -> list[int]:
        """Of the producers that were started."""
        return [process.pid for process in self._processes]

    @property
    def problem(self) -> str:
        """The last refusal that a producer met; "" when there was none."""
        return next((one.said.problem for one in self._processes if one.said.problem), "")

    async def begin(self) -> None:
        """Starts the producers and the load. Raises LabError when one cannot connect."""
        named_ns = self._start_ns or time.time_ns()
        try:
            for part in divided(self._load):
                token = f"s{self._load.seed}-{named_ns:x}.{part.producer}-"
                task = Task(self._settings, self._load, part.producer, token)
                self._processes.append(await _Process.started(part, task))
            try:
                async with asyncio.timeout(READY_S_MAX):
                    for process in self._processes:
                        await process.is_ready.wait()
                        process.check()
            except TimeoutError:
                raise NotInTime(
                    f"a producer was not ready within {READY_S_MAX:g} s: give fewer, or look at nats-server"
                ) from None
        except BaseException:
            await self.close()
            raise
        self._order(self._start_ns or time.time_ns() + int(LEAD_S * 1e9), self._load.reports_per_s)

    async def set_rate(self, reports_per_s: float) -> None:
        """Another rate of all producers together, from now on; 0: nothing falls due."""
        checked(msgspec.structs.replace(self._load, reports_per_s=reports_per_s))
        self._check()
        self._order(time.time_ns(), reports_per_s)

    def _order(self, at_ns: int, reports_per_s: float) -> None:
        for process in self._processes:
            process.order(Order(at_ns, reports_per_s * process.part.share))

    def progress(self) -> Produced:
        """At most `load_producer.SAY_S` old. Raises LabError when a producer has ended by itself."""
        self._check()
        return self._sum()

    @property
    def seen(self) -> Produced:
        """What the producers last said, whatever has become of them."""
        return self._sum()

    async def finish(self, deadline_s: float) -> Produced:
        """Publishes nothing new, waits until all that was published is stored, ends the producers.

        Raises NotInTime after *deadline_s*; the producers are gone then, too.
        """
        self._check()
        try:
            for process in self._processes:
                process.order(Order(0, None))
            async with asyncio.timeout(deadline_s):
                for process in self._processes:
                    await process.wait()
                    process.check()
        except TimeoutError:
            so_far = self._sum()
            why = f"; the server's last refusal: {self.problem}" if self.problem else ""
            raise NotInTime(
                f"{so_far.published - so_far.stored} of {so_far.published} reports were not stored "
                f"within {deadline_s:g} s of the load's end: look at nats-server{why}"
            ) from None
        finally:
            await self.close()
        return self._sum()

    async def close(self) -> None:
        """Kills the producers that still run; what they published may or may not be stored."""
        for process in self._processes:
            await process.kill()

    def _check(self) -> None:
        if not self._processes:
            raise LabError("the load was never begun")
        for process in self._processes:
            process.check()

    def _sum(self) -> Produced:
        parts = [process.said.produced for process in self._processes]
        return Produced(
            due=sum(one.due for one in parts),
            published=sum(one.published for one in parts),
            stored=sum(one.stored for one in parts),
            again=sum(one.again for one in parts),
            refused=sum(one.refused for one in parts),
            late_ms_max=max((one.late_ms_max for one in parts), default=0.0),
            unstored_max=sum(one.unstored_max for one in parts),
            seconds=max((one.seconds for one in parts), default=0.0),
        )

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Process:
    """One producer's process: it dies with this one, and hears no Ctrl-C of our terminal."""

    def __init__(self, part: Part, process: asyncio.subprocess.Process) -> None:
        self.part, self.said, self.pid = part, Said("ready"), process.pid
        self.is_ready = asyncio.Event()
        """Or it ended before."""
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reading = asyncio.gather(self._read_said(), self._read_errors())

    @classmethod
    async def started(cls, part: Part, task: Task) -> Self:
        root, parent_pid = Path(__file__).parents[2], os.getpid()
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.lab.load_producer"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: die_with(parent_pid),
        )
        started = cls(part, process)
        started._write(msgspec.json.encode(task))
        return started

    def order(self, order: Order) -> None:
        self._write(msgspec.json.encode(order))

    def check(self) -> None:
        """Raises LabError when the producer ended without having been told to."""
        if self.said.state == "failed":
            raise LabError(f"producer {self.part.producer}: {self.said.problem}")
        if self._process.returncode is not None and self.said.state != "ended":
            told = " | ".join(self._last_lines) or "it said nothing"
            code = self._process.returncode
            raise LabError(f"producer {self.part.producer} ended by itself with code {code}: {told}")

    async def wait(self) -> None:
        """Until it has ended and all that it said is read."""
        await self._process.wait()
        await asyncio.shield(self._reading)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    async def _read_said(self) -> None:
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(Said)
        while line := await self._process.stdout.readline():
            self.said = decoder.decode(line)
            self.is_ready.set()
        await self._process.wait()
        self.is_ready.set()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._last_lines.append(line.decode(errors="replace").rstrip())
