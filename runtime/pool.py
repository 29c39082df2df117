"""The workers of a pod, as their supervisor sees them: started, watched, aborted, started again.

    STARTING ── Ready ──► READY ── Drain ──► DRAINING ── Released ──► GONE
        ▲ │                 │ │
        │ └─── death, stall ┴─┼──► GONE ── backoff ──► STARTING (same memory)
        └────── Ended ────────┘

A worker is READY without a partition, too: partitions come and go while it works (`runtime.pipes`).
Workers are forked from multiprocessing's fork server, never from this process: it runs an event loop.
The fork server is their parent; a worker's `sentinel` tells of its death.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import Final

from runtime import fork, log, pipes
from runtime.config import Settings
from runtime.counters import Board, Counter
from runtime.errors import CacheTooSmall, CrashLoop, DefenderError, Fenced, IllegalTransition

ABORT_GRACE_S: Final = 1.0
"""Between SIGABRT (the stacks go to the log) and SIGKILL."""
WATCH_S: Final = 0.5
_ENDS_THE_POD: Final[dict[int, type[DefenderError]]] = {
    error.exit_code: error for error in (Fenced, CacheTooSmall)
}
"""What a worker's last word means, by the exit code that it gives."""
QUICK_DEATH_S: Final = 2.0
"""A worker that dies within this time of its start was not killed by chance."""


class WorkerState(Enum):
    STARTING = "starting"
    """No process yet, or one that connects, or connects again."""
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


_LEGAL: Final = {
    WorkerState.STARTING: {WorkerState.READY, WorkerState.DRAINING, WorkerState.GONE},
    WorkerState.READY: {WorkerState.STARTING, WorkerState.DRAINING, WorkerState.GONE},
    WorkerState.DRAINING: {WorkerState.GONE},
    WorkerState.GONE: {WorkerState.STARTING},
}


class WorkerHandle:
    """One worker: its process of the moment, its pipe, and its memory, which stays."""

    def __init__(self, index: int, memory_fd: int) -> None:
        self.index = index
        self.memory_fd = memory_fd
        self.state = WorkerState.GONE
        self.process: BaseProcess | None = None
        self.pipe: Pipe | None = None
        self.restarts = 0
        self.started_at_s = 0.0
        self.aborted_at_s: float | None = None
        self.quick_deaths = 0
        self.released: dict[int, int] | None = None
        self.session: int | None = None
        """The number of its session of the moment; None while it has none."""
        self.serving: set[int] = set()
        """The partitions that it serves, by its own words, of this session."""

    def enter(self, state: WorkerState) -> None:
        """Raises IllegalTransition for a change that the table does not know."""
        if state not in _LEGAL[self.state]:
            raise IllegalTransition(f"worker {self.index}", self.state.value, state.value)
        self.state = state

    def send(self, word: pipes.ToWorker) -> None:
        """A worker that died in this moment hears nothing; its sentinel tells."""
        if self.pipe is not None:
            try:
                pipes.send(self.pipe, word)
            except (BrokenPipeError, ConnectionResetError):
                return

    # These return False, and do nothing, when the worker has no session: it will be `Ready` again.

    def assign(self, assignments: list[pipes.Assignment]) -> bool:
        return self._tell(lambda session: pipes.Assign(session, assignments))

    def copy(self, partitions: Iterable[int], sources: Mapping[int, pipes.Source] | None = None) -> bool:
        return self._tell(lambda session: pipes.Copy(session, list(partitions), dict(sources or {})))

    def forget(self, partitions: Iterable[int]) -> bool:
        return self._tell(lambda session: pipes.Forget(session, list(partitions)))

    def take_back(self, partitions: Iterable[int]) -> bool:
        return self._tell(lambda session: pipes.Yield(session, list(partitions)))

    def _tell(self, word: Callable[[int], pipes.ToWorker]) -> bool:
        if self.session is None or self.state is not WorkerState.READY:
            return False
        self.send(word(self.session))
        return True


class Pool:
    """The policy: what happens when a worker is ready, is silent, or dies.

    Called with the handle, which is up to date by then: *on_ready* when a session begins (nothing is served
    in it yet), *on_word* for each word of the present session (`Ended`: ``session`` is None again), *on_gone*
    when a process has died or left: what it served is unattended. None of them is called after `kill`.
    `failed` is set to the error that ends the pod.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        memory_fds: list[int],
        stable_id: str,
        *,
        on_ready: Callable[[WorkerHandle], None],
        on_word: Callable[[WorkerHandle, pipes.OfSession], None],
        on_gone: Callable[[WorkerHandle], None],
    ) -> None:
        self._settings, self._board, self._stable_id = settings, board, stable_id
        self._on_ready, self._on_word, self._on_gone = on_ready, on_word, on_gone
        self.handles = [WorkerHandle(index, fd) for index, fd in enumerate(memory_fds)]
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deaths: collections.deque[float] = collections.deque()
        self._specs: pipes.Specs | None = None
        self._draining = False
        self._forking: set[asyncio.Task[None]] = set()
        self._fork_lock = asyncio.Lock()
        self._log = log.get("pool")
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def start(self) -> None:
        for handle in self.handles:
            self._start(handle)

    def is_healthy(self) -> bool:
        """False when a worker has hung for so long that aborting it has not helped."""
        limit_s = 2 * self._settings.worker_stall_s
        alive = [handle for handle in self.handles if handle.process is not None]
        return all(self._silence_s(handle) <= limit_s for handle in alive)

    @property
    def spec_revision(self) -> int:
        """Of the chart specs that the workers were told last; 0 before any."""
        return self._specs.revision if self._specs is not None else 0

    def use_specs(self, specs: pipes.Specs) -> None:
        self._specs = specs
        for handle in self.handles:
            handle.send(specs)

    async def drain(self, deadline_s: float) -> dict[int, int]:
        """Every worker finishes what it has in hand; the positions of those that did so by *deadline_s*
        (monotonic). Those that did not are killed: what they had in hand comes again to the next owner."""
        self._draining = True
        for handle in self.handles:
            if handle.state is not WorkerState.GONE:
                handle.enter(WorkerState.DRAINING)
                handle.send(pipes.Drain())
        while any(h.state is not WorkerState.GONE for h in self.handles) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.005)
        await self.kill()
        positions: dict[int, int] = {}
        for handle in self.handles:
            positions.update(handle.released or {})
        return positions

    async def kill(self) -> None:
        """Ends every worker at once."""
        self._draining = True
        self._watching.cancel()
        await asyncio.gather(*self._forking)  # a worker on its way must not be left behind
        for handle in self.handles:
            if handle.process is not None:
                # `_died` would close the process while it is being joined below.
                asyncio.get_running_loop().remove_reader(handle.process.sentinel)
                if handle.process.is_alive():
                    handle.process.kill()
        for handle in self.handles:
            if handle.process is not None:
                await asyncio.to_thread(handle.process.join, 2.0)
            self._let_go(handle)

    # --- one worker -----------------------------------------------------------------------------

    def _start(self, handle: WorkerHandle) -> None:
        handle.enter(WorkerState.STARTING)
        task = asyncio.get_running_loop().create_task(self._fork(handle))
        self._forking.add(task)
        task.add_done_callback(self._forking.discard)

    async def _fork(self, handle: WorkerHandle) -> None:
        # In a thread: the fork server answers when its kernels are loaded, without a cache after 20 s,
        # and the lease must be renewed meanwhile. One at a time: `fork` hides the main module for a moment.
        try:
            async with self._fork_lock:
                process, pipe = await asyncio.to_thread(
                    fork.start_worker,
                    handle.index,
                    self._stable_id,
                    self._settings,
                    handle.memory_fd,
                    self._board.fd,
                )
        except OSError as error:
            self._fail(CrashLoop(f"worker {handle.index} cannot be forked: {error}"))
            return
        handle.process, handle.pipe = process, pipe
        handle.started_at_s = time.monotonic()
        handle.aborted_at_s = handle.released = None
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), self._hear, handle)
        loop.add_reader(process.sentinel, self._died, handle)
        if self._specs is not None:
            handle.send(self._specs)
        if self._draining:
            handle.send(pipes.Drain())
        self._log.info("worker started", worker=handle.index, pid=process.pid)

    def _hear(self, handle: WorkerHandle) -> None:
        assert handle.pipe is not None
        try:
            while handle.pipe is not None and handle.pipe.poll():
                self._obey(handle, pipes.receive_as_supervisor(handle.pipe))
        except (EOFError, OSError):
            if handle.pipe is not None:
                asyncio.get_running_loop().remove_reader(handle.pipe.fileno())

    def _obey(self, handle: WorkerHandle, word: pipes.ToSupervisor) -> None:
        match word:
            case pipes.Ready(session=session):
                if not self._draining:
                    handle.enter(WorkerState.READY)
                    handle.session = session
                    self._on_ready(handle)
            case pipes.Released(positions=positions):
                handle.released = positions
            case pipes.Broken(why=why, exit_code=code):
                self._fail(_ENDS_THE_POD.get(code, CrashLoop)(why))
            case _:
                if word.session == handle.session:
                    self._obey_session(handle, word)

    def _obey_session(self, handle: WorkerHandle, word: pipes.OfSession) -> None:
        match word:
            case pipes.Serving(partitions=partitions):
                handle.serving.update(partitions)
            case pipes.Yielded(positions=positions):
                handle.serving.difference_update(positions)
            case pipes.Ended():
                self._lose_session(handle)
                if not self._draining:
                    handle.enter(WorkerState.STARTING)
        self._on_word(handle, word)

    @staticmethod
    def _lose_session(handle: WorkerHandle) -> None:
        handle.session = None
        handle.serving.clear()

    def _died(self, handle: WorkerHandle) -> None:
        assert handle.process is not None
        self._hear(handle)  # its last words
        handle.process.join()
        code = handle.process.exitcode
        self._let_go(handle)
        self._on_gone(handle)
        if self._draining or code == 0:
            return
        self._log.error("worker died", worker=handle.index, exit_code=code)
        handle.restarts += 1
        now, settings = time.monotonic(), self._settings
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > settings.worker_restarts_window_s:
            self._deaths.popleft()
        if len(self._deaths) > settings.worker_restarts_max:
            self._fail(
                CrashLoop(
                    f"{len(self._deaths)} deaths of workers within {settings.worker_restarts_window_s:g} s "
                    f"(the last with exit code {code}); the log above says why"
                )
            )
            return
        # A death in the midst of work costs no wait; one soon after the start is a fault, and comes again.
        handle.quick_deaths = handle.quick_deaths + 1 if now - handle.started_at_s < QUICK_DEATH_S else 0
        pause_s = settings.restart_backoff_s * 2 ** (handle.quick_deaths - 1) if handle.quick_deaths else 0.0
        pause_s = min(settings.restart_backoff_max_s, pause_s)
        asyncio.get_running_loop().call_later(pause_s, self._start_again, handle)

    def _start_again(self, handle: WorkerHandle) -> None:
        if not self._draining and handle.state is WorkerState.GONE:
            self._start(handle)

    def _let_go(self, handle: WorkerHandle) -> None:
        loop = asyncio.get_running_loop()
        self._lose_session(handle)
        if handle.pipe is not None:
            loop.remove_reader(handle.pipe.fileno())
            handle.pipe.close()
            handle.pipe = None
        if handle.process is not None:
            loop.remove_reader(handle.process.sentinel)
            if handle.process.exitcode is not None:
                handle.process.close()
            handle.process = None
        if handle.state is not WorkerState.GONE:
            handle.enter(WorkerState.GONE)

    async def _watch(self) -> None:
        """A worker whose loop does not turn is aborted with its stacks in the log, then killed."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for handle in self.handles:
                process = handle.process
                if process is None or not process.is_alive():
                    continue
                silence_s = self._silence_s(handle)
                if silence_s <= self._settings.worker_stall_s:
                    continue
                if handle.aborted_at_s is None:
                    self._log.error("worker hangs, aborting", worker=handle.index, silence_s=silence_s)
                    handle.aborted_at_s = now
                    os.kill(process.pid or 0, signal.SIGABRT)
                elif now - handle.aborted_at_s > ABORT_GRACE_S:
                    process.kill()

    def _silence_s(self, handle: WorkerHandle) -> float:
        progress_at_s = self._board.worker(handle.index).get(Counter.PROGRESS_AT_NS) / 1e9
        return time.monotonic() - max(progress_at_s, handle.started_at_s)

    def _fail(self, error: DefenderError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
