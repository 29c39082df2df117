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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kernels import judge as kernel
from kernels.state import DESIGN_MEANS, PART_FROZE, SPEC, RuleCounts, spec_row
from runtime import wire
from runtime.alarms import AlarmRules, alarm_of
from runtime.cache import Cache, CacheFull, Chamber, ChartList
from runtime.examine import Examined, Limits, examine, header_problem
from runtime.flight import Flight, FlightLog
from runtime.frames import Message
from runtime.names import Names, name_problem
from runtime.outputs import Outputs, left_out
from runtime.specs import Specs, designs_of
from runtime.specs import compile as compile_specs
from runtime.wire import DetailedVerdict, Incoming, OutgoingVerdict, Problem, Reason
from runtime.work import Report, Work

BATCH_SAMPLES_MAX: Final = 16_384
"""Samples of one kernel call: four of the largest reports; its undo journal is 3 MB."""
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
    told: list[tuple[str, str]] = field(default_factory=list)
    """(event, severity) of each chart in the alarms."""
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
        self._designs: NDArray[np.float64] = np.empty((0, 3, len(DESIGN_MEANS)))
        self._basis: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._rules = AlarmRules(cache.specs)
        slots = cache.arena.journal["slot"]
        self._was_open = slots["alarmed"]
        """(flights, samples), of each sample's chart before it."""
        self._out = Outputs(min(BATCH_SAMPLES_MAX, cache.arena.shape.samples))
        partitions = range(cache.names.partitions)
        self._id_prefixes = [message_id_prefix(cache.names, partition) for partition in partitions]

    def judge(self, samples: Sequence[Sample]) -> Batch:
        """Judges as many of *samples*, in order, as fit; changes the cache. See the module for the rest."""
        if self._revision != self.cache.revision:
            self._revision = self.cache.revision
            self._use(self.cache.specs)
        batch, work = Batch(), Work()
        examined: dict[tuple[int, int], Examined] = {}
        self._decode(samples, batch, work, examined)
        suspects = work.suspects()
        if suspects:
            for report in suspects:
                examined[report.sample.key] = examine(report.sample, self.limits)
            work.unpin()
            batch, work = Batch(), Work()
            self._decode(samples, batch, work, examined)
            assert not work.suspects(), "what was examined is good"
        if work.reports:
            self._run(batch, work)
        work.unpin()
        return batch

    def _use(self, specs: Specs) -> None:
        compiled = compile_specs(specs)
        for row in compiled:
            row["counts"] = RuleCounts(*row["counts"])
        rows = [spec_row(**row) for row in compiled]
        self._spec_rows = np.array(rows, dtype=SPEC)
        self._basis = self._spec_rows["basis"].copy()
        self._designs = np.array(designs_of(specs), dtype=np.float64).reshape(-1, 3, len(DESIGN_MEANS))
        self._rules = AlarmRules(specs)
        self._spec_rows["end_after"][~self._rules.episodic] = 1  # what an earlier revision left open

    def _decode(
        self, samples: Sequence[Sample], batch: Batch, work: Work, examined: dict[tuple[int, int], Examined]
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
        work: Work,
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
        self, sample: Sample, chamber: Chamber, known: Examined, batch: Batch, work: Work, room: int
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

    def _run(self, batch: Batch, work: Work) -> None:
        n, reports = len(work.counts), work.reports
        slots = np.frombuffer(work.slots, dtype=np.int32) if n else np.empty(0, dtype=np.int32)
        spec_ids = np.frombuffer(work.spec_ids, dtype=np.int32) if n else slots
        counts, units, ops = work.columns()
        landing, ordinals = [], []
        for report in reports:
            chamber = report.chamber
            chamber.seq = report.sample.seq
            chamber.ordinal += 1
            ordinals.append(chamber.ordinal)
            landing.append((chamber, chamber.seq, chamber.ordinal))
            batch.judged.append(report.sample)
            batch.resets += report.reset is not None
        flight = batch.flight = self.flights.begin(landing, work.lengths, slots)
        arena = self.cache.arena
        of_samples = np.repeat(np.array(ordinals, dtype=np.uint32), work.lengths)
        kernel.judge(
            ops,
            slots,
            spec_ids,
            counts,
            units,
            of_samples,
            self._spec_rows,
            self._designs,
            self.cache.depth,
            arena.state,
            arena.sums,
            arena.carried,
            arena.window,
            arena.journal[flight.region],
            *self._out.upto(n),
        )
        signals = self._alert(work, flight, ops, slots, spec_ids, of_samples)
        self.flights.judged(flight)
        batch.samples = int(n - ops.sum())
        self._encode(batch, work, ordinals, self._basis[spec_ids].tolist(), signals)

    def _alert(
        self,
        work: Work,
        flight: Flight,
        ops: NDArray[np.uint8],
        slots: NDArray[np.int32],
        spec_ids: NDArray[np.int32],
        ordinals: NDArray[np.uint32],
    ) -> NDArray[np.uint16] | None:
        """Carries the episodes of the batch on; the flags that signal, None where there is none and no open
        alarm either."""
        n, out, arena, rules = len(ops), self._out, self.cache.arena, self._rules
        flags, was_open = out.flags[:n], self._was_open[flight.region, :n]
        if not np.count_nonzero(was_open) and not np.count_nonzero(flags):  # a fifth of the time of any()
            return None
        signals = rules.signals(flags, spec_ids, work.lengths, out.parts[:n], out.details[:n])
        kernel.alert(
            ops,
            ((signals != 0) & rules.episodic[spec_ids]).astype(np.uint8),
            slots,
            spec_ids,
            ordinals,
            np.repeat(np.array([report.at_ns for report in work.reports], dtype=np.int64), work.lengths),
            self._spec_rows,
            arena.state,
            arena.carried,
            arena.journal[flight.region],
            out.parts[:n],
            out.details[:n],
        )
        return signals

    def _encode(
        self,
        batch: Batch,
        work: Work,
        ordinals: list[int],
        basis: list[int],
        signals: NDArray[np.uint16] | None,
    ) -> None:
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
        details = self._details(batch, work, ordinals, signals)
        for at, (report, ordinal, samples) in enumerate(zip(work.reports, ordinals, by_report, strict=True)):
            sample, partition = report.sample, report.sample.partition
            more = details.get(at) if details else None
            kind = OutgoingVerdict if more is None else DetailedVerdict
            verdict = kind(
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
            if more is not None:
                for name, column in more:
                    setattr(verdict, name, column)
            message = (report.chamber.subject, f"{ids[partition]}{sample.seq}", encode(verdict))
            batch.verdicts.append(message)
            if isinstance(verdict, DetailedVerdict) and (verdict.event or verdict.severity):
                self._alarm(batch, report, verdict)

    def _details(
        self, batch: Batch, work: Work, ordinals: list[int], signals: NDArray[np.uint16] | None
    ) -> dict[int, list[tuple[str, Any]]]:
        """(field, column) of the verdicts that have more than the plain columns, by the report's index."""
        n, out = len(work.counts), self._out
        parts, flags = out.parts[:n], out.flags[:n]
        if signals is None and not np.count_nonzero(parts):
            return {}
        found: dict[int, list[tuple[str, Any]]] = {}
        columns, ends = out.detailed(n), list(accumulate(work.lengths))
        told = None if signals is None else signals.tolist()
        for at in work.reports_of(np.flatnonzero(parts | (flags != 0))):
            first, last = ends[at] - work.lengths[at], ends[at]
            union = int(np.bitwise_or.reduce(parts[first:last]))
            fields: list[tuple[str, Any]] = columns.of_report(first, last, union)
            if told is not None and flags[first:last].any():
                pairs = zip(work.spec_ids[first:last], told[first:last], strict=True)
                fields.append(("severity", [self._rules.severity(*pair) for pair in pairs]))
            if work.reports[at].reset is not None:
                fields.append(
                    ("charts", msgspec.Raw(wire.msgpack_encoder.encode(work.reports[at].charts.names)))
                )
            if union & PART_FROZE:
                fields.append(("excluded", self._left_out(batch, work.reports[at], ordinals[at], first)))
            found[at] = fields
        return found

    def _left_out(self, batch: Batch, report: Report, ordinal: int, first: int) -> dict[str, list[int]]:
        """By chart, the ordinals that it left out of its baseline with this report."""
        assert batch.flight is not None
        arena, journal = self.cache.arena, self.cache.arena.journal[batch.flight.region]
        found = {}
        for i, (name, slot) in enumerate(zip(report.charts.names, report.charts.slots, strict=True)):
            if self._out.parts[first + i] & PART_FROZE:
                past = journal[first + i]
                ordinals = left_out(arena.state[slot], arena.window[slot], past, ordinal, self.cache.depth)
                if ordinals:
                    found[name] = ordinals
        return found

    def _alarm(self, batch: Batch, report: Report, outgoing: DetailedVerdict) -> None:
        fields = {name: getattr(outgoing, name) for name in DetailedVerdict.__struct_fields__}
        alarm = alarm_of(wire.Verdict(**fields | {"charts": report.charts.names}))
        if alarm is not None:
            names = self.cache.names
            payload = wire.json_encoder.encode(alarm)
            batch.alarms.append((names.alarm(alarm.chamber), message_id(names, report.sample), payload))
            batch.told.extend((chart.event, chart.severity) for chart in alarm.charts)


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
