"""A worker process: sessions one after another over memory that outlives it.

It is forked from the fork server, which has the kernels loaded (8-14 ms from start to a kernel's first
call, against 330 ms of a fresh interpreter). It leaves at once when its supervisor is gone: the pipe then
ends, and the fork server's death, which follows, kills it by PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import time
from random import Random
from typing import Any, Final

import uvloop

from kernels import jit
from runtime import log, pipes
from runtime.arena import Arena, Shape
from runtime.bus import Connection, backoff_s, connect
from runtime.cache import Cache
from runtime.config import Settings
from runtime.counters import Board, Counter
from runtime.errors import CacheTooSmall, DefenderError, Fenced
from runtime.examine import Limits
from runtime.flight import FlightLog, in_doubt, settle
from runtime.fork import Start
from runtime.history.stores import Stores
from runtime.jetstream import Disconnected
from runtime.judge import BATCH_SAMPLES_MAX, Judge
from runtime.lifeline import die_with_parent
from runtime.session import TICK_S, Session, State
from runtime.specs import Specs
from runtime.specs import decode as decode_specs

GC_THRESHOLD: Final = 50_000
"""Objects made before the collector looks: a batch makes some ten thousand, and frees them by itself."""
_FINAL: Final = (Fenced, CacheTooSmall)
"""Errors that a new session would only meet again."""


def shape_of(settings: Settings) -> Shape:
    """The arena of one worker: its share of CACHE_MB, and the flight log."""
    return Shape.fitting(
        settings.cache_mb * 1_000_000 // settings.workers,
        partitions=settings.partitions,
        window=settings.window,
        flights=settings.batches_in_flight_max,
        reports=settings.batch_reports_max,
        samples=BATCH_SAMPLES_MAX,
    )


def main(start: Start) -> None:
    """The worker's process, from fork to exit."""
    _die_with_fork_server()
    faulthandler.enable()  # SIGABRT from the supervisor leaves the stacks in the log
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor drains us; the platform signals the group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what the fork server loaded never dies: looking through it took half of a batch's time
    gc.set_threshold(GC_THRESHOLD)
    settings = start.settings
    log.setup(settings.log_format, settings.log_level)
    log.identify(stable_id=start.stable_id, worker=start.index)
    worker = Worker(start)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(worker.run())
    os._exit(code)  # nothing of the fork server's is to be torn down here


def _die_with_fork_server() -> None:
    die_with_parent()
    supervisor = multiprocessing.parent_process()
    if os.getppid() in (1, supervisor.pid if supervisor is not None else 1):
        os._exit(75)  # the fork server died before the line above: nobody would know of this worker


class Worker:
    """Sessions until drained, fenced or told to stop."""

    def __init__(self, start: Start) -> None:
        self._settings = settings = start.settings
        self._pipe, self._stable_id, self._index = start.pipe, start.stable_id, start.index
        self._arena = Arena(start.memory.fd, shape_of(settings))
        self._board = Board.attach(start.board.fd, settings.workers, settings.partitions)
        self._counters = self._board.worker(start.index)
        self._log = log.get("worker")
        self._stores = Stores(settings, self._counters)
        self._specs: tuple[int, Specs] = (0, Specs())
        self._session: Session | None = None
        self._draining = asyncio.Event()
        self._random = Random(os.urandom(8))

    async def run(self) -> int:
        """The exit code of the process."""
        self._counters.reset_gauges()
        self._counters.set(Counter.SLOTS_TOTAL, self._arena.shape.slots)
        self._counters.set(Counter.KERNEL_MISSES, jit.misses())
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        ticking = loop.create_task(self._tick())
        attempt = 0
        try:
            while True:
                begun = time.monotonic()
                try:
                    return await self._one_session()
                except DefenderError as error:
                    if isinstance(error, _FINAL):
                        self._say(pipes.Broken(str(error), error.exit_code))
                        return error.exit_code
                    self._log.warning("session ended", cause=str(error))
                    self._say(pipes.Ended(self._counters.get(Counter.SESSIONS), str(error)))
                attempt = 0 if time.monotonic() - begun > 5.0 else attempt + 1
                await asyncio.sleep(backoff_s(attempt, 0.02, 2.0, self._random))
        finally:
            ticking.cancel()

    async def _one_session(self) -> int:
        settings = self._settings
        name = f"{self._stable_id} worker {self._index}"
        connection = await connect(settings, name, wait=True, reconnect=False, random=self._random)
        session: Session | None = None
        try:
            history = await _unless_ended(connection, self._stores.over(connection))
            doubtful = in_doubt(self._arena)
            settled = settle(self._arena, await history.last_stored(doubtful))
            if doubtful:
                self._log.info("settled", kept=settled.kept, undone=settled.undone, dropped=settled.dropped)
            revision, specs = self._specs
            cache = Cache(self._arena, settings.names, specs, revision, settings.history_depth)
            limits = Limits(settings.report_bytes_max, settings.at_past_max_s, settings.at_future_max_s)
            judge = Judge(cache, FlightLog(self._arena), limits, self._stable_id)
            self._counters.add(Counter.SESSIONS)
            number = self._counters.get(Counter.SESSIONS)  # it counts on over deaths of this worker
            self._session = session = Session(
                number,
                self._index,
                settings,
                connection,
                history,
                judge,
                self._board,
                self._counters,
                self._say,
            )
            self._counters.set(Counter.SPEC_REVISION, revision)
            return await self._serve(session, connection)
        finally:
            self._session = None
            if session is not None:
                await session.close()
            else:
                await connection.cut()

    async def _serve(self, session: Session, connection: Connection) -> int:
        """Serves what comes, drains when it is told to; raises when anything of it breaks."""
        broken = asyncio.get_running_loop().create_task(session.broken())
        try:
            self._say(pipes.Ready(session.number))
            await _unless_ended(connection, self._draining.wait(), broken)
            self._say(await _unless_ended(connection, session.drain(), broken))
            return 0
        finally:
            broken.cancel()

    def _hear(self) -> None:
        try:
            while self._pipe.poll():
                self._obey(pipes.receive_as_worker(self._pipe))
        except (EOFError, OSError):
            os._exit(75)  # the supervisor is gone, and nobody is left to tell

    def _obey(self, word: pipes.ToWorker) -> None:
        match word:
            case pipes.Specs(revision=revision, document=document):
                specs = decode_specs(document, self._settings.window) if document else Specs()
                self._specs = (revision, specs)
                if self._session is not None:
                    self._session.use_specs(specs, revision)
            case pipes.Drain():
                self._draining.set()
                if self._session is None or self._session.state is not State.OPEN:
                    # nothing is in hand: not connected, or the session has just ended
                    self._say(pipes.Released({}))
                    os._exit(0)
            case _:
                if self._session is not None and self._session.number == word.session:
                    self._obey_session(self._session, word)

    @staticmethod
    def _obey_session(session: Session, word: pipes.Assign | pipes.Copy | pipes.Forget | pipes.Yield) -> None:
        if session.state is not State.OPEN:
            return
        match word:
            case pipes.Assign(assignments=assignments):
                session.assign(assignments)
            case pipes.Copy(partitions=partitions, sources=sources):
                session.copy(partitions, sources)
            case pipes.Forget(partitions=partitions):
                session.forget(partitions)
            case pipes.Yield(partitions=partitions):
                session.give_back(partitions)

    def _say(self, word: pipes.ToSupervisor) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_hear` sees it too, and leaves
            pipes.send(self._pipe, word)

    async def _tick(self) -> None:
        while True:
            self._counters.add(Counter.PROGRESS)
            self._counters.set(Counter.PROGRESS_AT_NS, time.monotonic_ns())
            if self._session is not None:
                self._session.tick()
            is_idle = self._session is None or self._session.is_idle  # of a standby, there is no lease yet
            if not is_idle and time.monotonic_ns() >= self._board.lease_deadline_ns:
                self._log.error("fenced: the lease ran out")
                sys.stderr.flush()
                os._exit(Fenced.exit_code)
            await asyncio.sleep(TICK_S)


async def _end_of(connection: Connection) -> None:
    """Waits for the end of a connection; raises what ended it."""
    await connection.ended.wait()
    if isinstance(connection.failure, DefenderError):
        raise connection.failure
    raise Disconnected("the connection to the NATS server ended") from connection.failure


async def _unless_ended(connection: Connection, wanted: Any, *trouble: asyncio.Task[Any]) -> Any:
    """The result of *wanted*, unless the connection ends or one of *trouble*, which never return, raises."""
    task, end = asyncio.ensure_future(wanted), asyncio.ensure_future(_end_of(connection))
    try:
        await asyncio.wait([task, end, *trouble], return_when=asyncio.FIRST_COMPLETED)
        for other in (end, *trouble):
            if other.done():
                other.result()
        return task.result()
    finally:
        for one in (task, end):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, end, return_exceptions=True)
