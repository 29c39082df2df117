"""The supervisor: PID 1 of the container. It claims the stable ID, owns the partitions, keeps the workers.

    STARTING ──► CLAIMING ──► HOLDING ── SIGTERM ──► DRAINING ──► left (0)
        │           │  ▲         │
        │        STANDBY┘        ├── fenced ──► left (76), without releasing anything
        └───────────┴────────────┴── anything that waiting does not heal ──► left (its exit code)

It imports neither numba nor NumPy: those load in the fork server while the ID is being claimed. HTTP and
metrics are imported when the claim is through, or when it takes its time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import uvloop

from runtime import config, fork, log, pipes
from runtime.bucket import Bucket, Entry
from runtime.bus import TRANSIENT, Connection, backoff_s, connect
from runtime.config import Settings
from runtime.counters import Board, Counter
from runtime.errors import DefenderError, Fenced, InputError
from runtime.identity import Claimant, Lease, Pod, Standby
from runtime.membership import Heart, Heartbeat, Load, State, versions, waiting
from runtime.ownership import Acquired, Owner, Ownership
from runtime.pool import Pool, WorkerHandle, WorkerState
from runtime.resources import ensure
from runtime.ring import Ring
from runtime.specs import SpecsError
from runtime.specs import decode as decode_specs

SPECS_KEY: Final = "specs"
HTTP_LATEST_S: Final = 0.4
"""Probes answer after this time even while no ID is claimed (aiohttp takes 0.2 s of the loop to import)."""


def main(argv: list[str]) -> int:
    """``defender run``: returns the exit code. Raises DefenderError for what waiting does not heal."""
    if argv:
        raise InputError(f"defender run takes no arguments, got {' '.join(argv)}; settings: defender config")
    settings = config.load(os.environ)
    log.setup(settings.log_format, settings.log_level)
    log.identify(pod=settings.pod_name)
    fork.start_server(settings.numba_cache_dir)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Supervisor(settings).run())


class Supervisor:
    """One life of a pod."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random(os.urandom(8))
        self._log = log.get("supervisor")
        self._board = Board.create(settings.workers, settings.partitions)
        self._state = State.STARTING
        self._standby = ""
        self._stable_id: str | None = None
        self._connection: Connection | None = None
        self._pool: Pool | None = None
        self._ownership: Ownership | None = None
        self._lease: Lease | None = None
        self._partitions: list[int] = []
        self._spec_revision: int | None = None
        self._epoch_changes = 0
        self._renewals = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._lost: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._served = False
        self._acquiring: dict[int, asyncio.Task[dict[int, Acquired]]] = {}
        self._rebuild_s = 0.0

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
            await self._leave(working)
            return 0
        except Fenced as error:
            self._log.error("fenced", cause=str(error))
            await self._abandon()
            return Fenced.exit_code
        except DefenderError:
            await self._abandon()
            raise
        finally:
            tasks = [working, serving, stopped, *self._tasks, *self._acquiring.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._connection is not None:
                await self._connection.close()

    # --- the way in -----------------------------------------------------------------------------

    async def _work(self) -> None:
        """Connects, claims, owns; returns never, or raises what ends the pod."""
        settings = self._settings
        connection = self._connection = await connect(
            settings, settings.pod_name, wait=True, random=self._random
        )
        await self._patiently(lambda: ensure(connection, settings))
        heart = Heart(self._bucket(settings.nats_kv_heartbeats), self._beat, every_s=settings.renew_s)
        heart.begin()
        specs = self._bucket(settings.nats_kv_chart_specs)
        try:
            pool = self._hold(await self._claim())
            await self._patiently(heart.beat_now)
            # Before any worker: judged by the built-in specs, a chart would lose its frozen baseline.
            await self._patiently(lambda: specs.watch(self._on_specs))
            await fork.server_loaded()
            pool.start()
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            await heart.stop()

    async def _claim(self) -> Lease:
        settings = self._settings
        heartbeats = self._bucket(settings.nats_kv_heartbeats)

        async def queue() -> list[str]:
            return waiting(await heartbeats.entries(), settings.track)

        def on_standby(reason: Standby) -> None:
            self._state, self._standby = State.STANDBY, reason
            self._log.info("standby", reason=reason)

        claimant = Claimant(
            self._bucket(settings.nats_kv_stable_ids), settings, random=self._random, waiting=queue
        )
        lease: Lease = await self._patiently(lambda: claimant.claim(on_standby))
        return lease

    def _hold(self, lease: Lease) -> Pool:
        """The ID is ours: the lease is kept; the workers, once started, get partitions when they ask."""
        settings = self._settings
        assert self._connection is not None
        assert self._lost is not None
        self._lease, self._stable_id, self._state = lease, lease.stable_id, State.ACTIVE
        self._standby = ""
        log.identify(stable_id=lease.stable_id)
        self._log.info("claimed", revision=lease.revision, since_start_ms=_since_start_ms())
        ring = Ring([lease.stable_id], settings.partitions)
        self._partitions = ring.partitions_of(lease.stable_id)
        self._ownership = Ownership(
            self._connection, settings, Owner(lease.stable_id, Pod.of(settings).uid), random=self._random
        )
        memory = [os.memfd_create(f"cache-{i}") for i in range(settings.workers)]
        pool = Pool(settings, self._board, memory, lease.stable_id, self._on_ready, self._on_worker)
        self._pool = pool
        pool.failed.add_done_callback(self._on_pool_failed)
        lease.begin(self._on_fenced, on_renewed=self._on_renewed, healthy=pool.is_healthy)
        return pool

    def _acquire(self, worker: int) -> asyncio.Task[dict[int, Acquired]]:
        """Begins to take new epochs for a worker's partitions: whoever worked on them before is fenced."""
        assert self._ownership is not None
        ownership, mine = self._ownership, self._partitions[worker :: self._settings.workers]
        acquiring: asyncio.Task[dict[int, Acquired]] = asyncio.get_running_loop().create_task(
            self._patiently(lambda: ownership.acquire(mine, worker=worker))
        )
        self._acquiring[worker] = acquiring
        return acquiring

    def _on_ready(self, handle: WorkerHandle) -> None:
        self._start(self._assign(handle))

    async def _assign(self, handle: WorkerHandle) -> None:
        begun = time.monotonic()
        acquiring = self._acquiring.pop(handle.index, None) or self._acquire(handle.index)
        acquired = await acquiring
        self._acquiring.pop(handle.index, None)
        self._epoch_changes += len(acquired)
        if handle.state is not WorkerState.IDLE:
            return  # it died meanwhile; its successor asks anew
        handle.enter(WorkerState.SERVING)
        assignments = [
            pipes.Assignment(a.partition, a.epoch, a.consumer, a.position) for a in acquired.values()
        ]
        handle.send(pipes.Assign(assignments))
        waited_ms = round((time.monotonic() - begun) * 1e3, 1)
        self._log.info("acquired", worker=handle.index, partitions=len(acquired), waited_ms=waited_ms)

    def _on_worker(self, handle: WorkerHandle) -> None:
        lost = handle.state in (WorkerState.GONE, WorkerState.STARTING)
        if lost and self._state is State.ACTIVE and handle.index not in self._acquiring:
            self._acquire(handle.index)  # while its successor starts, or connects again
        if self._pool is not None and not self._served and all(h.serving for h in self._pool.handles):
            self._served = True
            self._rebuild_s = max(h.serving.rebuild_s for h in self._pool.handles if h.serving)
            reports = sum(h.serving.reports for h in self._pool.handles if h.serving)
            self._log.info("ready", rebuilt_reports=reports, since_start_ms=_since_start_ms())

    def _on_specs(self, entry: Entry) -> None:
        if entry.key != SPECS_KEY or self._pool is None:
            return
        try:
            if entry.value is not None:
                decode_specs(entry.value, self._settings.window)
        except SpecsError as error:
            self._log.error("chart specs refused", spec_revision=entry.revision, cause=str(error))
            if self._spec_revision is None:
                self._fail(error)  # by the built-in specs, charts would lose what they rest on
            return
        self._spec_revision = entry.revision
        self._log.info("chart specs", spec_revision=entry.revision)
        self._pool.use_specs(pipes.Specs(entry.revision, entry.value or b""))

    # --- the lease ------------------------------------------------------------------------------

    def _on_renewed(self, deadline_s: float) -> None:
        self._board.lease_deadline_ns = int(deadline_s * 1e9)
        self._renewals += 1

    def _on_fenced(self, error: Fenced) -> None:
        self._board.lease_deadline_ns = 0
        self._fail(error)

    def _on_pool_failed(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
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

    async def _leave(self, working: asyncio.Task[None]) -> None:
        """Drains, gives back what is held, in this order: partitions, then the ID."""
        self._log.info("draining")
        self._state = State.DRAINING
        deadline_s = time.monotonic() + self._settings.drain_s
        if self._pool is not None:
            draining = asyncio.create_task(self._pool.drain(deadline_s))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
            if not draining.done():
                draining.cancel()
                await self._pool.kill()
            hurry.cancel()
            positions = draining.result() if draining.done() and not draining.cancelled() else {}
            assert self._ownership is not None
            assert self._lease is not None
            try:
                async with asyncio.timeout(max(0.5, deadline_s - time.monotonic())):
                    await self._ownership.release_all(positions)
            except (TimeoutError, Fenced, *TRANSIENT) as error:
                self._log.warning("partitions not released; the next owner takes them", cause=str(error))
            self._board.lease_deadline_ns = 0
            await self._lease.release()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        self._log.info("left")

    async def _abandon(self) -> None:
        """Ends the workers at once; nothing is given back, for it may be another's already."""
        self._board.lease_deadline_ns = 0
        if self._pool is not None:
            await self._pool.kill()

    # --- what others see ------------------------------------------------------------------------

    async def _serve_http(self, working: asyncio.Task[None]) -> None:
        deadline_s = time.monotonic() + HTTP_LATEST_S
        while self._state is State.STARTING and time.monotonic() < deadline_s and not working.done():
            await asyncio.sleep(0.01)
        from runtime import http
        from runtime.metrics import Metrics, PodState, Role

        settings = self._settings
        state = PodState(settings.pod_name, settings.track, settings.revision)
        roles = {
            State.STARTING: Role.STARTING,
            State.STANDBY: Role.STANDBY,
            State.ACTIVE: Role.HOLDER,
            State.DRAINING: Role.DRAINING,
        }

        def refreshed() -> None:
            state.stable_id, state.role = self._stable_id or "", roles[self._state]
            state.lease_renewed_ns = int(self._lease.renewed_s * 1e9) if self._lease else 0
            state.rebuild_s, state.claims = self._rebuild_s, int(self._lease is not None)
            state.renewals, state.epoch_changes = self._renewals, self._epoch_changes
            if self._pool is not None:
                state.worker_restarts = {h.index: h.restarts for h in self._pool.handles}

        server = await http.serve(
            settings.http_host, settings.http_port, self, Metrics(self._board, state, refresh=refreshed)
        )
        self._log.info("listening", host=settings.http_host, port=server.port)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await server.close()

    def live(self) -> list[str]:
        """Why the platform should restart this pod: never, while its loop turns (a failure ends it)."""
        return []

    def started(self) -> list[str]:
        if self._state is State.STANDBY or self._served:
            return []
        return self.ready() or ["the workers have not served yet"]

    def ready(self) -> list[str]:
        why: list[str] = []
        if self._connection is None or not self._connection.is_connected:
            why.append(f"no connection to NATS at {self._settings.nats_servers}")
        if self._state is State.STARTING:
            why.append("no stable ID is claimed yet")
        if self._state is State.DRAINING:
            why.append("draining")
        if self._state is State.ACTIVE and self._pool is not None:
            for handle in self._pool.handles:
                if handle.serving is None:
                    why.append(f"worker {handle.index} is {handle.state.value} and serves no partition yet")
        return why

    def _beat(self) -> Heartbeat:
        settings, board = self._settings, self._board
        owned = board.partitions_owned()
        load = Load(
            workers=settings.workers if self._pool is not None else 0,
            partitions=len(owned),
            reports=board.total(Counter.REPORTS),
            samples=board.total(Counter.SAMPLES),
            lag=sum(lag for _, lag in owned.values()),
            slots_used=board.total(Counter.SLOTS_USED),
            slots_total=board.total(Counter.SLOTS_TOTAL),
        )
        return Heartbeat(
            pod_uid=settings.pod_uid,
            pod_name=settings.pod_name,
            track=settings.track,
            revision=settings.revision,
            state=self._state,
            at=datetime.now(UTC),
            stable_id=self._stable_id,
            standby=self._standby,
            load=load,
            versions=versions(),
        )

    # --- small change ---------------------------------------------------------------------------

    def _bucket(self, name: str) -> Bucket:
        assert self._connection is not None
        return Bucket(self._connection, name, random=self._random, timeout_s=self._settings.request_timeout_s)

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


def _since_start_ms() -> int:
    """Milliseconds since this process was executed, by the kernel's account."""
    with open("/proc/self/stat", encoding="ascii") as stat:
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")) * 1e3)
