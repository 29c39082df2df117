"""Defenders' workers without their surroundings: the judging parts over real arenas, streams in memory.

`Worker` does what a session does, one step at a time, in whatever order a test draws: deliver, judge, store,
land, read a chamber; copy a partition, take it on, give it back. Between any two steps the connection can
break, the worker can die (also in the midst of a kernel, or of a confirmation), or the pod can start again
with an empty arena. `Outside` is what they share: the streams, and who owns which partition. At the end the
streams must be the oracle's.
"""

from __future__ import annotations

import os
import random
import types
from collections import deque
from collections.abc import Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import numpy as np

from kernels import judge as kernel
from runtime import arena as arenas
from runtime.arena import Arena, Shape
from runtime.cache import Cache, CacheFull
from runtime.config import Settings
from runtime.examine import Limits
from runtime.flight import FlightLog, FlightState, in_doubt, settle
from runtime.frames import Message
from runtime.intake import Intake
from runtime.judge import Batch, Judge, Sample
from runtime.names import Names, name_problem
from runtime.overdue import overdue_alarms, overdue_rejections
from runtime.readings import Readings
from runtime.rebuild import Rebuild, restore_chamber
from runtime.specs import Specs
from runtime.stored import StoredVerdict
from runtime.transfer import OVERHEAD_BYTES, Ask, Page, Refused, TransferFailed, fetch, give, names_of
from runtime.turns import Turns
from tests.load import parsed
from tests.memory_history import MemoryHistory, MemoryStream
from tests.oracle import Oracle, Stored, Streams

PARTITIONS = 2
CHAMBERS = ("A", "B", "C", "D", "E")
CHARTS = ("given_a", "moving_b", "frozen_c")
NOW_NS = 1_700_000_000_000_000_000
FLIGHTS = 2
T = TypeVar("T")


@types.coroutine
def page() -> Generator[None, None, None]:
    """Between the request for a page and the page."""
    yield


async def no_rest(worked_s: float) -> None:
    return


async def never(*_: object) -> tuple[int, list[str]]:
    raise AssertionError("copies are made here step by step")


def now(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("it waits")


@dataclass
class Landing:
    """A batch on its way, and how far it has come."""

    batch: Batch
    settled: list[Sample]
    unstored: deque[Message]
    made_up: bool
    """Whether what a failure left undone of its skipped reports was looked for."""
    alarmed: bool = False
    told: bool = False


@dataclass
class Owned:
    """A partition's record, and the position that its consumer and its record tell."""

    owner: object = None
    epoch: int = 0
    position: int = 0


@dataclass
class Copying:
    """A partition that is read ahead, portion by portion."""

    rebuild: Rebuild
    last: int | None = None
    ended: bool = False
    epoch: int | None = None
    """Of the owner from whose memory it is; None: from the history."""
    pages: Coroutine[Any, Any, tuple[int, list[str]]] | None = None
    """The transfer that is under way: it is sent on page by page."""


class Memory(NamedTuple):
    """How much a chart, and the history, remember."""

    window: int
    depth: int


SHORT = Memory(6, 8)
LONG = Memory(24, 30)
"""Longer than the longest run that a rule looks at."""


@dataclass
class Outside:
    """One fleet's streams, and the records of its partitions."""

    rng: random.Random
    specs: dict[int, Specs]
    window: int
    depth: int
    samples: list[Stored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = Names(partitions=PARTITIONS)
        self.settings = Settings(partitions=PARTITIONS)
        self.history = MemoryHistory(self.names, self.depth)
        self.alarms = MemoryStream(self.names.alarms)
        self.rejected = MemoryStream(self.names.rejected)
        self.records = {partition: Owned() for partition in range(PARTITIONS)}
        self._weights = [1, 1, 1, 1, self.rng.choice([1, 30])]  # one may have more in flight than the depth
        self.revision = min(self.specs)
        self._epoch = 0
        self.workers: list[Worker] = []
        self.transferred = self.refused = self.left_out = 0
        """Chambers taken from another's memory; transfers that ended early; chambers not to be had so."""

    def publish(self, reports: int) -> None:
        """Host software stores some reports; some are resets, some are bad."""
        for _ in range(reports):
            chamber = self.rng.choices(CHAMBERS, self._weights)[0]
            partition = self.names.partition_of(chamber)
            subject = self.names.incoming(partition, chamber)
            payload = report(self.rng, len(self.samples))
            self.samples.append(
                Stored(self.names.samples, len(self.samples) + 1, subject, payload, {}, NOW_NS)
            )

    def acquire(self, partition: int, owner: object) -> tuple[int, int, int]:
        """(epoch, the one it replaces, position), whoever had it."""
        record = self.records[partition]
        before, self._epoch = record.epoch, self._epoch + 1
        record.owner, record.epoch = owner, self._epoch
        # The ack floor that the server remembers may be older than the last acknowledgement.
        known = record.position
        return self._epoch, before, known if self.rng.random() < 0.7 else self.rng.randrange(known + 1)

    def differences(self) -> list[str]:
        """Of the streams from the oracle's."""
        stored = [stream.messages for stream in (self.history.stream, self.alarms, self.rejected)]
        streams = Streams(self.samples, *stored)
        return Oracle(window=self.window, depth=self.depth, specs=self.specs).compare(streams)


@dataclass(eq=False)
class Worker:
    """One worker. *slots* and *rows* bound its cache."""

    outside: Outside
    slots: int = 9
    rows: int = 4

    def __post_init__(self) -> None:
        outside = self.outside
        self.rng, self.names, self.settings = outside.rng, outside.names, outside.settings
        self.history, self.alarms, self.rejected = outside.history, outside.alarms, outside.rejected
        self.shape = Shape(PARTITIONS, self.slots, self.rows, outside.window, FLIGHTS, reports=16, samples=64)
        self._fd = -1
        self.start_pod()

    def change_specs(self) -> None:
        """The next revision, which the fleet has, reaches the worker."""
        self.cache.use_specs(self.outside.specs[self.outside.revision], self.outside.revision)

    # --- a life of the worker -------------------------------------------------------------------

    def start_pod(self) -> None:
        """An empty arena; what is in the history comes back by reading it."""
        self.close()
        self._fd = os.memfd_create("world")
        self._begin()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def break_session(self, stored: int) -> None:
        """The connection ends; of the verdicts in flight the server has stored *stored* more, in order."""
        self.store(stored)
        self._begin()

    def die_in_kernel(self, size: int) -> None:
        """SIGKILL in the midst of a batch: its journal ends, a slot is torn, nothing is published."""
        if not self.flights.has_room:
            return
        batch = self.judge.judge(self.turns.take(size))
        flight = batch.flight
        if flight is not None:
            arena, region = self.arena, flight.region
            samples = int(arena.flights["samples"][region])
            at = self.rng.randrange(samples + 1) if samples else 0
            journal = arena.journal[region]
            if at < samples:
                kernel.undo(
                    journal,
                    at,
                    samples,
                    np.zeros(samples, dtype=np.uint8),
                    arena.state,
                    arena.sums,
                    arena.carried,
                    arena.window,
                )
                slot = int(arena.flight_slots[region, at])
                noise = np.random.default_rng(self.rng.randrange(2**32))
                for torn in (array[slot : slot + 1] for array in (arena.state, arena.sums, arena.carried)):
                    if self.rng.random() < 0.5:
                        view = torn.view(np.uint8)
                        view[:] = noise.integers(0, 256, len(view), dtype=np.uint8)
                arena.state["head"][slot] %= self.outside.window
                arena.state["length"][slot] %= self.outside.window + 1
                # The index may have been written before the rest of the entry, or not at all.
                journal["index"][at + self.rng.randrange(2) : samples] = -1
            arena.flights["state"][region] = FlightState.JUDGING
        self._begin()

    def die_in_confirmation(self) -> None:
        """SIGKILL after some columns of the confirmed rows were written."""
        landing = self.rng.choice(self.landings) if self.landings else None
        if landing is None or not landing.told or landing.batch.flight is None:
            return
        rows = self.arena.chambers
        reports = landing.batch.flight.reports
        for chamber, seq, ordinal in reports[: self.rng.randrange(len(reports) + 1)]:
            rows["seq"][chamber.row] = seq
            if self.rng.random() < 0.5:
                rows["ordinal"][chamber.row] = ordinal
        self._begin()

    def _begin(self) -> None:
        """What a new session does: settle, find the directory again; partitions are assigned to it anew."""
        outside = self.outside
        self.arena = Arena(self._fd, self.shape)
        settle(self.arena, now(self.history.last_stored(in_doubt(self.arena))))
        specs, revision = outside.specs[outside.revision], outside.revision
        self.cache = Cache(self.arena, self.names, specs, revision, outside.depth)
        self.flights = FlightLog(self.arena)
        limits = Limits(
            self.settings.report_bytes_max, self.settings.at_past_max_s, self.settings.at_future_max_s
        )
        self.judge = Judge(self.cache, self.flights, limits, "defender-0")
        self.readings = Readings(self.cache, self.history, 1, lambda: False, never)
        self.starts: dict[int, int] = {}
        self.turns = Turns()
        self.reading: dict[str, Sample] = {}
        self.made_up: set[str] = set()
        self.landings: list[Landing] = []
        self.intakes: dict[int, Intake] = {}
        self.delivered: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.copies: dict[int, Copying] = {}
        self.leaving: set[int] = set()
        for partition, record in outside.records.items():
            if record.owner is self:
                self.take_on(partition)

    # --- partitions come and go -----------------------------------------------------------------

    def owns(self, partition: int) -> bool:
        """Whether it serves the partition, and nobody has overtaken it (which it need not know)."""
        return self.epochs.get(partition) == self.outside.records[partition].epoch

    def take_on(self, partition: int) -> None:
        """Acquires a partition, whoever has it, and serves it: from memory, after a copy, or read whole."""
        epoch, before, position = self.outside.acquire(partition, self)
        copying = self.copies.pop(partition, None)
        if not self.readings.is_kept(partition, before):
            if copying is None or (copying.epoch is not None and (copying.pages or copying.epoch != before)):
                self._end(copying)
                self.cache.forget(partition)
                copying = Copying(Rebuild(self.cache, partition))
            now(self.history.load_partition(partition, copying.rebuild.take, after=copying.last))
            copying.rebuild.finish()
        self.arena.epochs[partition] = epoch
        self.epochs[partition] = epoch
        self.intakes[partition] = Intake(partition, self.names.samples, "p", position, 64, 1.0)
        self.judge.epochs[partition], self.judge.positions[partition] = epoch, position
        self.delivered[partition] = self.starts[partition] = position

    def copy(self, partition: int) -> bool:
        """Begins to copy a partition ahead, or reads the next rows of it."""
        if partition in self.intakes:
            return False
        copying = self.copies.get(partition)
        if copying is None:
            self.cache.forget(partition)
            copying = self.copies[partition] = Copying(Rebuild(self.cache, partition))
            givers = [one for one in self.outside.workers if one is not self and partition in one.intakes]
            if givers and self.rng.random() < 0.7:
                self._begin_transfer(partition, copying, self.rng.choice(givers))
        for _ in range(self.rng.choice([1, 1, 9])):
            if copying.pages is not None:
                self._next_page(partition, copying)
                if copying.pages is None:
                    return True
        if copying.pages is not None:
            return True
        if copying.ended:
            return False

        def one_portion(rows: list[StoredVerdict]) -> bool:
            copying.rebuild.take(rows)
            return False

        loaded = now(self.history.load_partition(partition, one_portion, after=copying.last))
        copying.last, copying.ended = loaded.last, loaded.reports < self.history.rows_at_once
        return True

    def _begin_transfer(self, partition: int, copying: Copying, giver: Worker) -> None:
        """From the memory of one that serves the partition, or believes so."""
        copying.last = now(self.history.position(partition))
        epoch = copying.epoch = giver.epochs[partition]

        async def page_of(ask: Ask) -> Page:
            await page()
            if partition not in giver.intakes or partition in giver.leaving:
                raise TransferFailed("it is not served there")
            names = sorted(ask.names) or names_of(giver.cache, partition)
            answer = give(
                giver.cache, ask, names, OVERHEAD_BYTES + self.rng.choice([700, 1_500, 1_500, 100_000])
            )
            if isinstance(answer, Refused):
                raise TransferFailed(answer.why)
            return answer

        copying.pages = fetch(page_of, partition, epoch, self.cache, copying.rebuild, no_rest)

    def _next_page(self, partition: int, copying: Copying) -> None:
        assert copying.pages is not None
        try:
            copying.pages.send(None)
            return
        except TransferFailed:
            self.outside.refused += 1
            self.cache.forget(partition)
            copying.rebuild, copying.last, copying.epoch = Rebuild(self.cache, partition), None, None
        except StopIteration as done:
            taken, left_out = done.value
            self.outside.transferred += taken
            self.outside.left_out += len(left_out)
            for name in left_out:
                copying.rebuild.take(now(self.history.load_chamber(partition, name)))
            copying.rebuild.follow()
        copying.pages = None

    def _end(self, copying: Copying | None) -> None:
        if copying is not None and copying.pages is not None:
            copying.pages.close()

    def forget_copy(self, partition: int) -> None:
        """The partition will not come after all."""
        copying = self.copies.pop(partition, None)
        if copying is not None:
            self._end(copying)
            self.cache.forget(partition)

    def stop_serving(self, partition: int) -> None:
        """Takes nothing more of a partition; what is not in flight is dropped."""
        if partition not in self.intakes or partition in self.leaving:
            return
        self.leaving.add(partition)
        self.turns.drop(partition)
        waiting = [sample for sample in self.reading.values() if sample.partition == partition]
        for sample in waiting:
            del self.reading[sample.chamber]
        self.turns.over(waiting)

    def give_back(self) -> bool:
        """Partitions that are being left, and of which nothing is in flight, are released and forgotten."""
        flying = {sample.partition for landing in self.landings for sample in landing.settled}
        left = self.leaving - flying
        for partition in left:
            record, intake = self.outside.records[partition], self.intakes.pop(partition)
            if self.owns(partition):
                record.owner, record.position = None, max(record.position, intake.position)
            del self.epochs[partition], self.judge.epochs[partition], self.judge.positions[partition]
            del self.starts[partition], self.delivered[partition]
            self.made_up = {name for name in self.made_up if self.names.partition_of(name) != partition}
            self.cache.forget(partition)
        self.leaving -= left
        return bool(left)

    # --- the steps of a session -----------------------------------------------------------------

    def deliver(self, messages: int) -> None:
        """The server delivers; now and then a message that was delivered already."""
        for _ in range(messages):
            partition = self.rng.randrange(PARTITIONS)
            if partition not in self.intakes or partition in self.leaving:
                continue
            if not self.owns(partition):  # its consumer was deleted
                if self.rng.random() < 0.5:
                    self.break_session(stored=self.rng.randrange(10))
                    return
                continue
            position = self.delivered[partition]
            if self.rng.random() < 0.1:
                position = self.rng.randrange(position + 1)
            found = next((m for m in self.outside.samples[position:] if m.partition == partition), None)
            if found is None:
                continue
            self.delivered[partition] = max(self.delivered[partition], found.seq)
            whole = self.arena.partitions[partition] == arenas.WHOLE
            if whole and self.cache.get(found.chamber) is None and name_problem(found.chamber) is None:
                try:
                    self.cache.loaded([self.cache.add(found.chamber, partition)])
                except CacheFull:
                    self.arena.partitions[partition] = arenas.PARTLY
            if self.intakes[partition].took(found.seq, found.seq, 0):
                self.turns.arrive(Sample(found.chamber, partition, found.seq, found.time_ns, found.payload))

    def launch(self, size: int) -> bool:
        """Judges a batch; False when nothing could be done."""
        if not self.flights.has_room or len(self.landings) >= FLIGHTS:
            return False
        samples = self.turns.take(size)
        if not samples:
            return False
        batch = self.judge.judge(samples)
        settled = [*batch.judged, *batch.rejected, *batch.skipped]
        if not settled and not batch.missing and not self.flights.in_flight and not self.reading:
            self.judge.refuse(batch.left.pop(0), batch)
            settled = batch.rejected
        self.turns.put_back(batch.left)
        for sample in batch.missing:
            self.reading[sample.chamber] = sample
        if settled:
            self.landings.append(Landing(batch, settled, deque(batch.verdicts), not batch.skipped))
        return bool(settled or batch.missing)

    def store(self, messages: int, refusals: float = 0.0) -> bool:
        """The server stores the next verdicts in flight, in order; now and then it refuses one, and goes on.

        The first refusal ends the session, but what is on its way is stored before that is noticed.
        """
        acted = refused = False
        for landing in self.landings:
            while landing.unstored and messages > 0:
                messages -= 1
                acted = True
                message = landing.unstored.popleft()
                if self.rng.random() < refusals or not self.history.stream.store(message):
                    refused = True  # or another has published it: the session ends in the same way
        if refused:
            self.break_session(stored=self.rng.randrange(30))
        return acted

    def land(self) -> bool:
        """The next step of a stored batch: what is overdue, alarms, rejections, confirmation."""
        stored = [landing for landing in self.landings if not landing.unstored]
        if not stored:
            return False
        landing = self.rng.choice(stored)
        batch = landing.batch
        if not landing.made_up:
            self._make_up(batch)
            landing.made_up = True
        elif not landing.alarmed:
            for message in batch.alarms[: self.rng.randrange(len(batch.alarms) + 2)]:
                self.alarms.store(message)
                batch.alarms.remove(message)
            landing.alarmed = not batch.alarms
        elif not landing.told:
            for one in batch.rejections:
                headers = parsed(b"NATS/1.0\r\n" + one.headers)
                self.rejected.store((one.subject, headers["Nats-Msg-Id"], one.payload), headers)
            landing.told = True
        else:
            self._confirm(landing)
        return True

    def _make_up(self, batch: Batch) -> None:
        chambers = {
            sample.chamber: (sample.partition, self.starts[sample.partition])
            for sample in batch.skipped
            if sample.chamber not in self.made_up
        }
        batch.alarms += now(overdue_alarms(self.alarms, self.history, self.settings, chambers))
        self.made_up.update(chambers)
        batch.rejections += overdue_rejections(batch.skipped, self.judge.limits, self.names)

    def _confirm(self, landing: Landing) -> None:
        if landing.batch.flight is not None:
            self.flights.confirm(landing.batch.flight)
        for partition, intake in self.intakes.items():
            seqs = [sample.seq for sample in landing.settled if sample.partition == partition]
            if seqs:
                intake.done(seqs)
                self.judge.positions[partition] = intake.position
                # An acknowledgement is not confirmed, and may get lost; a deleted consumer takes none.
                if self.owns(partition) and self.rng.random() < 0.8:
                    record = self.outside.records[partition]
                    record.position = max(record.position, intake.position)
        self.turns.over(landing.settled)
        self.landings.remove(landing)

    def read_chamber(self) -> bool:
        """A chamber that reports wait for is read from the history."""
        if not self.reading:
            return False
        name = self.rng.choice(list(self.reading))
        partition = self.names.partition_of(name)
        try:
            restore_chamber(self.cache, name, partition, now(self.history.load_chamber(partition, name)))
        except CacheFull:
            assert self.flights.in_flight, "a chamber fits into an idle cache"
            return False
        self.turns.put_back([self.reading.pop(name)])
        return True

    def act(self) -> bool:
        """Whatever there is to do, once; False when there is nothing."""
        self.deliver(8)
        acted = [self.launch(8), self.read_chamber(), self.store(100), self.land(), self.give_back()]
        rest = any(m.seq > self.delivered.get(m.partition, m.seq) for m in self.outside.samples)
        return any(acted) or rest or bool(self.turns)


class World(Outside):
    """One fleet of one worker, which serves everything."""

    def __init__(
        self, rng: random.Random, specs: dict[int, Specs], *, slots: int, rows: int, memory: Memory = SHORT
    ) -> None:
        super().__init__(rng, specs, *memory)
        self.worker = Worker(self, slots, rows)
        for partition in self.records:
            self.worker.take_on(partition)

    def change_specs(self) -> None:
        self.revision = min(self.revision + 1, max(self.specs))
        self.worker.change_specs()

    def finish(self) -> None:
        """Undisturbed until nothing is left to do."""
        finish(self, [self.worker])

    def close(self) -> None:
        self.worker.close()


class Pair(Outside):
    """One fleet of two workers, in two pods, between which partitions move."""

    def __init__(
        self, rng: random.Random, specs: dict[int, Specs], *, slots: int, rows: int, memory: Memory = SHORT
    ) -> None:
        super().__init__(rng, specs, *memory)
        self.workers = [Worker(self, slots, rows) for _ in range(2)]
        for partition in self.records:
            rng.choice(self.workers).take_on(partition)

    def change_specs(self) -> None:
        self.revision = min(self.revision + 1, max(self.specs))
        for worker in self.workers:
            worker.change_specs()

    def finish(self) -> None:
        """Undisturbed until nothing is left to do; what nobody serves is taken on."""
        for worker in self.workers:
            if any(not worker.owns(partition) for partition in worker.intakes):
                worker.break_session(stored=3)
        while any(worker.leaving for worker in self.workers):
            for worker in self.workers:
                worker.act()
        for partition in self.records:
            if not any(worker.owns(partition) for worker in self.workers):
                self.rng.choice(self.workers).take_on(partition)
        finish(self, self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def finish(outside: Outside, workers: list[Worker]) -> None:
    """Lets workers act until nothing is left to do."""
    for _ in range(100 * (len(outside.samples) + 10)):
        acted = [worker.act() for worker in workers]
        if not any(acted):
            for worker in workers:
                assert not worker.reading
                assert not worker.landings
            return
    raise AssertionError("it does not end")


def report(rng: random.Random, number: int) -> bytes:
    """A report of any kind that can come."""
    encode = msgspec.json.encode if rng.random() < 0.5 else msgspec.msgpack.encode
    tree: dict[str, Any] = {"run": f"r{number}"}
    if rng.random() < 0.7:
        tree["at"] = NOW_NS + number * 1_000_000_000
    dice = rng.random()
    if dice < 0.06:
        tree["reset"] = "maintenance"
        if rng.random() < 0.5:
            tree["charts"] = rng.sample([*CHARTS, "unknown"], 2)
        return encode(tree)
    absent = number // 100 % 6  # now and then a chart does not come for longer than the history is deep
    often = [chart for i, chart in enumerate(CHARTS) if i != absent]
    charts = [chart for chart in often if rng.random() < 0.8] or [often[0]]
    if rng.random() < 0.2:
        rng.shuffle(charts)
    counts: list[float] = [rng.choice([0, 1, 2, 2, 3, 4, 12]) for _ in charts]
    units = [rng.choice([1.0, 1.0, 2.0, 0.7]) for _ in charts]
    if dice < 0.10:
        counts[rng.randrange(len(counts))] = rng.choice([-1, 0.5])
    elif dice < 0.13:
        units.pop()
    elif dice < 0.15:
        return b"\xc1 nothing"
    elif dice < 0.17:
        charts[0] = "two words"
    return encode({**tree, "charts": charts, "counts": counts, "units": units})
