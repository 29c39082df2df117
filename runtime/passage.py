"""The way of the reports of one session, from their delivery to their acknowledgement.

    delivered ── turns ──► batch ── judge ──► in flight ── verdicts, alarms, history ──► acknowledged
                  ▲          │
                  └── read ──┘  a report whose chamber is not in memory; others go on

The order for a batch: verdicts, alarms, history, acknowledgement. The lease's deadline is looked at
before each of them is written: a process that was frozen past its lease writes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final

import numpy as np

from runtime import arena as arenas
from runtime.cache import CacheFull
from runtime.config import Settings
from runtime.connection import Connection, within
from runtime.counters import LATENCY_BOUNDS_US, LATENCY_BUCKETS, Board, Counter, WorkerCounters
from runtime.errors import CacheTooSmall, DefenderError, Fenced
from runtime.frames import frame_pub, is_unheard, pull_left
from runtime.history import History
from runtime.intake import Intake
from runtime.jetstream import checked_ack
from runtime.judge import Batch, Judge, Sample
from runtime.names import name_problem
from runtime.overdue import overdue_alarms, overdue_rejections
from runtime.rebuild import restore_chamber
from runtime.turns import Turns

CHAMBER_READS_MAX: Final = 8
"""Reads of single chambers from the history at the same time."""
BATCH_REPORTS_MIN: Final = 64
ROUTES_MAX: Final = 50_000
"""Subjects remembered of one partition."""
UNHEARD_PAUSE_S: Final = 0.05
"""Before a pull that nobody listened for is sent again."""


class SessionBroken(DefenderError):
    """The session cannot go on; the next one begins anew."""

    temporary = True


class Passage:
    """The reports of the partitions that are served. *fail* is told of what breaks it; it repairs nothing."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        history: History,
        judge: Judge,
        board: Board,
        counters: WorkerCounters,
        fail: Callable[[BaseException], None],
        missed: Callable[[str], None],
    ) -> None:
        """*missed* is told of each chamber that it is going to read because a report of it waits."""
        self._settings, self._connection, self._history = settings, connection, history
        self._judge, self._cache, self._flights = judge, judge.cache, judge.flights
        self._board, self._counters, self._fail, self._missed = board, counters, fail, missed
        self._names = settings.names
        self._intakes: dict[int, Intake] = {}
        """Of the partitions that are served, and of those that are being left."""
        self._taps: dict[int, int] = {}
        """Those that are served, with the subscription of their reports."""
        self._starts: dict[int, int] = {}
        """The positions at which this session began with them."""
        self._turns = Turns()
        self._reading: dict[str, Sample] = {}
        """Chambers that are being read from the history, with the report that waits for it."""
        self._in_flight: list[list[Sample]] = []
        """The reports of each batch that has not landed."""
        self._made_up: dict[int, set[str]] = {}
        """By partition, the chambers of which nothing is overdue any more."""
        self._chamber_reads = asyncio.Semaphore(CHAMBER_READS_MAX)
        self._pump_scheduled = False
        self._pulls, self._is_over = True, False
        self._holds = False
        """Whether nothing is pulled because the history takes nothing."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._landing = asyncio.Event()
        self._idle = asyncio.Event()

    # --- partitions -----------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether anything is served."""
        return bool(self._taps)

    def serves(self, partition: int) -> bool:
        """Whether the reports of a partition are taken."""
        return partition in self._taps

    async def serve(self, intake: Intake, epoch: int) -> None:
        """Takes the reports of a partition, whose history is in memory, from here on."""
        partition = intake.partition
        self._judge.epochs[partition], self._judge.positions[partition] = epoch, intake.position
        self._starts[partition], self._made_up[partition] = intake.position, set()
        self._intakes[partition] = intake
        inbox = intake.inbox = self._connection.inbox()
        self._taps[partition] = await self._connection.tap(inbox.decode(), partial(self._deliver, intake))
        self._counters.set_epoch(partition, epoch)
        self._refill([intake])

    async def leave(self, partition: int) -> None:
        """Takes no more reports of a partition that is served, and sees through what is in flight.

        What is delivered and not in flight is dropped; it stays pending, so the position stays below."""
        await self._connection.untap(self._taps.pop(partition))  # what still comes is not even looked at
        self._turns.drop(partition)
        waiting = [sample for sample in self._reading.values() if sample.partition == partition]
        for sample in waiting:
            del self._reading[sample.chamber]
        self._turns.over(waiting)
        self._wake_waiting()
        while any(sample.partition == partition for batch in self._in_flight for sample in batch):
            await self._landing.wait()
        await self._acknowledge_heard(self._intakes.pop(partition))
        del self._judge.epochs[partition], self._judge.positions[partition]
        del self._starts[partition], self._made_up[partition]
        self._counters.set_epoch(partition, 0)

    async def _acknowledge_heard(self, intake: Intake) -> None:
        ack = intake.ack()
        if ack is not None:
            self._gate()
            subject, payload = ack
            reply = self._connection.ask(subject.decode(), payload)
            await within(reply, self._settings.request_timeout_s, "acknowledgement")

    async def drain(self) -> None:
        """Leaves every partition, and returns when nothing is in hand."""
        self._pulls = False
        await asyncio.gather(*(self.leave(partition) for partition in list(self._taps)))
        while self._in_hand():
            self._idle.clear()
            await self._idle.wait()
        self._is_over = True

    async def close(self) -> None:
        """Ends at once, whatever is in flight."""
        self._pulls, self._is_over = False, True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def unanswered_s(self, now_s: float) -> float:
        """For how long the server has not answered the pulls of some partition; asked at intervals.

        Each by itself: the server that led one consumer may be lost, its pulls with it, and the others go on.
        """
        longest_s = 0.0
        for partition in self._taps:
            intake = self._intakes[partition]
            if intake.heard or not intake.asks:
                intake.heard, intake.heard_s = False, now_s
            longest_s = max(longest_s, now_s - intake.heard_s)
        return longest_s

    def gauge(self) -> None:
        """Looks at how things stand, at intervals: sets the counters, and pulls while the history is up."""
        self._counters.set(Counter.INBOX, len(self._turns))
        self._counters.set(Counter.WAITING, len(self._reading))
        held, self._holds = self._holds, bool(self._history.down)
        if held and not self._holds:
            self._refill([self._intakes[partition] for partition in self._taps])

    # --- in: deliver, judge ---------------------------------------------------------------------

    def _deliver(
        self, intake: Intake, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None
    ) -> None:
        if headers is not None and not reply:
            self._pull_status(intake, headers)
            return
        intake.heard = True
        name = intake.routes.get(subject)
        if name is None:
            name = self._new_route(intake, subject)
        tokens = reply.split(b".")
        at = 5 if len(tokens) == 9 else 7  # with a domain two tokens come before the stream's name
        seq = int(tokens[at])
        if not intake.took(seq, int(tokens[at + 1]), int(tokens[at + 3])):
            return
        self._turns.arrive(Sample(name, intake.partition, seq, int(tokens[at + 2]), payload))
        self._schedule_pump()

    def _new_route(self, intake: Intake, subject: bytes) -> str:
        name = subject.split(b".", 3)[3].decode("utf-8", "surrogateescape")
        whole = self._cache.arena.partitions[intake.partition] == arenas.WHOLE
        if whole and self._cache.get(name) is None and name_problem(name) is None:
            try:
                self._cache.loaded([self._cache.add(name, intake.partition)])
            except CacheFull:
                # It comes in by way of the history, when some chamber has landed. From now on all do: one
                # whose reports wait must not be taken for a new one when its route is made again.
                self._cache.arena.partitions[intake.partition] = arenas.PARTLY
        if len(intake.routes) >= ROUTES_MAX:
            intake.routes.clear()
        intake.routes[subject] = name
        return name

    def _pull_status(self, intake: Intake, headers: bytes) -> None:
        if is_unheard(headers):
            loop = asyncio.get_running_loop()
            if intake.pull_unheard(loop.time()) < self._settings.request_timeout_s:
                loop.call_later(UNHEARD_PAUSE_S, self._pull_again, intake)
                return
        intake.heard = True
        left = pull_left(headers)
        if left is None:
            why = headers.split(b"\r\n", 1)[0].decode()
            self._fail(SessionBroken(f"partition {intake.partition}: a pull ended with {why!r}"))
        else:
            intake.unheard_s = None
            intake.pull_ended(left)
            self._refill([intake])

    def _pump(self) -> None:
        """Judges what has come, as long as batches may be in flight."""
        self._pump_scheduled = False
        try:
            while not self._is_over and self._flights.has_room:
                samples = self._turns.take(self._batch_reports_max())
                if not samples:
                    break
                self._gate()
                if not self._launch(samples):
                    break
        except Exception as error:
            self._fail(error)  # one that is no DefenderError then ends the worker, not only the session
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
            self._missed(sample.chamber)
            self._start(self._read_chamber(sample))
        if settled:
            stored = self._connection.start_all(batch.verdicts) if batch.verdicts else None
            self._in_flight.append(settled)
            self._start(self._land(batch, settled, stored))
        return bool(settled or batch.missing)

    # --- out: verdicts, alarms, history, acknowledgement ----------------------------------------

    async def _land(self, batch: Batch, settled: list[Sample], stored: asyncio.Future[None] | None) -> None:
        """Sees one batch through to its acknowledgement. Batches land independently: no two have a chamber
        in common."""
        if stored is not None:
            await within(stored, self._settings.request_timeout_s, "storing verdicts")
        stored_ns = time.time_ns()
        overdue = await self._make_up(batch) if batch.skipped else {}
        self._gate()
        if batch.alarms:
            alarms = self._connection.start_all(batch.alarms, repeats=True)
            await within(alarms, self._settings.request_timeout_s, "storing alarms")
        await self._publish_rejections(batch)
        await self._history.append(batch.verdicts)  # after the alarms: it may have to wait for its store
        if overdue:
            await self._history.make_up(overdue)
        self._gate()
        if batch.flight is not None:
            self._flights.confirm(batch.flight)
        self._in_flight.remove(settled)
        self._acknowledge(settled)
        self._turns.over(settled)
        self._count(batch, settled, stored_ns)
        self._wake_waiting()
        if self._turns.may_take:
            self._schedule_pump()

    async def _make_up(self, batch: Batch) -> dict[str, int]:
        """Adds what a failure left undone of the skipped reports, whose verdicts are stored. Returns the
        chambers (name -> partition) whose last verdict the history may lack."""
        chambers = {
            sample.chamber: (sample.partition, self._starts[sample.partition])
            for sample in batch.skipped
            if sample.chamber not in self._made_up[sample.partition]
        }
        if chambers:
            batch.alarms += await overdue_alarms(self._connection, self._history, self._settings, chambers)
            for chamber, (partition, _) in chambers.items():
                self._made_up[partition].add(chamber)
        batch.rejections += overdue_rejections(batch.skipped, self._judge.limits, self._names)
        return {chamber: partition for chamber, (partition, _) in chambers.items()}

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
        if self._pulls and not self._holds:
            served = self._taps
            frames = [frame for intake in intakes if intake.partition in served for frame in intake.pulls()]
            if frames:
                self._connection.write(b"".join(frames))

    def _pull_again(self, intake: Intake) -> None:
        if self._connection.is_connected:  # else the session ends by that
            self._refill([intake])

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
        for event, severity in batch.told:
            counters.tell(event, severity)
        if batch.judged:
            received_ns = np.array([sample.received_ns for sample in batch.judged])
            latencies_us = np.maximum((stored_ns - received_ns) // 1000, 0)
            buckets = np.searchsorted(LATENCY_BOUNDS_US, latencies_us, side="left")
            counts = np.bincount(buckets, minlength=LATENCY_BUCKETS).tolist()
            counters.observe_buckets(counts, int(latencies_us.sum()))

    async def _read_chamber(self, sample: Sample) -> None:
        """The report of a chamber that is not in memory waits for this; others go on."""
        name, partition = sample.chamber, sample.partition
        async with self._chamber_reads:
            rows = await self._history.load_chamber(partition, name)
            self._counters.add(Counter.HISTORY_READS, len(rows))
            while self._reading.get(name) is sample:  # else its partition was given back
                try:
                    restore_chamber(self._cache, name, partition, rows)
                    self._turns.put_back([self._reading.pop(name)])
                    self._schedule_pump()
                except CacheFull:
                    if not self._flights.in_flight:
                        raise CacheTooSmall(
                            f"chamber {name!r} does not fit into the cache of a worker "
                            f"({self._cache.arena.shape.slots} charts); raise CACHE_MB"
                        ) from None
                    await self._landing.wait()

    # --- small change ---------------------------------------------------------------------------

    def _wake_waiting(self) -> None:
        """Wakes those that wait for room, or for what is in flight; they look for themselves."""
        self._landing.set()
        self._landing.clear()

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
            self._fail(error)
        if not self._in_hand():
            self._idle.set()
