"""From a batch of reports to its verdicts: decode, resolve, one kernel call, encode. No I/O, no clock.

Each report of a batch ends in exactly one place:

    judged    a verdict (and an alarm where a chart signals), written down in the flight log
    rejected  nothing of it can be judged; the original bytes go to REJECTED with the reasons
    skipped   its verdict is stored already (it came again after a failure)
    missing   its chamber is not in memory; it waits for the history, in order
    left      no room in this batch or in the cache while others are in flight, or a second one of a chamber

A report of which only some charts are bad is judged for the good ones *and* goes to REJECTED.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kernels import judge as kernel
from kernels.state import RESET, SAMPLE, SPEC, spec_row
from runtime import wire
from runtime.cache import Cache, CacheFull, Chamber, ChartList
from runtime.examine import Examined, Limits, examine, header_problem
from runtime.flight import Flight, FlightLog
from runtime.frames import Message
from runtime.names import Names, name_problem
from runtime.specs import compile as compile_specs
from runtime.wire import Incoming, OutgoingVerdict, Problem, Reason

BATCH_SAMPLES_MAX: Final = 16_384
"""Samples of one kernel call: four of the largest reports; its undo journal is 2 MB."""
REASONS_BYTES_MAX: Final = 4_096
"""Of the reasons that one rejected report carries in its headers."""


class Sample(Struct, frozen=True, gc=False):
    """One message of the stream SAMPLES, as it was delivered."""

    chamber: str
    partition: int
    seq: int
    received_ns: int
    payload: bytes

    @property
    def key(self) -> tuple[int, int]:
        """Sequences are numbered by stream, so only together with the partition are they one of a kind."""
        return self.partition, self.seq


class _Report(Struct, gc=False):
    """A decoded report on its way through the batch; its samples are ``[first, first + len(charts))``."""

    sample: Sample
    chamber: Chamber
    charts: ChartList
    at_ns: int
    run: str
    reset: str | None


class Rejection(NamedTuple):
    """A rejected report, ready to publish: its bytes as they came, the reasons as header lines."""

    subject: str
    headers: bytes
    payload: bytes


@dataclass
class Batch:
    """What became of the reports of one batch."""

    verdicts: list[Message] = field(default_factory=list)
    alarms: list[Message] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    flight: Flight | None = None
    judged: list[Sample] = field(default_factory=list)
    rejected: list[Sample] = field(default_factory=list)
    skipped: list[Sample] = field(default_factory=list)
    missing: list[Sample] = field(default_factory=list)
    left: list[Sample] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    samples: int = 0
    resets: int = 0


class Judge:
    """Judges batches over one cache. ``epochs`` and ``positions`` (by partition) go into the verdicts."""

    def __init__(self, cache: Cache, flights: FlightLog, limits: Limits, defender: str) -> None:
        self.cache, self.flights, self.limits, self.defender = cache, flights, limits, defender
        self.epochs: dict[int, int] = {}
        self.positions: dict[int, int] = {}
        self._revision = -1
        self._spec_rows: NDArray[Any] = np.empty(0, dtype=SPEC)
        self._basis: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._out = _Outputs(min(BATCH_SAMPLES_MAX, cache.arena.shape.samples))
        partitions = range(cache.names.partitions)
        self._id_prefixes = [message_id_prefix(cache.names, partition) for partition in partitions]

    def judge(self, samples: Sequence[Sample]) -> Batch:
        """Judges as many of *samples*, in order, as fit; changes the cache. See the module for the rest."""
        if self._revision != self.cache.revision:
            self._revision = self.cache.revision
            rows = [spec_row(**row) for row in compile_specs(self.cache.specs)]
            self._spec_rows = np.array(rows, dtype=SPEC)
            self._basis = self._spec_rows["basis"].copy()
        batch, work = Batch(), _Work()
        examined: dict[tuple[int, int], Examined] = {}
        self._decode(samples, batch, work, examined)
        suspects = work.suspects()
        if suspects:
            for report in suspects:
                examined[report.sample.key] = examine(report.sample, self.limits)
            work.unpin()
            batch, work = Batch(), _Work()
            self._decode(samples, batch, work, examined)
            assert not work.suspects(), "what was examined is good"
        if work.reports:
            self._run(batch, work)
        work.unpin()
        return batch

    def _decode(
        self, samples: Sequence[Sample], batch: Batch, work: _Work, examined: dict[tuple[int, int], Examined]
    ) -> None:
        get, room = self.cache.chambers.get, self._out.size
        missing: set[str] = set()
        for at, sample in enumerate(samples):
            chamber = get(sample.chamber)
            if chamber is None and name_problem(sample.chamber) is not None:
                self._reject(sample, examine(sample, self.limits).problems, batch)
                batch.rejected.append(sample)
                continue
            if chamber is None or sample.chamber in missing:
                batch.missing.append(sample)
                missing.add(sample.chamber)
                continue
            if chamber in work.chambers:
                batch.left.extend(samples[at:])
                return
            if sample.seq <= chamber.seq:
                batch.skipped.append(sample)
                continue
            chamber.pins += 1  # what the batch has resolved must not be evicted by what comes later in it
            work.chambers.append(chamber)
            try:
                fits = self._one(sample, chamber, batch, work, examined, room)
            except CacheFull:
                fits = False
            if not fits:
                batch.left.extend(samples[at:])
                return
            chamber.referenced = True

    def _one(
        self,
        sample: Sample,
        chamber: Chamber,
        batch: Batch,
        work: _Work,
        examined: dict[tuple[int, int], Examined],
        room: int,
    ) -> bool:
        """Takes one report into the batch, or to the rejected ones; False when the batch has no room."""
        known = examined.get(sample.key) if examined else None
        if known is None:
            well_formed = self._decode_well_formed(sample, chamber)
            if well_formed is not None:
                incoming, charts = well_formed
                if len(work.counts) + len(charts.slots) > room:
                    return False
                work.add(sample, chamber, charts, incoming)
                return True
            known = examined[sample.key] = examine(sample, self.limits)
        return self._take_examined(sample, chamber, known, batch, work, room)

    def _decode_well_formed(self, sample: Sample, chamber: Chamber) -> tuple[Incoming, ChartList] | None:
        """The fast way; None for what the slow way must look at."""
        try:
            incoming = wire.decode_incoming(sample.payload)
            if incoming.reset is not None or header_problem(incoming, sample, self.limits) is not None:
                return None
            raw, length = bytes(incoming.charts), len(incoming.counts)
            if len(incoming.units) != length:
                return None
            charts = chamber.lists.get(raw)
            if charts is None or charts.revision != self._revision:
                as_json = wire.is_json(sample.payload)
                charts = self.cache.resolve(chamber, raw, length=length, json=as_json)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return (incoming, charts) if charts is not None and len(charts.slots) == length else None

    def _take_examined(
        self, sample: Sample, chamber: Chamber, known: Examined, batch: Batch, work: _Work, room: int
    ) -> bool:
        if len(work.counts) + len(known.names or chamber.slots) > room:
            return False
        if known.reset is None:
            charts = self.cache.resolve_names(chamber, known.names)
        else:
            charts = self.cache.resolve_reset(chamber, known.names)
        if known.problems:
            self._reject(sample, known.problems, batch)
        if known.reset is None and not known.names:
            batch.rejected.append(sample)
        else:
            work.add_examined(sample, chamber, charts, known)
        return True

    def refuse(self, sample: Sample, batch: Batch) -> None:
        """Rejects a report that does not fit even when nothing is in flight: too many charts."""
        slots = self.cache.arena.shape.slots
        detail = f"the chamber has more charts than the cache of a worker ({slots}); raise CACHE_MB"
        self._reject(sample, [Problem(Reason.TOO_MANY_CHARTS, detail)], batch)
        batch.rejected.append(sample)

    def _reject(self, sample: Sample, problems: list[Problem], batch: Batch) -> None:
        batch.rejections.append(rejection(sample, problems, self.cache.names))
        batch.reasons.extend(problem.reason for problem in problems)

    def _run(self, batch: Batch, work: _Work) -> None:
        n, reports = len(work.counts), work.reports
        slots = np.frombuffer(work.slots, dtype=np.int32) if n else np.empty(0, dtype=np.int32)
        spec_ids = np.frombuffer(work.spec_ids, dtype=np.int32) if n else slots
        counts, units, ops = work.columns()
        landing, ordinals = [], []
        lengths = [len(report.charts.slots) for report in reports]
        for report in reports:
            chamber = report.chamber
            chamber.seq = report.sample.seq
            chamber.ordinal += 1
            ordinals.append(chamber.ordinal)
            landing.append((chamber, chamber.seq, chamber.ordinal))
            batch.judged.append(report.sample)
            batch.resets += report.reset is not None
        flight = batch.flight = self.flights.begin(landing, lengths, slots)
        arena, out = self.cache.arena, self._out
        kernel.judge(
            ops,
            slots,
            spec_ids,
            counts,
            units,
            np.repeat(np.array(ordinals, dtype=np.uint32), lengths),
            self._spec_rows,
            self.cache.depth,
            arena.state,
            arena.sums,
            arena.window,
            arena.journal[flight.region],
            *out.upto(n),
        )
        self.flights.judged(flight)
        batch.samples = int(n - ops.sum())
        self._encode(batch, work, ordinals, self._basis[spec_ids].tolist())

    def _encode(self, batch: Batch, work: _Work, ordinals: list[int], basis: list[int]) -> None:
        encode, ids = wire.msgpack_encoder.encode, self._id_prefixes
        revision, defender, epochs, positions = self._revision, self.defender, self.epochs, self.positions
        *judged, stage = self._out.lists(len(work.counts))
        columns: tuple[list[Any], ...] = (
            work.counts_as_integers(),
            work.units.tolist(),
            *judged,
            basis,
            stage,
        )
        by_report = zip(*(work.by_report(column) for column in columns), strict=True)
        for report, ordinal, samples in zip(work.reports, ordinals, by_report, strict=True):
            sample, partition = report.sample, report.sample.partition
            verdict = OutgoingVerdict(
                sample.chamber,
                sample.seq,
                ordinal,
                epochs[partition],
                revision,
                defender,
                report.run,
                report.at_ns,
                positions[partition],
                report.charts.packed,
                *samples,
            )
            if report.reset is not None:
                verdict.reset = report.reset
            message = (report.chamber.subject, f"{ids[partition]}{sample.seq}", encode(verdict))
            batch.verdicts.append(message)
            work.outgoing.append(verdict)
        for at in work.reports_of(np.flatnonzero(self._out.flags[: len(work.counts)])):
            self._alarm(batch, work, at)

    def _alarm(self, batch: Batch, work: _Work, at: int) -> None:
        report, outgoing = work.reports[at], work.outgoing[at]
        fields = {name: getattr(outgoing, name) for name in OutgoingVerdict.__struct_fields__}
        verdict = wire.Verdict(**fields | {"charts": report.charts.names})
        payload = wire.encode_alarm(verdict)
        assert payload is not None, "a chart signals"
        names = self.cache.names
        batch.alarms.append((names.alarm(verdict.chamber), message_id(names, report.sample), payload))


def message_id(names: Names, sample: Sample) -> str:
    """Its stream and sequence: by this streams drop repeats of a sample's verdict, alarm, rejection."""
    return f"{message_id_prefix(names, sample.partition)}{sample.seq}"


def message_id_prefix(names: Names, partition: int) -> str:
    """What the message IDs of a partition's samples begin with."""
    return f"{names.samples_stream(partition)}:"


def rejection(sample: Sample, problems: list[Problem], names: Names) -> Rejection:
    """The original bytes, with what is wrong with them in the headers."""
    shown: list[Any] = []
    size = 0
    for problem in problems:
        size += len(problem.detail) + 64
        if size > REASONS_BYTES_MAX and shown:
            break
        shown.append(msgspec.to_builtins(problem))
    bare = name_problem(sample.chamber)
    lines = {
        "Nats-Msg-Id": message_id(names, sample),
        "Tfdc-Reason": problems[0].reason.value,
        "Tfdc-Problems": json.dumps(shown),
        "Tfdc-Problems-Total": str(len(problems)),
        "Tfdc-Partition": str(sample.partition),
        "Tfdc-Seq": str(sample.seq),
    }
    headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
    return Rejection(names.reject(sample.chamber if bare is None else "_"), headers, sample.payload)


class _Work:
    """The samples of a batch as columns, in the order of judging."""

    def __init__(self) -> None:
        self.reports: list[_Report] = []
        self.outgoing: list[OutgoingVerdict] = []
        self.slots: array[int] = array("i")
        self.spec_ids: array[int] = array("i")
        self.counts: array[float] = array("d")
        self.units: array[float] = array("d")
        self._resets: list[tuple[int, int]] = []
        self.chambers: list[Chamber] = []
        """The chambers of the batch, each once, and pinned."""
        self._singles = True
        """Every report has exactly one sample."""

    def add(self, sample: Sample, chamber: Chamber, charts: ChartList, incoming: Incoming) -> None:
        self.slots.extend(charts.slots)
        self.spec_ids.extend(charts.spec_ids)
        self.counts.fromlist(incoming.counts)
        self.units.fromlist(incoming.units)
        at_ns = sample.received_ns if incoming.at is None else wire.time_ns(incoming.at, 0)
        self.reports.append(_Report(sample, chamber, charts, at_ns, incoming.run, None))
        if len(charts.slots) != 1:
            self._singles = False

    def add_examined(self, sample: Sample, chamber: Chamber, charts: ChartList, known: Examined) -> None:
        first, n = len(self.counts), len(charts.slots)
        self.slots.extend(charts.slots)
        self.spec_ids.extend(charts.spec_ids)
        if known.reset is None:
            self.counts.fromlist(known.counts)
            self.units.fromlist(known.units)
        else:
            self.counts.fromlist([0.0] * n)
            self.units.fromlist([1.0] * n)
            self._resets.append((first, first + n))
        self._singles = self._singles and n == 1
        self.reports.append(_Report(sample, chamber, charts, known.at_ns, known.run, known.reset))

    def unpin(self) -> None:
        for chamber in self.chambers:
            chamber.pins -= 1
        self.chambers.clear()

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
        """(counts, units, ops) of every sample."""
        n = len(self.counts)
        ops = np.full(n, SAMPLE, dtype=np.uint8)
        for first, last in self._resets:
            ops[first:last] = RESET
        if not n:
            return np.empty(0), np.empty(0), ops
        return np.frombuffer(self.counts), np.frombuffer(self.units), ops

    def suspects(self) -> list[_Report]:
        """Reports with a sample that no chart can judge, found in one pass over the columns."""
        if not self.counts:
            return []
        counts, units, _ = self.columns()
        good = (counts >= 0.0) & (counts <= wire.COUNT_MAX) & (counts == np.floor(counts))
        good &= (units >= wire.UNITS_MIN) & (units <= wire.UNITS_MAX)
        if good.all():
            return []
        return [self.reports[i] for i in self.reports_of(np.flatnonzero(~good))]

    def reports_of(self, samples: NDArray[np.int64]) -> list[int]:
        """The indices of the reports that these samples (by index) belong to."""
        if not len(samples):
            return []
        ends = np.cumsum([len(report.charts.slots) for report in self.reports])
        found: list[int] = np.unique(np.searchsorted(ends, samples, side="right")).tolist()
        return found

    def by_report(self, column: list[Any]) -> Iterable[Sequence[Any]]:
        """A column over all samples, cut into the reports' parts; a reset has none."""
        if len(column) == len(self.reports) and not self._resets and self._singles:
            return zip(column, strict=True)  # tuples of one, at a fifth of the time that slices take
        parts: list[list[Any]] = []
        first = 0
        for report in self.reports:
            last = first + len(report.charts.slots)
            parts.append(column[first:last] if report.reset is None else [])
            first = last
        return parts

    def counts_as_integers(self) -> list[int]:
        counts: list[int] = self.columns()[0].astype(np.int64).tolist()
        return counts


class _Columns(NamedTuple):
    u: list[float]
    centre: list[Any]
    lcl: list[Any]
    ucl: list[Any]
    flags: list[int]
    phase: list[int]
    stage: list[int]


class _Outputs:
    """The kernel's output columns, allocated once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.u, self.centre, self.lcl, self.ucl = (np.zeros(size) for _ in range(4))
        self.flags = np.zeros(size, dtype=np.uint16)
        self.phase = np.zeros(size, dtype=np.uint8)
        self.stage = np.zeros(size, dtype=np.uint32)

    def upto(self, n: int) -> tuple[NDArray[Any], ...]:
        columns = (self.u, self.centre, self.lcl, self.ucl, self.flags, self.phase, self.stage)
        return tuple(column[:n] for column in columns)

    def lists(self, n: int) -> _Columns:
        """The columns as Python lists; null where a chart has no limits yet (NaN in the arrays)."""
        columns = _Columns(*(column.tolist() for column in self.upto(n)))
        for i in np.flatnonzero(self.phase[:n] == 0).tolist():
            columns.centre[i] = columns.lcl[i] = columns.ucl[i] = None
        return columns
