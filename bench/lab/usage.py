"""What processes take of the machine, read from /proc; and what the machine is.

A pod, a server or a producer is a session: its first process's PID is the session's ID, and what it starts is
in the session unless it leaves it on purpose. CPU is counted in ticks of 10 ms.

    usage = Usage()
    usage.watch(lambda: {"pods": [pod.pid for pod in pods], "server": [server.pid]})
    ...
    await usage.stop()
    usage.samples                     one a second
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from bench.lab.errors import LabError
from bench.lab.result import Machine
from runtime import __version__
from runtime.embedded import server_binary

EVERY_S: Final = 1.0
VERSION_S_MAX: Final = 10.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


class Process(NamedTuple):
    """A process at a moment. Those that it waited for are its dead children, and theirs."""

    pid: int
    session: int
    own_ticks: int
    waited_ticks: int
    born_ticks: int
    """After the machine's start."""


class UseSample(NamedTuple):
    """What the groups took since the sample before, in cores, and how many pods there were then."""

    at_ns: int
    cores: dict[str, float]
    pods: int
    ready: int


def process(pid: int) -> Process | None:
    """One process, a dead one included that nobody has waited for; None without one."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # what stands behind the name, which may have spaces and brackets of its own
    fields = text[text.rindex(b")") + 2 :].split(b" ", 20)
    own, waited = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return Process(pid, int(fields[3]), own, waited, int(fields[19]))


def processes() -> Iterator[Process]:
    """All of the machine's, 19 µs each."""
    for name in os.listdir(_PROC):
        if name.isdecimal() and (found := process(int(name))) is not None:
            yield found


def session(pid: int) -> list[Process]:
    """The processes of the session that *pid* leads or led."""
    return [one for one in processes() if one.session == pid]


def cpu_s(members: Iterable[Process]) -> float:
    """CPU that they took, with their dead children."""
    return sum(one.own_ticks + one.waited_ticks for one in members) / _TICKS_PER_S


def pss_mb(pid: int) -> float:
    """A process's memory, in which shared pages are divided among those that share them; 0 of a dead one.

    Takes 3 ms: it walks the page tables.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class Usage:
    """Samples of what groups of processes take. *every_s* is from one to the next."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self.samples: list[UseSample] = []
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    @property
    def cores(self) -> float:
        """What all groups together took lately."""
        return sum(self.samples[-1].cores.values()) if self.samples else 0.0

    def watch(
        self,
        groups: Callable[[], Mapping[str, Iterable[int]]],
        counts: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> asyncio.Task[None]:
        """Begins to sample. *groups* gives the PIDs of each group's processes and sessions, *counts* the pods
        that run and those that are Ready. A process that is named itself and whose session is named, too,
        belongs to where it is named itself."""
        if self._task is not None:
            raise LabError("these samples are being taken already; make another Usage")
        self._task = asyncio.create_task(self._sample(groups, counts))
        return self._task

    async def stop(self) -> None:
        """Ends the sampling; raises what it broke with, if it did."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _sample(
        self, groups: Callable[[], Mapping[str, Iterable[int]]], counts: Callable[[], tuple[int, int]]
    ) -> None:
        before, before_s = {one.pid: one for one in processes()}, time.monotonic()
        due_s = before_s
        while True:
            due_s = max(due_s + self._every_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            after, now_s = {one.pid: one for one in processes()}, time.monotonic()
            cores = taken(before, after, groups(), now_s - before_s)
            self.samples.append(UseSample(time.time_ns(), cores, *counts()))
            before, before_s = after, now_s


def taken(
    before: Mapping[int, Process],
    after: Mapping[int, Process],
    groups: Mapping[str, Iterable[int]],
    seconds: float,
) -> dict[str, float]:
    """Cores that each group took between two looks at all processes. Pure.

    What a process took that ended between them is not counted.
    """
    named = {pid: group for group, pids in groups.items() for pid in pids}
    ticks = dict.fromkeys(groups, 0)
    for pid, now in after.items():
        group = named.get(pid) or named.get(now.session)
        if group is None:
            continue
        then = before.get(pid)
        same = then is not None and then.born_ticks == now.born_ticks
        ticks[group] += now.own_ticks - (then.own_ticks if then is not None and same else 0)
    return {group: count / _TICKS_PER_S / seconds for group, count in ticks.items()}


def machine() -> Machine:
    """This one. Raises SettingsError without a nats-server, LabError with one that does not answer."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        cpu=_cpu(),
        kernel=platform.release(),
        python=platform.python_version(),
        nats_server=_nats_server(),
        defender=__version__,
    )


def _cpu() -> str:
    for line in (_PROC / "cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":  # as x86 has it; others name no model there
            return value.strip()
    return platform.machine()


def _nats_server() -> str:
    binary = server_binary()
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=VERSION_S_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{Path(binary).name} does not tell its version: {error}") from error
    return done.stdout.strip().rpartition(" ")[2].removeprefix("v")
