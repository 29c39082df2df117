"""The supervisor: PID 1 of the container. It claims the stable ID, owns the partitions, keeps the workers.

    STARTING ──► CLAIMING ──► ACTIVE ── SIGTERM ──► DRAINING, LEAVING ──► left (0)
        │           │  ▲        │ └─ drain ──► DRAINED ── drain --undo ──► CLAIMING
        │        STANDBY┘       ├── fenced ──► left (76), without releasing anything
        └───────────┴───────────┴── anything that waiting does not heal ──► left (its exit code)

It puts the parts together: the view of the fleet, the claim and its lease, the pool of workers, the steward
of the partitions, the leader's candidate, the requests of other pods. It imports neither numba nor NumPy:
those load in the fork server while the ID is being claimed. HTTP and metrics are imported when the claim is
through, or when it takes its time.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import time
from collections.abc import Coroutine
from random import Random
from typing import Any, Final

import uvloop

from runtime import config, control, fork, log, pipes
from runtime.bucket import Bucket, Conflict
from runtime.bus import TRANSIENT, Connection, backoff_s, connect
from runtime.config import Settings
from runtime.control import Absent, Accepted, Listener, Refused
from runtime.counters import Board
from runtime.deletion_cost import DeletionCost
from runtime.departure import Departure
from runtime.errors import DefenderError, Fenced, InputError
from runtime.fleet_view import FleetView
from runtime.identity import Claimant, Lease, Standby
from runtime.leader import Leader
from runtime.lease import LeaseState
from runtime.membership import Heart, State
from runtime.ownership_record import Owner
from runtime.pod_status import PodStatus
from runtime.pool import Pool, WorkerHandle
from runtime.resources import ensure
from runtime.specs_feed import SpecsFeed
from runtime.steward import Steward

HTTP_LATEST_S: Final = 0.4
"""Probes answer after this time even while no ID is claimed (aiohttp takes 0.2 s of the loop to import)."""
RESERVED_S: Final = 3.0
"""How long a standby that accepted an ID keeps itself free for it."""


def main(argv: list[str]) -> int:
    """``defender run``: returns the exit code. Raises DefenderError for what waiting does not heal."""
    if argv:
        raise InputError(f"defender run takes no arguments, got {' '.join(argv)}; settings: defender config")
    settings = config.load(os.environ)
    log.setup(settings.log_format, settings.log_level)
    log.identify(pod=settings.pod_name)
    fork.start_server(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Supervisor(settings).run())


class Supervisor:
    """One life of a pod."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random(os.urandom(8))
        self._session = f"{self._random.getrandbits(64):016x}"
        self._log = log.get("supervisor")
        self._board = Board.create(settings.workers, settings.partitions)
        self.status = PodStatus(settings, self._board, self._session)
        self._connection: Connection | None = None
        self._view: FleetView | None = None
        self._heart: Heart | None = None
        self._leader: Leader | None = None
        self._claimant: Claimant | None = None
        self._departing: asyncio.Task[None] | None = None
        self._departure: Departure | None = None
        self._steering: asyncio.Task[None] | None = None
        self._reserved = False
        self._told_warm = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drained = asyncio.Event()
        self._undone = asyncio.Event()
        self._lost: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit code of the pod."""
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        working = loop.create_task(self._work())
        serving = loop.create_task(self._serve_http(working))
        stopped = loop.create_task(self._stop.wait())
        try:
            ends: list[asyncio.Future[Any]] = [self._lost, working, serving]
            await asyncio.wait([stopped, *ends], return_when=asyncio.FIRST_COMPLETED)
            for ended in ends:
                if ended.done():
                    ended.result()
            leaving = loop.create_task(self._leave())
            await asyncio.wait([leaving, self._lost], return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
                self._lost.result()
            leaving.result()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            self._log.info("left")
            return 0
        except Fenced as error:
            self._log.error("fenced", cause=str(error))
            await self._abandon()
            return Fenced.exit_code
        except DefenderError:
            await self._abandon()
            raise
        finally:
            tasks = [working, serving, stopped, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._connection is not None:
                await self._connection.close()

    # --- the way in -----------------------------------------------------------------------------

    async def _work(self) -> None:
        """Connects, claims, owns; returns never, or raises what ends the pod."""
        settings = self._settings
        connection = self._connection = self.status.connection = await connect(
            settings, settings.pod_name, wait=True, random=self._random
        )
        await self._patiently(lambda: ensure(connection, settings))
        view = FleetView(
            connection, settings, random=self._random, session=self._session, repair=self._repair
        )
        heart = Heart(self._bucket(settings.nats_kv_heartbeats), self.status.beat, every_s=settings.renew_s)
        await asyncio.gather(self._patiently(view.start), self._patiently(heart.beat_now))
        self._view, self._heart, self.status.view = view, heart, view
        heart.begin()
        listener = Listener(connection, settings.names.pod(settings.pod_uid), self._answer)
        leader = self._leader = self.status.leader = Leader(
            connection, settings, view, session=self._session, random=self._random
        )
        try:
            await listener.start()
            self._start(self._load())
            self.status.deletion_cost = DeletionCost(settings, os.environ, self._random)
            self._start(self.status.deletion_cost.run())
            leader.begin()
            while True:
                await self._hold(await self._claim(view))
                self.status.state, self.status.standby = State.DRAINED, Standby.DRAINED
                await self._undone.wait()
                self.status.state = State.STARTING
                leader.begin()
        finally:
            await listener.stop()
            await leader.resign()
            await heart.stop()
            await view.stop()

    async def _load(self) -> None:
        """A standby is warm when the kernels are loaded."""
        await fork.server_loaded()
        self.status.loaded = True
        if self._heart is not None and self.status.state is State.STANDBY:
            await self._patiently(self._heart.beat_now)

    async def _claim(self, view: FleetView) -> Lease:
        settings = self._settings

        def on_standby(reason: Standby) -> None:
            self.status.stand_by(reason)
            self._log.info("standby", reason=reason)
            self._start(self._beat())

        claimant = self._claimant = Claimant(
            self._bucket(settings.nats_kv_stable_ids),
            settings,
            view,
            random=self._random,
            session=self._session,
            repair=self._repair,
        )
        lease: Lease = await self._patiently(lambda: claimant.claim(on_standby))
        return lease

    async def _hold(self, lease: Lease) -> None:
        """Keeps the ID and its partitions until an operator drains the pod; SIGTERM ends it elsewhere."""
        settings, connection, view = self._settings, self._connection, self._view
        assert connection is not None
        assert view is not None
        status = self.status
        status.hold(lease)
        log.identify(stable_id=lease.stable_id)
        self._log.info("claimed", revision=lease.revision, since_start_ms=since_start_ms())
        memory = [os.memfd_create(f"cache-{i}") for i in range(settings.workers)]
        pool = Pool(
            settings,
            self._board,
            memory,
            lease.stable_id,
            on_ready=lambda handle: self._on_worker(handle, steward.on_ready),
            on_word=lambda handle, word: self._on_word(handle, word),
            on_gone=lambda handle: self._on_worker(handle, steward.on_lost),
        )
        pool.failed.add_done_callback(self._on_pool_failed)
        me = Owner(lease.stable_id, settings.pod_uid)
        steward = Steward(settings, connection, view, pool, me, status.tally, random=self._random)
        status.pool, status.steward = pool, steward
        lease.begin(self._on_fenced, on_renewed=self._on_renewed, healthy=pool.is_healthy)
        self._start(self._beat())
        bucket = self._bucket(settings.nats_kv_chart_specs)
        specs = SpecsFeed(bucket, pool, settings.window, self._fail)
        steering = self._steering = asyncio.get_running_loop().create_task(steward.run())
        steering.add_done_callback(self._on_steered)
        self._departure = Departure(
            settings, connection, view, lease, steward, self._stop_steering, pool, self._enter
        )
        specs_view = None
        cancel = view.subscribe(self._on_news)
        try:
            # Before any worker: judged by the built-in specs, a chart would lose its frozen baseline.
            specs_view = await self._patiently(specs.start)
            await fork.server_loaded()
            pool.start()
            await self._drained.wait()
        finally:
            cancel()
            if specs_view is not None:
                await specs_view.stop()
            await self._stop_steering()
        status.let_go()
        for fd in memory:
            os.close(fd)

    def _on_news(self, kind: str) -> None:
        """An ID that came to us too late, when we had another, is given back: nobody else would renew it."""
        view, lease = self._view, self.status.lease
        if kind != "claims" or view is None or lease is None or lease.state is not LeaseState.HELD:
            return
        for stable_id in view.held.get(self._settings.pod_uid, []):
            claim = view.claims[stable_id]
            if stable_id != lease.stable_id and claim.value.session == self._session:
                self._log.warning("given back: another ID is held", stable_id=stable_id)
                self._start(self._give_back(stable_id, claim.revision))

    async def _give_back(self, stable_id: str, revision: int) -> None:
        try:
            await self._bucket(self._settings.nats_kv_stable_ids).delete(stable_id, revision)
        except (Conflict, *TRANSIENT) as error:
            self._log.warning("claim not deleted; it expires", stable_id=stable_id, cause=str(error))

    def _on_worker(self, handle: WorkerHandle, then: Any) -> None:
        then(handle)
        self._note_ready()

    def _on_word(self, handle: WorkerHandle, word: pipes.OfSession) -> None:
        if self.status.steward is not None:
            self.status.steward.on_word(handle, word)
        if isinstance(word, pipes.Serving):
            self.status.rebuilt(word)
        self._note_ready()

    def _note_ready(self) -> None:
        status = self.status
        if status.warm is not self._told_warm:
            self._told_warm = status.warm
            self._start(self._beat())
        if not status.served and status.state is State.ACTIVE and not status.ready():
            status.served = True
            self._log.info("ready", rebuilt_reports=status.rebuilt_reports, since_start_ms=since_start_ms())

    # --- what others ask ------------------------------------------------------------------------

    async def _answer(self, request: control.Request) -> control.Answer:
        match request:
            case control.Yield():
                if self.status.steward is None or self._steering is None:
                    return Absent()
                return await self.status.steward.answer(request)
            case control.Succeed():
                return self._succeed(request)
            case control.Drain(undo=True):
                return self._undo_drain()
            case control.Drain():
                return self._drain()

    def _succeed(self, request: control.Succeed) -> control.Answer:
        status = self.status
        if status.state is not State.STANDBY or not self.status.loaded or self._stop.is_set():
            return Refused(f"is {status.state.value}")
        if self._reserved or self._claimant is None:
            return Refused("accepted another ID a moment ago")
        self._reserved = True
        self._claimant.hold(Standby.RESERVED)
        asyncio.get_running_loop().call_later(RESERVED_S, self._free_again, self._claimant)
        self._log.info("successor", stable_id=request.stable_id, of_pod=request.pod_uid)
        return Accepted()

    def _free_again(self, claimant: Claimant) -> None:
        self._reserved = False
        if self.status.state is not State.DRAINED:
            claimant.hold(None)

    def _drain(self) -> control.Answer:
        if self.status.state is State.DRAINED or self._departing is not None:
            return Accepted()
        if self._departure is None:
            self._undone.clear()
            if self._claimant is not None:
                self._claimant.hold(Standby.DRAINED)
            self.status.state, self.status.standby = State.DRAINED, Standby.DRAINED
            self._start(self._beat())
            return Accepted()
        self._undone.clear()
        self._departing = asyncio.get_running_loop().create_task(self._drain_to_idle())
        self._start(_result(self._departing))
        return Accepted()

    async def _drain_to_idle(self) -> None:
        """On an operator's word: hand over, then stay, without an ID."""
        assert self._departure is not None
        self._log.info("draining", by="an operator")
        await self._enter(State.DRAINING)
        deadline_s = time.monotonic() + self._settings.handoff_s + self._settings.drain_s
        await self._departure.leave(deadline_s, wait_s=0.0)  # nobody comes in its place
        self._departure = self._departing = None
        self._drained.set()
        await self._beat()

    def _undo_drain(self) -> control.Answer:
        if self.status.state is not State.DRAINED:
            return Refused(f"is {self.status.state.value}, not drained")
        self._drained.clear()
        self._undone.set()
        if self._claimant is not None:
            self._claimant.hold(None)
        self.status.state = State.STARTING
        return Accepted()

    # --- the lease ------------------------------------------------------------------------------

    def _on_renewed(self, deadline_s: float) -> None:
        self._board.lease_deadline_ns = int(deadline_s * 1e9)
        self.status.renewals += 1

    def _on_fenced(self, error: Fenced) -> None:
        self._board.lease_deadline_ns = 0
        self._fail(error)

    async def _repair(self) -> None:
        """A bucket is missing: whoever sees it makes it anew."""
        assert self._connection is not None
        await ensure(self._connection, self._settings)

    def _on_pool_failed(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._fail(error)

    def _on_steered(self, steering: asyncio.Task[None]) -> None:
        if not steering.cancelled() and (error := steering.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        assert self._lost is not None
        if not self._lost.done():
            self._lost.set_exception(error)

    # --- the way out ----------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _leave(self) -> None:
        """Hands over what is held, in this order: partitions, then the ID."""
        self._log.info("draining")
        deadline_s = time.monotonic() + self._settings.drain_s
        departure = self._departure
        await self._enter(State.DRAINING)
        if departure is None:
            await self._decline()
            return
        if self._departing is not None:  # an operator's drain is under way: SIGTERM ends its patience
            self._departing.cancel()
            await asyncio.gather(self._departing, return_exceptions=True)
        leaving = asyncio.create_task(departure.leave(deadline_s, self._settings.successor_wait_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([leaving, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not leaving.done():
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await departure.finish(time.monotonic())
        else:
            leaving.result()

    async def _decline(self) -> None:
        """Gives back an ID that was passed to us in this very moment: another standby takes it."""
        view, uid = self._view, self._settings.pod_uid
        for stable_id in view.held.get(uid, []) if view is not None else []:
            assert view is not None
            await self._give_back(stable_id, view.claims[stable_id].revision)

    async def _enter(self, state: State) -> None:
        """Tells the fleet of a new state; a defender on its way out does not lead."""
        self.status.state = state
        if self._leader is not None:
            await self._leader.resign()
        await self._beat()

    async def _stop_steering(self) -> None:
        steering, self._steering = self._steering, None
        if steering is not None:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)

    async def _abandon(self) -> None:
        """Ends the workers at once; nothing is given back, for it may be another's already."""
        self._board.lease_deadline_ns = 0
        if self.status.pool is not None:
            await self.status.pool.kill()

    async def _serve_http(self, working: asyncio.Task[None]) -> None:
        deadline_s = time.monotonic() + HTTP_LATEST_S
        while self.status.state is State.STARTING and time.monotonic() < deadline_s and not working.done():
            await asyncio.sleep(0.01)
        # In a thread: it takes 0.2 s of a free core, and on a busy one so long that a lease might run out.
        pages = await asyncio.to_thread(importlib.import_module, "runtime.pages")
        await pages.run(self._settings, self._board, self.status, self._on_port)

    def _on_port(self, port: int) -> None:
        self._log.info("listening", host=self._settings.http_host, port=port)

    # --- small change ---------------------------------------------------------------------------

    def _bucket(self, name: str) -> Bucket:
        assert self._connection is not None
        return Bucket(self._connection, name, random=self._random, timeout_s=self._settings.request_timeout_s)

    async def _beat(self) -> None:
        """Tells the fleet now; the regular heartbeat tells it anyway."""
        if self._heart is not None:
            try:
                await self._heart.beat_now()
            except TRANSIENT as error:
                self._log.debug("heartbeat not written", cause=str(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _patiently(self, work: Any) -> Any:
        """What *work()* returns, trying again while waiting may help; each new cause is logged once."""
        shown = ""
        attempt = 0
        while True:
            try:
                return await work()
            except DefenderError as error:
                if not error.temporary:
                    raise
                if str(error) != shown:
                    shown = str(error)
                    self._log.warning("trying again", cause=shown)
            await asyncio.sleep(backoff_s(attempt, 0.05, 2.0, self._random))
            attempt += 1


async def _result(task: asyncio.Task[None]) -> None:
    """Its error, if it has one, ends the pod."""
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


def since_start_ms() -> int:
    """Milliseconds since this process was executed, by the kernel's account."""
    with open("/proc/self/stat", encoding="ascii") as stat:
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")) * 1e3)
