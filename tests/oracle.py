"""The whole system judged naively: from the messages of SAMPLES, in order, to the verdict of each.

Plain Python over `tests.kernels.oracle`, one chart an object, written from the description of the wire and
not from the code that judges. It holds what the streams have against what they should have::

    oracle = Oracle(window=32, depth=256, specs={0: Specs(), 7: applied})
    differences = oracle.compare(await read_all(connection, names))

Which revision of the specs judged a sample is the defender's to say (a change takes effect when it reaches
a worker), so it is taken from the verdict; it may never go back within a chamber.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from runtime.specs import ChartSpec, Specs, compile, designs_of
from runtime.specs import basis as basis_of
from tests.kernels.oracle import Chart, Counts, Detail, Spec

DAY_NS = 86_400 * 10**9
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stored(NamedTuple):
    """A message of a stream. *time_ns* is when the server stored it."""

    stream: str
    seq: int
    subject: str
    payload: bytes
    headers: dict[str, str]
    time_ns: int

    @property
    def partition(self) -> int:
        return int(self.subject.split(".")[2])

    @property
    def chamber(self) -> str:
        return self.subject.rpartition(".")[2]


@dataclass
class Streams:
    """All that the streams of a fleet hold, each in its order."""

    samples: list[Stored] = field(default_factory=list)
    verdicts: list[Stored] = field(default_factory=list)
    alarms: list[Stored] = field(default_factory=list)
    rejected: list[Stored] = field(default_factory=list)


@dataclass
class Looked:
    """What a report says: its good samples (chart, count, units), or a reset, and what is wrong with it."""

    samples: list[tuple[str, float, float]] = field(default_factory=list)
    reset: str | None = None
    reset_charts: list[str] | None = None
    run: str = ""
    at_ns: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def judged(self) -> bool:
        return self.reset is not None or bool(self.samples)


def name_is_possible(name: object) -> bool:
    """One token of a subject, up to 64 bytes of UTF-8, without a character that no subject can carry."""
    if not isinstance(name, str) or not name:
        return False
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    bad = any(c.isspace() or c in ".*>" or ord(c) < 32 or ord(c) == 127 for c in name)
    return size <= 64 and not bad


def look(message: Stored, bytes_max: int = 262_144) -> Looked:
    """Reads one report as `docs/wire.md` describes it, value by value."""
    chamber, payload = message.chamber, message.payload
    if not name_is_possible(chamber):
        return Looked(reasons=["chamber_name"])
    if len(payload) > bytes_max:
        return Looked(reasons=["too_large"])
    try:
        is_json = payload[:1] != b"" and payload[:1] in b"{ \t\r\n"
        decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
        report = decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Looked(reasons=["undecodable"])
    if not isinstance(report, dict):
        return Looked(reasons=["wrong_type"])
    wrong = _header_reason(report, message)
    if wrong is not None:
        return Looked(reasons=[wrong])
    looked = Looked(run=report.get("run") or "", at_ns=_at_ns(report.get("at"), message.time_ns))
    whole = _look_samples if report.get("reset") is None else _look_reset
    wrong = whole(report, looked)
    if wrong is not None:
        return Looked(reasons=[*looked.reasons, wrong])
    return looked


def _header_reason(report: dict[Any, Any], message: Stored) -> str | None:
    for name in ("run", "chamber", "reset"):
        if report.get(name) is not None and not isinstance(report[name], str):
            return "wrong_type"
    try:
        at_ns = _at_ns(report.get("at"), message.time_ns)
    except (TypeError, ValueError):
        return "wrong_type"
    if report.get("chamber") is not None and report["chamber"] != message.chamber:
        return "chamber_mismatch"
    if len(report.get("run") or "") > 256:
        return "run_name"
    if not -31 * DAY_NS <= at_ns - message.time_ns <= 3600 * 10**9:
        return "time_far_off"
    return None


def _at_ns(at: Any, received_ns: int) -> int:
    """Nanoseconds since 1970 of what a report gives as its time. Raises TypeError, ValueError."""
    if at is None:
        return received_ns
    if type(at) is int:
        return at
    moment = at if isinstance(at, datetime) else datetime.fromisoformat(at)
    if moment.tzinfo is None:
        raise ValueError("no offset")
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def _look_names(charts: object, looked: Looked) -> list[tuple[int, str]] | str:
    """(index, name) of the charts whose names can be; a reason when the list as a whole cannot."""
    if not isinstance(charts, list):
        return "wrong_type"
    if len(charts) > 4096:
        return "too_many_charts"
    good: list[tuple[int, str]] = []
    seen: set[str] = set()
    # All wrong types come first in the list of problems, then the names.
    looked.reasons += ["wrong_type" for chart in charts if not isinstance(chart, str)]
    for index, chart in enumerate(charts):
        if not isinstance(chart, str):
            continue
        if not name_is_possible(chart):
            looked.reasons.append("chart_name")
        elif chart in seen:
            looked.reasons.append("chart_twice")
        else:
            good.append((index, chart))
        seen.add(chart)
    return good


def _look_reset(report: dict[Any, Any], looked: Looked) -> str | None:
    if not report["reset"]:
        return "empty"
    if report.get("counts") or report.get("units"):
        return "reset_with_samples"
    if report.get("charts") is not None:
        good = _look_names(report["charts"], looked)
        if isinstance(good, str):
            return good
        if not good:
            return "empty"
        looked.reset_charts = [chart for _, chart in good]
    looked.reset = report["reset"]
    return None


def _look_samples(report: dict[Any, Any], looked: Looked) -> str | None:
    if any(report.get(name) is None for name in ("charts", "counts", "units")):
        return "missing_field"
    charts, counts, units = report["charts"], report["counts"], report["units"]
    good = _look_names(charts, looked)
    if isinstance(good, str):
        return good
    if not isinstance(counts, list) or not isinstance(units, list):
        return "wrong_type"
    if not len(charts) == len(counts) == len(units):
        return "lengths_differ"
    if not charts:
        return "empty"
    for index, chart in good:
        wrong = _sample_reason(counts[index], units[index])
        if wrong is None:
            looked.samples.append((chart, float(counts[index]), float(units[index])))
        else:
            looked.reasons.append(wrong)
    return None


def _sample_reason(count: Any, units: Any) -> str | None:
    for value in (count, units):
        if type(value) not in (int, float):
            return "wrong_type"
        if not math.isfinite(value):
            return "not_finite"
    if count < 0:
        return "count_negative"
    if count != math.floor(count):
        return "count_fractional"
    if count >= 2**53:
        return "count_too_large"
    if units <= 0:
        return "units_not_positive"
    if not 2.0**-20 <= units <= 2.0**40:
        return "units_out_of_range"
    return None


def spec_of(specs: Specs, chamber: str, chart: str) -> ChartSpec:
    """The first entry whose globs match; the default at the end."""
    for entry in specs.charts:
        if fnmatchcase(chamber, entry.chamber) and fnmatchcase(chart, entry.chart):
            return entry
    return specs.default


SEVERITIES = ("", "info", "warning", "critical")
EVENTS = ("", "begin", "again", "end")


def severity_of(spec: ChartSpec, flags: int) -> str:
    """The highest severity of the rules that signal; empty where none does."""
    found = [""]
    for rule in (bit + 1 for bit in range(16) if flags >> bit & 1):
        found.append(spec.alarm.severity.get(rule) or ("critical" if rule == 1 else "warning"))
    return max(found, key=SEVERITIES.index)


def is_discovery(p: float, rate: float, all_p: Iterable[float]) -> bool:
    """Whether Benjamini and Hochberg's procedure rejects the hypothesis of *p* among *all_p* at *rate*."""
    ordered = sorted(all_p)
    m = len(ordered)
    fulfilled = [value for k, value in enumerate(ordered, 1) if value <= k / m * rate]
    return bool(fulfilled) and p <= max(fulfilled)


@dataclass
class Line:
    """One chart of an expected verdict; of a reset, of a chart whose alarm it ends."""

    count: int
    units: float
    u: float
    centre: float | None
    lcl: float | None
    ucl: float | None
    flags: int
    phase: int
    basis: int
    stage: int


NOTHING = Detail()


@dataclass
class More:
    """What only some charts have besides."""

    detail: Detail = NOTHING
    severity: str = ""
    excluded: list[int] = field(default_factory=list)
    told: bool = False
    """Whether the chart is in the report's alarm."""


class Oracle:
    """Judges chambers report by report. *specs* by their revision; *depth* and *window* as configured."""

    def __init__(self, *, window: int, depth: int, specs: Mapping[int, Specs]) -> None:
        self._window, self._depth, self._specs = window, depth, specs
        self._charts: dict[tuple[str, str], Chart] = {}
        self._ordinals: dict[str, int] = defaultdict(int)
        self._designs: dict[tuple[int, Any], Any] = {}

    def judge(
        self, chamber: str, looked: Looked, revision: int
    ) -> tuple[int, dict[str, Line], dict[str, More]]:
        """(ordinal, lines by chart, what they have besides) of one report that is not wholly rejected."""
        self._ordinals[chamber] += 1
        ordinal = self._ordinals[chamber]
        for (owner, _), chart in self._charts.items():
            if owner == chamber and chart.remembered and chart.remembered[-1].ordinal < ordinal - self._depth:
                chart.alarm = None  # the history has forgotten it
        if looked.reset is not None:
            ended = {}
            for (owner, name), chart in self._charts.items():
                if owner == chamber and (looked.reset_charts is None or name in looked.reset_charts):
                    chart.reset()
                    detail = chart.alert(None, False, ordinal, looked.at_ns)
                    if detail.event:
                        ended[name] = More(detail, told=True)
            return ordinal, {}, ended
        lines, more = {}, {}
        for name, count, units in looked.samples:
            chart = self._charts.setdefault((chamber, name), Chart(self._depth, self._window))
            before = [one for one in chart.remembered if one.ordinal >= ordinal - self._depth]
            spec = spec_of(self._specs[revision], chamber, name)
            judged = chart.judge(self._rules(revision, spec), count, units, ordinal)
            centre, lcl, ucl = (
                None if math.isnan(value) else value for value in (judged.centre, judged.lcl, judged.ucl)
            )
            lines[name] = Line(
                int(count), units, judged.u, centre, lcl, ucl, judged.flags, judged.phase,
                basis_of(spec), judged.stage,
            )  # fmt: skip
            more[name] = More(judged.detail)
            if judged.detail.froze:
                more[name].excluded = [one.ordinal for one in before if not one.usable]
        self._alert(chamber, looked, revision, ordinal, lines, more)
        return ordinal, lines, more

    def _alert(
        self,
        chamber: str,
        looked: Looked,
        revision: int,
        ordinal: int,
        lines: Mapping[str, Line],
        more: Mapping[str, More],
    ) -> None:
        specs = {name: spec_of(self._specs[revision], chamber, name) for name in lines}
        tested = {name: one.detail.p for name, one in more.items() if specs[name].alarm.fdr is not None}
        all_p = [p for p in tested.values() if p is not None]
        for name, line in lines.items():
            spec, one, signal = specs[name], more[name], line.flags
            p, rate = tested.get(name), spec.alarm.fdr
            if p is not None and rate is not None and not is_discovery(p, rate, all_p):
                signal &= ~1
            one.severity = severity_of(spec, signal)
            every = spec.alarm.mode.value == "every"
            rules = self._rules(revision, spec)
            rules = replace(rules, end_after=1) if every else rules
            chart = self._charts[chamber, name]
            alarm = chart.alert(rules, bool(signal) and not every, ordinal, looked.at_ns)
            names = ("event", "quiet", "episode", "alerted", "alerted_at")
            one.detail = replace(one.detail, **{field: getattr(alarm, field) for field in names})
            one.told = alarm.event > 0 or (every and signal > 0)

    def _rules(self, revision: int, spec: ChartSpec) -> Spec:
        """A spec as the charts' own oracle takes it."""
        if (revision, spec.shifts) not in self._designs:
            specs = self._specs[revision]
            number = compile(specs)[[*specs.charts, specs.default].index(spec)]["design"]
            self._designs[revision, spec.shifts] = designs_of(specs)[number] if number >= 0 else None
        return Spec(
            spec.baseline.value,
            k=spec.k,
            rules=frozenset(spec.rules_in_force),
            centre=spec.centre or 0.0,
            phase_one=spec.phase_one,
            minimum=spec.minimum,
            basis=basis_of(spec),
            limits=spec.limits.value,
            alpha=spec.alpha,
            sigma_z=spec.sigma_z or 1.0,
            sigma_z_floor=spec.sigma_z_floor or 0.0,
            screens=spec.screen_ranges,
            predicts=spec.start.value == "predict",
            tests=spec.alarm.fdr is not None,
            counts=Counts(*spec.rule_counts),
            cusum_ratio=spec.cusum.ratio if spec.cusum else 1.0,
            cusum_head_start=spec.cusum.head_start if spec.cusum else 0.5,
            ewma_weight=spec.ewma.weight if spec.ewma else 0.0,
            design=self._designs[revision, spec.shifts],
            again_reports=spec.alarm.again_after_reports,
            again_ns=round(spec.alarm.again_after_s * 1e9),
            end_after=spec.alarm.end_after,
        )

    def compare(self, streams: Streams, bytes_max: int = 262_144) -> list[str]:
        """Every difference between what the streams have and what they should have."""
        found = _Found(streams)
        problems = found.problems
        newest: dict[str, int] = {}
        for message in streams.samples:
            key, looked = (message.stream, message.seq), look(message, bytes_max)
            here = f"sample {message.seq} of {message.chamber!r}"
            found.expect_rejection(key, here, looked, message)
            verdict = found.verdicts.pop(key, None)
            if not looked.judged:
                problems += [f"{here}: judged, though it is {looked.reasons}"] if verdict else []
                continue
            if verdict is None:
                problems.append(f"{here}: no verdict")
                continue
            chamber = message.chamber
            if verdict["spec"] < newest.get(chamber, 0):
                problems.append(f"{here}: specs went back from {newest[chamber]} to {verdict['spec']}")
            newest[chamber] = verdict["spec"]
            ordinal, lines, more = self.judge(chamber, looked, verdict["spec"])
            problems += [f"{here}: {wrong}" for wrong in differences(verdict, looked, ordinal, lines)]
            problems += [f"{here}: {wrong}" for wrong in differences_besides(verdict, more)]
            found.expect_alarm(key, here, lines, more, verdict)
        return [*problems, *found.left_over()]


def differences(
    verdict: Mapping[str, Any], looked: Looked, ordinal: int, lines: Mapping[str, Line]
) -> list[str]:
    """Where one verdict is not what it should be. Floats must be the same to the last bit."""
    wrong = []
    if verdict["ordinal"] != ordinal:
        wrong.append(f"ordinal {verdict['ordinal']}, expected {ordinal}")
    if verdict.get("run", "") != looked.run:
        wrong.append(f"run {verdict.get('run')!r}, expected {looked.run!r}")
    if verdict.get("at", 0) != looked.at_ns:
        wrong.append(f"at {verdict.get('at')}, expected {looked.at_ns}")
    if verdict.get("reset") != looked.reset:
        wrong.append(f"reset {verdict.get('reset')!r}, expected {looked.reset!r}")
    charts = verdict.get("charts", [])
    if looked.reset is not None:
        # Which charts it resets is what is remembered of the chamber; their later verdicts tell.
        filled = [name for name in ("counts", "units", "u", "centre", "flags") if verdict.get(name)]
        return [*wrong, f"a reset with {filled}"] if filled else wrong
    if charts != list(lines):
        return [*wrong, f"charts {charts}, expected {list(lines)}"]
    names = {"count": "counts"}
    for index, (chart, line) in enumerate(lines.items()):
        for name in Line.__dataclass_fields__:
            value, expected = verdict[names.get(name, name)][index], getattr(line, name)
            if value != expected or (value is None) != (expected is None):
                wrong.append(f"{chart}: {name} {value!r}, expected {expected!r}")
    return wrong


FLOATS = (
    "p", "sigma_z", "cusum_up", "cusum_down", "cusum_limit_up", "cusum_limit_down", "ewma", "ewma_variance",
    "ewma_lcl", "ewma_ucl", "typical_units",
)  # fmt: skip
WHOLE = ("mark", "event", "episode", "alerted", "alerted_at", "quiet")


def differences_besides(verdict: Mapping[str, Any], more: Mapping[str, More]) -> list[str]:
    """Where the columns that only some verdicts have are not what they should be: p to 1e-9, the others to
    the last bit."""
    wrong = []
    charts: list[str] = verdict.get("charts", [])
    ended = {name for name, one in more.items() if one.told}
    if verdict.get("reset") is not None and not ended <= set(charts):
        wrong.append(f"a reset of {charts} ends the alarms of {ended}")
    for index, chart in enumerate(charts):
        one = more.get(chart, More())
        expected = {**{name: getattr(one.detail, name) for name in FLOATS}, "severity": one.severity}
        expected |= {name: getattr(one.detail, name) or 0 for name in WHOLE}
        for name, value in expected.items():
            column = verdict.get(name)
            told = column[index] if column else {"severity": ""}.get(name, None if name in FLOATS else 0)
            is_close = name == "p" and None not in (told, value) and math.isclose(told, value, rel_tol=1e-9)
            if told != value and not is_close:
                wrong.append(f"{chart}: {name} {told!r}, expected {value!r}")
    excluded = {name: one.excluded for name, one in more.items() if one.excluded}
    if verdict.get("excluded", {}) != excluded:
        wrong.append(f"excluded {verdict.get('excluded')}, expected {excluded}")
    present = [name for name in (*FLOATS, *WHOLE, "severity") if name in verdict]
    wrong += [
        f"{name} has {len(verdict[name])} entries" for name in present if len(verdict[name]) != len(charts)
    ]
    return wrong


class _Found:
    """The streams' messages by the sample that they are of."""

    def __init__(self, streams: Streams) -> None:
        self.problems: list[str] = []
        self._sample_stream = {m.partition: m.stream for m in streams.samples}
        self.verdicts = self._verdicts(streams.verdicts)
        self.alarms = self._alarms(streams.alarms, streams.samples)
        self.rejected = self._rejected(streams.rejected)
        self._check_positions(streams)

    def _verdicts(self, messages: Iterable[Stored]) -> dict[tuple[str, int], dict[str, Any]]:
        by_key: dict[tuple[str, int], dict[str, Any]] = {}
        last: dict[str, tuple[int, int]] = {}
        for message in messages:
            verdict = msgspec.msgpack.decode(message.payload)
            stream = self._sample_stream.get(message.partition, "?")
            key, chamber = (stream, verdict["seq"]), verdict["chamber"]
            if chamber != message.chamber:
                self.problems.append(f"verdict {message.seq} of {chamber!r} is at {message.subject}")
            if key in by_key:
                self.problems.append(f"sample {verdict['seq']} of {chamber!r} has two verdicts")
            seq, epoch = last.get(chamber, (0, 0))
            if verdict["seq"] <= seq:
                self.problems.append(f"verdict of {chamber!r}: sample {verdict['seq']} after {seq}")
            if verdict["epoch"] < epoch:
                self.problems.append(f"verdict of {chamber!r}: epoch {verdict['epoch']} after {epoch}")
            last[chamber] = verdict["seq"], verdict["epoch"]
            by_key[key] = verdict
        return by_key

    def _alarms(self, messages: Iterable[Stored], samples: list[Stored]) -> dict[tuple[str, int], Any]:
        stream_of = {message.chamber: message.stream for message in samples}
        by_key: dict[tuple[str, int], Any] = {}
        for message in messages:
            alarm = json.loads(message.payload)
            key = (stream_of.get(alarm["chamber"], "?"), alarm["seq"])
            if key in by_key:
                self.problems.append(f"sample {alarm['seq']} of {alarm['chamber']!r} has two alarms")
            by_key[key] = alarm
        return by_key

    def _rejected(self, messages: Iterable[Stored]) -> dict[tuple[str, int], Stored]:
        by_key: dict[tuple[str, int], Stored] = {}
        for message in messages:
            partition, seq = int(message.headers["Tfdc-Partition"]), int(message.headers["Tfdc-Seq"])
            key = (self._sample_stream.get(partition, "?"), seq)
            if key in by_key:
                self.problems.append(f"sample {seq} of partition {partition} was rejected twice")
            by_key[key] = message
        return by_key

    def _check_positions(self, streams: Streams) -> None:
        """Up to the position that a verdict carries, everything of its partition was stored before it."""
        judged: dict[int, list[int]] = defaultdict(list)
        for message in streams.samples:
            if (message.stream, message.seq) in self.verdicts:
                judged[message.partition].append(message.seq)
        stored: dict[int, set[int]] = defaultdict(set)
        complete: Counter[int] = Counter()  # of judged[partition], how many are stored from the first on
        for message in streams.verdicts:
            verdict, partition = msgspec.msgpack.decode(message.payload), message.partition
            order, have = judged[partition], stored[partition]
            while complete[partition] < len(order) and order[complete[partition]] in have:
                complete[partition] += 1
            at = complete[partition]
            if at < len(order) and order[at] <= verdict.get("position", 0):
                self.problems.append(
                    f"verdict of sample {verdict['seq']}: position {verdict['position']}, "
                    f"but sample {order[at]} of partition {partition} is not stored yet"
                )
            have.add(verdict["seq"])

    def expect_rejection(self, key: tuple[str, int], here: str, looked: Looked, message: Stored) -> None:
        rejection = self.rejected.pop(key, None)
        if not looked.reasons:
            self.problems += [f"{here}: rejected, though nothing is wrong with it"] if rejection else []
        elif rejection is None:
            self.problems.append(f"{here}: not rejected, though it is {looked.reasons}")
        else:
            reasons = [p["reason"] for p in json.loads(rejection.headers["Tfdc-Problems"])]
            if sorted(reasons) != sorted(looked.reasons):
                self.problems.append(f"{here}: rejected for {reasons}, expected {looked.reasons}")
            if rejection.headers["Tfdc-Reason"] != reasons[0]:
                self.problems.append(f"{here}: Tfdc-Reason is not the first of {reasons}")
            if rejection.payload != message.payload:
                self.problems.append(f"{here}: the rejected bytes are not the original ones")

    def expect_alarm(
        self,
        key: tuple[str, int],
        here: str,
        lines: Mapping[str, Line],
        more: Mapping[str, More],
        verdict: Mapping[str, Any],
    ) -> None:
        alarm = self.alarms.pop(key, None)
        expected = {}
        for chart, one in more.items():
            if one.told:
                flags = lines[chart].flags if chart in lines else 0
                event = EVENTS[one.detail.event]
                severity = "info" if event == "end" else one.severity
                rules = [bit + 1 for bit in range(16) if flags >> bit & 1]
                expected[chart] = (rules, event, severity, one.detail.episode or 0)
        fields = ("rules", "event", "severity", "since")
        told = {one["chart"]: tuple(one[name] for name in fields) for one in alarm["charts"]} if alarm else {}
        if told != expected:
            self.problems.append(f"{here}: alarm of {told}, expected {expected}")
        if alarm and alarm["epoch"] != verdict["epoch"]:
            self.problems.append(f"{here}: alarm of epoch {alarm['epoch']}, verdict {verdict['epoch']}")
        severities = [severity for _, _, severity, _ in expected.values()]
        if alarm and alarm["severity"] != max(severities, key=SEVERITIES.index, default=""):
            self.problems.append(f"{here}: alarm of severity {alarm['severity']}, its charts {severities}")

    def left_over(self) -> list[str]:
        """What is of no sample at all."""
        groups = {"verdict": self.verdicts, "alarm": self.alarms, "rejection": self.rejected}
        return [f"{kind} of no sample: {key}" for kind, group in groups.items() for key in group]
