"""All reports of a fleet judged again, in one process and one arena that grows: nothing is ever evicted.

The judge is the defender's own (`runtime.judge`): what is audited is not the charts' mathematics, which the
tests hold against an oracle and published examples, but that thirty processes, their deaths and handovers
give what one process gives that never died.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from runtime import arena as arenas
from runtime.arena import Arena, Shape
from runtime.cache import Cache
from runtime.config import Settings
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import BATCH_SAMPLES_MAX, Judge, Rejection, Sample
from runtime.names import name_problem
from runtime.specs import Specs
from runtime.wire import CHARTS_MAX

SLOTS_FIRST: Final = 65_536
"""Charts that the arena begins with; it doubles. Pages of charts that never come are never touched."""
SLOTS_SPARE: Final = BATCH_SAMPLES_MAX + CHARTS_MAX
"""Free ones before each batch: no batch can bring more new charts, so that none needs an eviction."""
BATCH_REPORTS_MAX: Final = 1_000


class Expected(NamedTuple):
    """What a run of reports should have come to, by the report's sequence."""

    verdicts: dict[int, tuple[str, bytes]]
    """(subject, payload); epoch and position are 0, the defender is ""."""
    rejections: dict[int, Rejection]
    alarms: dict[int, bytes]
    samples: int


class Rejudge:
    """One judge over all reports of a shard, which it must be given in the order of their stream."""

    def __init__(self, settings: Settings, specs: Specs, revision: int) -> None:
        self._names, self._depth = settings.names, settings.history_depth
        self._specs, self._revision = specs, revision
        self._limits = Limits(settings.report_bytes_max, settings.at_past_max_s, settings.at_future_max_s)
        shape = Shape(
            partitions=settings.partitions,
            slots=SLOTS_FIRST,
            chambers=SLOTS_FIRST,
            window=settings.window,
            flights=1,
            reports=BATCH_REPORTS_MAX,
            samples=BATCH_SAMPLES_MAX,
        )
        self._arena = _arena_of(shape)
        self._judge_over_arena()

    @property
    def charts(self) -> int:
        """Charts in memory."""
        return self._cache.slots_used

    def close(self) -> None:
        """Gives the arena's memory back."""
        os.close(self._arena.fd)

    def judge(self, samples: Sequence[Sample]) -> Expected:
        """What *samples*, the next of the stream, come to. Reports of a chamber keep their order, those of
        different chambers don't: a batch takes one of each chamber."""
        expected = Expected({}, {}, {}, 0)
        total = 0
        for turn in _turns(samples):
            first = 0
            while first < len(turn):
                batch = turn[first : first + BATCH_REPORTS_MAX]
                judged, of_batch = self._judge_batch(batch, expected)
                first += judged
                total += of_batch
        return expected._replace(samples=total)

    def _judge_batch(self, samples: list[Sample], expected: Expected) -> tuple[int, int]:
        """(reports judged, their samples) of one batch; what has no room in it is left for the next."""
        self._add_chambers(samples)
        batch = self._judge.judge(samples)
        for subject, identity, payload in batch.verdicts:
            expected.verdicts[_seq_of(identity)] = subject, payload
        for _, identity, payload in batch.alarms:
            expected.alarms[_seq_of(identity)] = payload
        for rejection in batch.rejections:
            expected.rejections[_seq_in(rejection.headers)] = rejection
        if batch.flight is not None:
            self._judge.flights.confirm(batch.flight)
        assert not self._cache.evictions, "the arena grows before it is full"
        assert len(batch.left) < len(samples), "a batch has room for the largest report"
        return len(samples) - len(batch.left), batch.samples

    def _add_chambers(self, samples: list[Sample]) -> None:
        get = self._cache.get
        for sample in samples:
            if get(sample.chamber) is None and name_problem(sample.chamber) is None:
                if not self._cache.has_room(SLOTS_SPARE):
                    self._grow()
                    get = self._cache.get
                self._cache.loaded([self._cache.add(sample.chamber, sample.partition)])
        if not self._cache.has_room(SLOTS_SPARE):
            self._grow()

    def _grow(self) -> None:
        """Twice the charts. Nothing is in flight, so the new directory finds all of them again."""
        old = self._arena
        slots = 2 * old.shape.slots
        self._arena = _arena_of(replace(old.shape, slots=slots, chambers=slots))
        for section in ("chambers", "keys", "state", "sums", "carried", "window"):
            held = getattr(old, section)
            getattr(self._arena, section)[: len(held)] = held
        self._judge_over_arena()
        os.close(old.fd)

    def _judge_over_arena(self) -> None:
        self._arena.partitions[:] = arenas.WHOLE
        self._cache = Cache(self._arena, self._names, self._specs, self._revision, self._depth)
        self._judge = Judge(self._cache, FlightLog(self._arena), self._limits, defender="")
        for partition in range(self._names.partitions):
            self._judge.epochs[partition] = self._judge.positions[partition] = 0


def _arena_of(shape: Shape) -> Arena:
    return Arena(os.memfd_create("audit", os.MFD_CLOEXEC), shape)


def _turns(samples: Sequence[Sample]) -> list[list[Sample]]:
    """*samples* cut so that no chamber comes twice in a part, each chamber's in their order."""
    turns: list[list[Sample]] = []
    taken: dict[str, int] = {}
    for sample in samples:
        turn = taken.get(sample.chamber, 0)
        taken[sample.chamber] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(sample)
    return turns


def _seq_of(identity: str) -> int:
    return int(identity.rpartition(":")[2])


def _seq_in(headers: bytes) -> int:
    return int(headers.rpartition(b"Tfdc-Seq: ")[2])
