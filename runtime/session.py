"""One life of a worker's connection: partitions come, are judged, and go, until it is drained or breaks.

    OPEN ── Drain ──► DRAINING ──► OVER
      └── anything breaks ─┴─────► OVER (Broken)

    a partition:   (none) ── Copy ──► copied ── Assign ──► reading ──► serving ── Yield ──► (none)
                     └──────────────── Assign ───────────────┘

Partitions are independent of each other: one whose history is being read holds no other one up.

There is no repair inside a session. Whatever goes wrong (the connection, a batch that was refused, a
consumer that was deleted, a history that does not answer) ends it; the next session settles what was in
flight against what is stored and begins at the partitions' positions. Every kind of failure so takes
the one path that the tests take too.

Partitions come and go here; the reports of those that are served go through `runtime.passage`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final

import numpy as np

from runtime import arena as arenas
from runtime import pipes
from runtime.config import Settings
from runtime.connection import Connection
from runtime.counters import Board, Counter, WorkerCounters
from runtime.filling import Filler
from runtime.history import History, Rest
from runtime.intake import Intake
from runtime.judge import Judge
from runtime.passage import Passage, SessionBroken
from runtime.readings import Readings
from runtime.rebuild import Rebuild
from runtime.specs import Specs
from runtime.transfer import Giver, fetch, page_from

TICK_S: Final = 0.25
STALE_S: Final = 60.0
"""After this time without being asked for, memory of a partition from an earlier session is dropped."""


class State(Enum):
    OPEN = "open"
    DRAINING = "draining"
    OVER = "over"


class Session:
    """Everything that lives as long as one connection, over memory that was settled for it."""

    def __init__(
        self,
        number: int,
        worker: int,
        settings: Settings,
        connection: Connection,
        history: History,
        judge: Judge,
        board: Board,
        counters: WorkerCounters,
        say: Callable[[pipes.ToSupervisor], None],
    ) -> None:
        self.number, self.state = number, State.OPEN
        self._settings, self._connection = settings, connection
        self._cache, self._counters, self._say = judge.cache, counters, say
        self._history = history
        self._filler = Filler(self._cache, history, counters)
        self._passage = Passage(
            *(settings, connection, history, judge, board, counters), self._break, self._filler.leave
        )
        self._readings = Readings(
            self._cache, history, settings.copies_max, lambda: self._passage.is_live, self._fetch
        )
        self._intakes: dict[int, Intake] = {}
        """Of the partitions that are assigned."""
        self._coming: dict[int, asyncio.Task[None]] = {}
        """Partitions whose history is read, ahead or to be served, by the task that does it."""
        self._filling: dict[int, asyncio.Task[None]] = {}
        """Those that are served while their history is read."""
        self._leaving: set[int] = set()
        self._beside: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begun_at = time.monotonic()
        subject = settings.names.memory(settings.pod_uid, worker)
        self._start(Giver(self._cache, connection, subject, self._passage.serves).run())

    # --- the supervisor's words -----------------------------------------------------------------

    def assign(self, assignments: list[pipes.Assignment]) -> None:
        """Begins to serve these: each as soon as its history is in memory. `Serving` tells of it."""
        begun_s = time.monotonic()
        for found in assignments:
            partition = found.partition
            if partition in self._intakes:
                self._break(SessionBroken(f"partition {partition} was assigned while it is served"))
                return
            stream = self._settings.names.samples_stream(partition)
            expires_s = self._settings.pull_expires_s
            intake = Intake(partition, stream, found.consumer, found.position, self._window, expires_s)
            self._intakes[partition] = intake
            if self._readings.is_kept(partition, found.before):
                self._cache.arena.epochs[partition] = found.epoch
            self._coming[partition] = self._start(self._take_on(found, intake, begun_s))
        self._share_window()

    def copy(self, partitions: Iterable[int], sources: Mapping[int, pipes.Source]) -> None:
        """Reads these ahead, which others serve yet, or what came since. `Copied` tells of each."""
        for partition in partitions:
            if partition not in self._intakes and not self._readings.is_copying(partition):
                self._readings.plan_copy(partition, sources.get(partition))
                self._coming[partition] = self._start(self._copy(partition))

    def forget(self, partitions: Iterable[int]) -> None:
        """Drops what is in memory of these, unless they are assigned."""
        for partition in partitions:
            if partition not in self._intakes:
                self._stop_reading(partition)

    def give_back(self, partitions: Iterable[int]) -> None:
        """Stops serving these, and forgets them. `Yielded` tells of each."""
        for partition in partitions:
            if partition not in self._leaving:
                self._leaving.add(partition)
                self._start(self._give_back(partition))

    def use_specs(self, specs: Specs, revision: int) -> None:
        self._cache.use_specs(specs, revision)
        self._counters.set(Counter.SPEC_REVISION, revision)

    async def drain(self) -> pipes.Released:
        """Takes nothing more, lets what is in flight land, acknowledges it and waits until that is heard.

        What was only delivered comes again to the next owner: a backlog prefetched of a few chambers would
        take seconds.
        """
        self.state = State.DRAINING
        for task in [*self._coming.values(), *self._filling.values()]:
            task.cancel()
        await self._passage.drain()
        self.state = State.OVER
        return pipes.Released({p: intake.position for p, intake in self._intakes.items()})

    @property
    def is_idle(self) -> bool:
        """Whether no partition is assigned: a session without any publishes nothing."""
        return not self._intakes

    async def broken(self) -> None:
        """Returns never; raises what broke the session."""
        await self._broken

    async def close(self) -> None:
        self.state = State.OVER
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, self._passage.close(), return_exceptions=True)
        await self._connection.cut()
        for partition in self._intakes:
            self._counters.set_epoch(partition, 0)

    def tick(self) -> None:
        """Once every TICK_S: gauges, and whether the server still answers the pulls."""
        counters, cache = self._counters, self._cache
        for intake in self._intakes.values():
            counters.set_lag(intake.partition, intake.lag + len(intake.pending))
        self._passage.gauge()
        counters.add(Counter.TRANSFERRED, self._readings.transferred)
        counters.add(Counter.TRANSFERS_FAILED, self._readings.failed)
        self._readings.transferred = self._readings.failed = 0
        counters.set(Counter.SLOTS_USED, cache.slots_used)
        counters.set(Counter.CHAMBERS, len(cache.chambers))
        counters.add(Counter.EVICTIONS, cache.evictions)
        cache.evictions = 0
        now_s = time.monotonic()
        silence_s = self._passage.unanswered_s(now_s)
        if self.state is State.OPEN and silence_s > self._settings.pull_expires_s + 5.0:
            self._break(SessionBroken(f"no pull was answered for {silence_s:.0f} s"))
        if now_s - self._begun_at > STALE_S:
            self._begun_at = now_s
            self._forget_stale()

    def _forget_stale(self) -> None:
        """What an earlier session served and this one was never asked for is another's now."""
        for partition in np.flatnonzero(self._cache.arena.partitions != arenas.UNREAD).tolist():
            if partition not in self._intakes and partition not in self._coming:
                self._cache.forget(partition)

    # --- a partition comes and goes -------------------------------------------------------------

    async def _copy(self, partition: int) -> None:
        reports = await self._readings.copy(partition)
        if reports is not None:
            self._counters.add(Counter.REBUILT_REPORTS, reports)
            self._say(pipes.Copied(self.number, partition, reports))

    async def _fetch(
        self, partition: int, source: pipes.Source, rebuild: Rebuild, rest: Rest
    ) -> tuple[int, list[str]]:
        subject = self._settings.names.memory(source.pod_uid, source.worker)
        page_of = partial(page_from, self._connection, subject)
        return await fetch(page_of, partition, source.epoch, self._cache, rebuild, rest)

    def _stop_reading(self, partition: int) -> None:
        for tasks in (self._coming, self._filling):
            task = tasks.pop(partition, None)
            if task is not None:
                task.cancel()
        self._readings.forget(partition)

    async def _take_on(self, found: pipes.Assignment, intake: Intake, begun_s: float) -> None:
        """Serves a partition from when its history is in memory, or at once where chambers are read alone."""
        partition, reports = found.partition, 0
        is_kept = self._readings.is_kept(partition, found.epoch)
        if not is_kept and self._history.reads_chambers and self._readings.begin(partition, found.before):
            is_kept = True
        if not is_kept:
            reports = await self._readings.ready(partition, found.before)
            took_s = time.monotonic() - begun_s
            self._counters.set(Counter.REBUILD_US, int(took_s * 1e6))
            self._counters.add(Counter.REBUILT_REPORTS, reports)
        self._cache.arena.epochs[partition] = found.epoch
        await self._passage.serve(intake, found.epoch)
        del self._coming[partition]
        self._say(pipes.Serving(self.number, [partition], reports, time.monotonic() - begun_s))
        if self._history.reads_chambers and self._cache.arena.partitions[partition] == arenas.PARTLY:
            self._filling[partition] = self._start(self._filler.fill(partition))

    async def _give_back(self, partition: int) -> None:
        intake = self._intakes.get(partition)
        if self._passage.serves(partition):
            await self._passage.leave(partition)
        # What a successor of this worker finds from here on is not to be used, whatever is left of it.
        self._cache.arena.partitions[partition] = arenas.UNREAD
        self._say(pipes.Yielded(self.number, {partition: intake.position if intake is not None else 0}))
        self._intakes.pop(partition, None)
        self._stop_reading(partition)
        self._leaving.discard(partition)
        self._share_window()

    @property
    def _window(self) -> int:
        """Reports asked for and in hand of one partition."""
        return max(32, self._settings.prefetch_reports_max // max(1, len(self._intakes)))

    def _share_window(self) -> None:
        for intake in self._intakes.values():
            intake.resize(self._window)

    # --- small change ---------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if not self._broken.done() and self.state is not State.OVER:
            self._broken.set_exception(error)
