"""One life of a worker's connection: settle, rebuild, judge, drain.

    SETTLING ── Ready ──► WAITING ── Assign ──► REBUILDING ──► SERVING ── Drain ──► DRAINING ──► over
        └──────────────────────┴─── anything breaks ────┴──────────┴──────────────────► over (Broken)

There is no repair inside a session. Whatever goes wrong (the connection, a batch that was refused, a
consumer that was deleted, a history that does not answer) ends it; the next session settles what was in
flight against what is stored and begins at the partitions' positions. Every kind of failure so takes
the one path that the tests take too.

The order for a batch: verdicts, alarms, history, acknowledgement. The lease's deadline is looked at
before each of them is written: a process that was frozen past its lease writes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from enum import Enum
from typing import Any, Final

import numpy as np

from runtime import arena as arenas
from runtime import pipes
from runtime.cache import CacheFull
from runtime.config import Settings
from runtime.connection import Connection, within
from runtime.counters import LATENCY_BOUNDS_US, LATENCY_BUCKETS, Board, Counter, WorkerCounters
from runtime.errors import CacheTooSmall, DefenderError, Fenced
from runtime.frames import frame_pub, pull_left
from runtime.history import History
from runtime.intake import Intake
from runtime.jetstream import checked_ack
from runtime.judge import Batch, Judge, Sample
from runtime.names import name_problem
from runtime.overdue import overdue_alarms, overdue_rejections
from runtime.rebuild import Rebuild, restore_chamber
from runtime.specs import Specs
from runtime.turns import Turns

CHAMBER_READS_MAX: Final = 8
PARTITION_READS_MAX: Final = 4
"""Reads from the history at the same time; of a partition up to 8 MB are under way."""
BATCH_REPORTS_MIN: Final = 64
ROUTES_MAX: Final = 200_000
TICK_S: Final = 0.25


class SessionBroken(DefenderError):
    """The session cannot go on; the next one begins anew."""

    temporary = True


class State(Enum):
    SETTLING = "settling"
    WAITING = "waiting"
    REBUILDING = "rebuilding"
    SERVING = "serving"
    DRAINING = "draining"
    OVER = "over"


class Session:
    """Everything that lives as long as one connection, over memory that was settled for it."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        history: History,
        judge: Judge,
        board: Board,
        counters: WorkerCounters,
    ) -> None:
        self.state = State.WAITING
        self._settings, self._connection, self._history = settings, connection, history
        self._judge, self._cache, self._flights = judge, judge.cache, judge.flights
        self._board, self._counters = board, counters
        self._names = settings.names
        self._intakes: dict[int, Intake] = {}
        self._routes: dict[bytes, tuple[str, Intake]] = {}
        self._starts: dict[int, int] = {}
        """The positions at which this session began."""
        self._turns = Turns()
        self._reading: dict[str, Sample] = {}
        """Chambers that are being read from the history, with the report that waits for it."""
        self._made_up: set[str] = set()
        """Chambers of which nothing is overdue any more."""
        self._chamber_reads = asyncio.Semaphore(CHAMBER_READS_MAX)
        self._partition_reads = asyncio.Semaphore(PARTITION_READS_MAX)
        self._reply_inbox = connection.inbox()
        self._pump_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._landing = asyncio.Event()
        self._idle = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = False
        """Whether the server sent anything for the pulls since the last tick."""
        self._heard_at = time.monotonic()

    # --- the supervisor's words -----------------------------------------------------------------

    async def serve(self, assignments: list[pipes.Assignment]) -> pipes.Serving:
        """Rebuilds these partitions and begins to judge their reports."""
        self.state = State.REBUILDING
        begun = time.monotonic()
        for found in assignments:
            stream = self._names.samples_stream(found.partition)
            window = max(32, self._settings.prefetch_reports_max // max(1, len(assignments)))
            intake = Intake(
                found.partition, stream, found.consumer, found.position, window, self._settings.pull_expires_s
            )
            self._intakes[found.partition] = intake
            self._starts[found.partition] = found.position
            self._judge.epochs[found.partition] = found.epoch
            self._judge.positions[found.partition] = found.position
        unread = [p for p in self._intakes if self._cache.arena.partitions[p] == arenas.UNREAD]
        reports = sum(await asyncio.gather(*(self._read_partition(p) for p in unread)))
        took_s = time.monotonic() - begun
        if unread:
            self._counters.set(Counter.REBUILD_US, int(took_s * 1e6))
        self.state = State.SERVING
        await self._connection.tap(f"{self._reply_inbox.decode()}.*", self._deliver)
        for partition, epoch in self._judge.epochs.items():
            self._counters.set_epoch(partition, epoch)
        self._heard_at = time.monotonic()
        self._refill(self._intakes.values())
        return pipes.Serving(sorted(self._intakes), reports, took_s)

    def use_specs(self, specs: Specs, revision: int) -> None:
        self._cache.use_specs(specs, revision)
        self._counters.set(Counter.SPEC_REVISION, revision)

    async def drain(self) -> pipes.Released:
        """Takes nothing more, finishes what is in hand, acknowledges it and waits until that is heard."""
        if self.state is State.SERVING:
            self.state = State.DRAINING
            while self._in_hand():
                self._idle.clear()
                await self._idle.wait()
            acks = [ack for intake in self._intakes.values() if (ack := intake.ack()) is not None]
            self._gate()
            timeout_s = self._settings.request_timeout_s
            heard = [self._connection.ask(subject.decode(), payload) for subject, payload in acks]
            for reply in heard:
                await within(reply, timeout_s, "acknowledgement")
        self.state = State.OVER
        return pipes.Released({p: intake.position for p, intake in self._intakes.items()})

    async def broken(self) -> None:
        """Returns never; raises what broke the session."""
        await self._broken

    async def close(self) -> None:
        self.state = State.OVER
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.cut()
        for partition in self._intakes:
            self._counters.set_epoch(partition, 0)

    def tick(self) -> None:
        """Once every TICK_S: gauges, and whether the server still answers the pulls."""
        counters, cache = self._counters, self._cache
        for intake in self._intakes.values():
            counters.set_lag(intake.partition, intake.lag + len(intake.pending))
        counters.set(Counter.INBOX, len(self._turns))
        counters.set(Counter.WAITING, len(self._reading))
        counters.set(Counter.SLOTS_USED, cache.slots_used)
        counters.set(Counter.CHAMBERS, len(cache.chambers))
        counters.add(Counter.EVICTIONS, cache.evictions)
        cache.evictions = 0
        now_s = time.monotonic()
        if self._heard:
            self._heard, self._heard_at = False, now_s
        silence_s = now_s - self._heard_at
        if self.state is State.SERVING and silence_s > self._settings.pull_expires_s + 5.0:
            self._break(SessionBroken(f"no pull was answered for {silence_s:.0f} s"))

    # --- in: deliver, judge ---------------------------------------------------------------------

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and not reply:
            self._pull_status(subject, headers)
            return
        self._heard = True
        route = self._routes.get(subject)
        if route is None:
            route = self._new_route(subject)
        name, intake = route
        tokens = reply.split(b".")
        at = 5 if len(tokens) == 9 else 7  # with a domain two tokens come before the stream's name
        seq = int(tokens[at])
        if not intake.took(seq, int(tokens[at + 1]), int(tokens[at + 3])):
            return
        self._turns.arrive(Sample(name, intake.partition, seq, int(tokens[at + 2]), payload))
        self._schedule_pump()

    def _new_route(self, subject: bytes) -> tuple[str, Intake]:
        _, _, partition, chamber = subject.split(b".", 3)
        name, intake = chamber.decode("utf-8", "surrogateescape"), self._intakes[int(partition)]
        whole = self._cache.arena.partitions[intake.partition] == arenas.WHOLE
        if whole and self._cache.get(name) is None and name_problem(name) is None:
            try:
                self._cache.loaded([self._cache.add(name, intake.partition)])
            except CacheFull:
                # It comes in by way of the history, when some chamber has landed. From now on all do: one
                # whose reports wait must not be taken for a new one when its route is made again.
                self._cache.arena.partitions[intake.partition] = arenas.PARTLY
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[subject] = name, intake
        return name, intake

    def _pull_status(self, subject: bytes, headers: bytes) -> None:
        self._heard = True
        intake, left = self._intakes[int(subject.rpartition(b".")[2])], pull_left(headers)
        if left is None:
            why = headers.split(b"\r\n", 1)[0].decode()
            self._break(SessionBroken(f"partition {intake.partition}: a pull ended with {why!r}"))
        else:
            intake.pull_ended(left)
            self._refill([intake])

    def _pump(self) -> None:
        """Judges what has come, as long as batches may be in flight."""
        self._pump_scheduled = False
        try:
            while self.state in (State.SERVING, State.DRAINING) and self._flights.has_room:
                samples = self._turns.take(self._batch_reports_max())
                if not samples:
                    break
                self._gate()
                if not self._launch(samples):
                    break
        except Exception as error:
            self._break(error)  # one that is no DefenderError then ends the worker, not only the session
        if not self._in_hand():
            self._idle.set()

    def _batch_reports_max(self) -> int:
        """Where chambers are few, a batch must leave some of them for the other batches in flight."""
        settings = self._settings
        share = len(self._cache.chambers) // settings.batches_in_flight_max
        return min(settings.batch_reports_max, max(BATCH_REPORTS_MIN, share))

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _launch(self, samples: list[Sample]) -> bool:
        """Judges one batch and sends its verdicts off; False when it must wait for others to land."""
        counters = self._counters
        batch = self._judge.judge(samples)
        settled = [*batch.judged, *batch.rejected, *batch.skipped]
        if not settled and not batch.missing and not self._flights.in_flight and not self._reading:
            self._judge.refuse(batch.left.pop(0), batch)
            settled = batch.rejected
        self._turns.put_back(batch.left)
        counters.add(Counter.CACHE_HITS, len(settled))
        counters.add(Counter.CACHE_MISSES, len(batch.missing))
        for sample in batch.missing:
            self._reading[sample.chamber] = sample
            self._start(self._read_chamber(sample.chamber, sample.partition))
        if settled:
            stored = self._connection.start_all(batch.verdicts) if batch.verdicts else None
            self._start(self._land(batch, settled, stored))
        return bool(settled or batch.missing)

    # --- out: verdicts, alarms, history, acknowledgement ----------------------------------------

    async def _land(self, batch: Batch, settled: list[Sample], stored: asyncio.Future[None] | None) -> None:
        """Sees one batch through to its acknowledgement. Batches land independently: no two have a chamber
        in common."""
        if stored is not None:
            await within(stored, self._settings.request_timeout_s, "storing verdicts")
        stored_ns = time.time_ns()
        await self._history.append(batch.verdicts)
        if batch.skipped:
            await self._make_up(batch)
        self._gate()
        if batch.alarms:
            alarms = self._connection.start_all(batch.alarms, repeats=True)
            await within(alarms, self._settings.request_timeout_s, "storing alarms")
        await self._publish_rejections(batch)
        self._gate()
        if batch.flight is not None:
            self._flights.confirm(batch.flight)
        self._acknowledge(settled)
        self._turns.over(settled)
        self._count(batch, settled, stored_ns)
        self._landing.set()
        self._landing.clear()
        if self._turns.may_take:
            self._schedule_pump()

    async def _make_up(self, batch: Batch) -> None:
        """Adds what a failure left undone of the skipped reports, whose verdicts are stored."""
        chambers = {
            sample.chamber: (sample.partition, self._starts[sample.partition])
            for sample in batch.skipped
            if sample.chamber not in self._made_up
        }
        if chambers:
            batch.alarms += await overdue_alarms(self._connection, self._history, self._settings, chambers)
            self._made_up.update(chambers)
        batch.rejections += overdue_rejections(batch.skipped, self._judge.limits, self._names)

    async def _publish_rejections(self, batch: Batch) -> None:
        replies = []
        for rejected in batch.rejections:
            subject = rejected.subject
            replies.append((subject, self._connection.ask(subject, rejected.payload, rejected.headers)))
        for subject, reply in replies:
            checked_ack(subject, await within(reply, self._settings.request_timeout_s, subject))

    def _acknowledge(self, settled: list[Sample]) -> None:
        by_partition: dict[int, list[int]] = {}
        for sample in settled:
            by_partition.setdefault(sample.partition, []).append(sample.seq)
        frames = []
        intakes = [self._intakes[partition] for partition in by_partition]
        for intake in intakes:
            intake.done(by_partition[intake.partition])
            self._judge.positions[intake.partition] = intake.position
            ack = intake.ack()
            if ack is not None:
                frames.append(frame_pub(*ack))
        if frames:
            self._connection.write(b"".join(frames))
        self._refill(intakes)

    def _refill(self, intakes: Iterable[Intake]) -> None:
        if self.state is State.SERVING:
            frames = [
                frame
                for intake in intakes
                for frame in intake.pulls(b"%b.%d" % (self._reply_inbox, intake.partition))
            ]
            if frames:
                self._connection.write(b"".join(frames))

    def _count(self, batch: Batch, settled: list[Sample], stored_ns: int) -> None:
        counters = self._counters
        counters.add(Counter.REPORTS, len(settled))
        counters.add(Counter.SAMPLES, batch.samples)
        counters.add(Counter.VERDICTS, len(batch.judged))
        counters.add(Counter.ALARMS, len(batch.alarms))
        counters.add(Counter.RESETS, batch.resets)
        counters.add(Counter.SKIPPED, len(batch.skipped))
        counters.add(Counter.BATCHES)
        counters.add(Counter.BYTES_IN, sum(len(sample.payload) for sample in settled))
        counters.add(
            Counter.BYTES_OUT,
            sum(len(message[2]) for message in batch.verdicts),
        )
        for reason in batch.reasons:
            counters.reject(reason)
        if batch.judged:
            received_ns = np.array([sample.received_ns for sample in batch.judged])
            latencies_us = np.maximum((stored_ns - received_ns) // 1000, 0)
            buckets = np.searchsorted(LATENCY_BOUNDS_US, latencies_us, side="left")
            counts = np.bincount(buckets, minlength=LATENCY_BUCKETS).tolist()
            counters.observe_buckets(counts, int(latencies_us.sum()))

    # --- the history ----------------------------------------------------------------------------

    async def _read_partition(self, partition: int) -> int:
        async with self._partition_reads:
            rebuild = Rebuild(self._cache)
            reports = await self._history.load_partition(
                partition, lambda rows: rebuild.take(partition, rows)
            )
            rebuild.finish()
        self._cache.arena.partitions[partition] = arenas.WHOLE if rebuild.complete else arenas.PARTLY
        self._counters.add(Counter.REBUILT_REPORTS, rebuild.reports)
        return reports

    async def _read_chamber(self, name: str, partition: int) -> None:
        """The report of a chamber that is not in memory waits for this; others go on."""
        async with self._chamber_reads:
            rows = await self._history.load_chamber(partition, name)
            self._counters.add(Counter.HISTORY_READS, len(rows))
            while True:
                try:
                    restore_chamber(self._cache, name, partition, rows)
                    break
                except CacheFull:
                    if not self._flights.in_flight:
                        raise CacheTooSmall(
                            f"chamber {name!r} does not fit into the cache of a worker "
                            f"({self._cache.arena.shape.slots} charts); raise CACHE_MB"
                        ) from None
                    await self._landing.wait()
        self._turns.put_back([self._reading.pop(name)])
        self._schedule_pump()

    # --- small change ---------------------------------------------------------------------------

    def _in_hand(self) -> bool:
        return bool(len(self._turns) or self._reading or self._tasks)

    def _gate(self) -> None:
        if time.monotonic_ns() >= self._board.lease_deadline_ns:
            raise Fenced("the lease ran out; nothing more is published")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)
        if not self._in_hand():
            self._idle.set()

    def _break(self, error: BaseException) -> None:
        if not self._broken.done() and self.state is not State.OVER:
            self._broken.set_exception(error)
