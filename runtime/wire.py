"""The messages: reports in, verdicts, alarms and rejections out.

A report is JSON or MessagePack, told apart by its first byte. A verdict is MessagePack with plain arrays,
one entry a chart; an alarm is JSON for people. `docs/wire.md` has the schema and its rules of evolution:
fields are only ever added, with a default; a reader ignores what it does not know; ``v`` rises only when
an old reader would misread a message.

Decoding has a fast way for the well-formed (one typed decode, checks over whole arrays) and a slow one
that is taken only when the fast one refuses: it looks at each chart by itself, so that one bad chart
does not take the good ones of its report with it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct

from runtime.names import name_problem

SCHEMA_VERSION: Final = 1
COUNT_MAX: Final = 2**53 - 1
"""The largest count that no other whole number becomes when it is read as a float64."""
UNITS_MIN: Final = 2.0**-20
UNITS_MAX: Final = 2.0**40
"""Bounds of the units: between them every float64 sum of a window is exact in 128 bits of fixed point."""
CHARTS_MAX: Final = 4096
RUN_CHARACTERS_MAX: Final = 256
EVENTS: Final = ("", "begin", "again", "end")
"""What an alarm says of a chart's episode, by the number in ``Verdict.event``; empty where there is none."""
SEVERITIES: Final = ("info", "warning", "critical")
"""In rising order. The end of an episode is ``info``."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Time = Annotated[datetime, Meta(tz=True)] | int


class Reason(StrEnum):
    """Why a report, or one chart of it, was rejected."""

    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    LENGTHS_DIFFER = "lengths_differ"
    EMPTY = "empty"
    TOO_MANY_CHARTS = "too_many_charts"
    CHART_NAME = "chart_name"
    CHART_TWICE = "chart_twice"
    CHAMBER_MISMATCH = "chamber_mismatch"
    CHAMBER_NAME = "chamber_name"
    RUN_NAME = "run_name"
    TIME_FAR_OFF = "time_far_off"
    NOT_FINITE = "not_finite"
    COUNT_NEGATIVE = "count_negative"
    COUNT_FRACTIONAL = "count_fractional"
    COUNT_TOO_LARGE = "count_too_large"
    UNITS_NOT_POSITIVE = "units_not_positive"
    UNITS_OUT_OF_RANGE = "units_out_of_range"
    RESET_WITH_SAMPLES = "reset_with_samples"


class Problem(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with a report; *chart* is its index in the report, -1 for the whole report."""

    reason: Reason
    detail: str
    chart: int = -1


class Report(Struct, frozen=True, omit_defaults=True):
    """What host software publishes: the counts of one run of one chamber, or a reset.

    ``at`` is RFC 3339 with an offset, or nanoseconds since 1970; the server's time of receipt without it.
    ``counts[i]`` nonconformities were found on ``units[i]`` inspection units of ``charts[i]``.
    With ``reset`` (the reason of it) the report carries no samples: the named charts, or all of the
    chamber, start a new stage.
    """

    charts: list[str] = []
    counts: list[int] = []
    units: list[float] = []
    run: str = ""
    at: Time | None = None
    reset: str | None = None
    chamber: str | None = None


class Incoming(Struct, gc=False):
    """A report as the hot path decodes it: the chart list stays as it came (one look-up a report)."""

    charts: Raw = Raw()
    counts: list[float] = []
    units: list[float] = []
    run: str = ""
    at: Time | None = None
    reset: str | None = None
    chamber: str | None = None


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What was judged of one report; entry i of each array belongs to ``charts[i]``.

    ``centre``, ``lcl`` and ``ucl`` are null while a chart is still learning (phase 0). ``flags`` has bit
    r-1 set when rule r signals: Nelson's 1 to 8, CUSUM 9 and 10, EWMA 11 and 12. ``seq`` is the sample's
    sequence in its stream, ``ordinal`` the number of the chamber's report, ``position`` the sequence up to
    which everything of the partition was stored. ``basis`` and ``stage`` are what a rebuild needs besides:
    the fingerprint of the settings that the stage rests on, and the ordinal at which the stage began.

    The fields after ``v`` are there only when a chart of the report has them: null, 0 or empty where another
    has none. Of a reset only those of the alarms that it ends are. ``excluded`` has the ordinals that charts
    left out of their baselines, in the verdict of the first sample after phase I.
    """

    chamber: str
    seq: int
    ordinal: int
    epoch: int
    spec: int
    defender: str = ""
    run: str = ""
    at: int = 0
    position: int = 0
    charts: list[str] = []
    counts: list[int] = []
    units: list[float] = []
    u: list[float] = []
    centre: list[float | None] = []
    lcl: list[float | None] = []
    ucl: list[float | None] = []
    flags: list[int] = []
    phase: list[int] = []
    basis: list[int] = []
    stage: list[int] = []
    reset: str | None = None
    v: int = SCHEMA_VERSION
    p: list[float | None] = []
    sigma_z: list[float | None] = []
    mark: list[int] = []
    cusum_up: list[float | None] = []
    cusum_down: list[float | None] = []
    cusum_limit_up: list[float | None] = []
    cusum_limit_down: list[float | None] = []
    ewma: list[float | None] = []
    ewma_variance: list[float | None] = []
    ewma_lcl: list[float | None] = []
    ewma_ucl: list[float | None] = []
    typical_units: list[float | None] = []
    event: list[int] = []
    episode: list[int] = []
    alerted: list[int] = []
    alerted_at: list[int] = []
    quiet: list[int] = []
    severity: list[str] = []
    excluded: dict[str, list[int]] = {}


class OutgoingVerdict(Struct, omit_defaults=True, gc=False):
    """`Verdict` as the hot path encodes it: the chart list is MessagePack already. The fields up to ``v``."""

    chamber: str
    seq: int
    ordinal: int
    epoch: int
    spec: int
    defender: str
    run: str
    at: int
    position: int
    charts: Raw
    counts: list[int]
    units: list[float]
    u: list[float]
    centre: list[Any]
    lcl: list[Any]
    ucl: list[Any]
    flags: list[int]
    phase: list[int]
    basis: list[int]
    stage: list[int]
    reset: str | None = None
    v: int = SCHEMA_VERSION


class DetailedVerdict(OutgoingVerdict, omit_defaults=True, gc=False):
    """The same with the other fields of `Verdict`, in its order."""

    p: list[Any] = []
    sigma_z: list[Any] = []
    mark: list[int] = []
    cusum_up: list[Any] = []
    cusum_down: list[Any] = []
    cusum_limit_up: list[Any] = []
    cusum_limit_down: list[Any] = []
    ewma: list[Any] = []
    ewma_variance: list[Any] = []
    ewma_lcl: list[Any] = []
    ewma_ucl: list[Any] = []
    typical_units: list[Any] = []
    event: list[int] = []
    episode: list[int] = []
    alerted: list[int] = []
    alerted_at: list[int] = []
    quiet: list[int] = []
    severity: list[str] = []
    excluded: dict[str, list[int]] = {}


class ChartAlarm(Struct, frozen=True):
    """One chart of an alarm.

    ``event`` says where in its episode the chart is: begin, again or end; empty where every signal is an
    alarm of its own. ``since`` is the number of the chamber's report with which the episode began. Where
    phase is 0 centre and limits say nothing; where units are 0 there is no sample: a reset ended the episode.
    """

    chart: str
    count: int
    units: float
    u: float
    centre: float
    lcl: float
    ucl: float
    rules: list[int]
    phase: int
    text: str
    event: str = ""
    severity: str = ""
    since: int = 0


class Alarm(Struct, frozen=True):
    """Only the charts of a report whose alarm begins, goes on or ends, to be read by a person. ``severity``:
    the highest of its charts': info, warning or critical."""

    chamber: str
    run: str
    at: datetime
    seq: int
    epoch: int
    spec: int
    defender: str
    charts: list[ChartAlarm]
    v: int = SCHEMA_VERSION
    severity: str = ""


MESSAGES: Final[tuple[type[Struct], ...]] = (Report, Verdict, Alarm)
"""The public messages, of which `json_schema` is made."""

_json_incoming = msgspec.json.Decoder(Incoming)
_msgpack_incoming = msgspec.msgpack.Decoder(Incoming)
_json_names = msgspec.json.Decoder(list[str])
_msgpack_names = msgspec.msgpack.Decoder(list[str])
_verdict = msgspec.msgpack.Decoder(Verdict)
_alarm = msgspec.json.Decoder(Alarm)
msgpack_encoder = msgspec.msgpack.Encoder()
json_encoder = msgspec.json.Encoder()

_WHITESPACE_OR_BRACE: Final = frozenset(b"{ \t\r\n")


def is_json(payload: bytes) -> bool:
    """JSON begins with a brace (or white space before it), a MessagePack map never does."""
    return payload[0] in _WHITESPACE_OR_BRACE


def decode_incoming(payload: bytes) -> Incoming:
    """The fast way. Raises msgspec.MsgspecError when anything has another type than it should."""
    return (_json_incoming if payload and is_json(payload) else _msgpack_incoming).decode(payload)


def decode_any(payload: bytes) -> Any:
    """The slow way's first step: whatever the bytes say. Raises msgspec.MsgspecError if that is nothing."""
    return msgspec.json.decode(payload) if payload and is_json(payload) else msgspec.msgpack.decode(payload)


def decode_names(raw: bytes, *, json: bool) -> list[str]:
    """A chart list from the bytes that `Incoming.charts` kept."""
    return (_json_names if json else _msgpack_names).decode(raw)


def decode_verdict(payload: bytes) -> Verdict:
    return _verdict.decode(payload)


def decode_alarm(payload: bytes) -> Alarm:
    return _alarm.decode(payload)


def time_ns(at: datetime | int | None, received_ns: int) -> int:
    """The time of a report in nanoseconds since 1970 (UTC); that of its receipt where it gives none."""
    if at is None:
        return received_ns
    if isinstance(at, int):
        return at
    elapsed = at - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000_000 + elapsed.microseconds * 1_000


def to_datetime(time_ns: int) -> datetime:
    """RFC 3339 readable time, to the microsecond. Raises OverflowError far outside of the calendar."""
    whole_s = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return whole_s.replace(microsecond=time_ns // 1000 % 1_000_000)


def names_problems(charts: list[str]) -> list[Problem]:
    """What is wrong with a chart list by itself: names that cannot be, and names that come twice."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for index, chart in enumerate(charts):
        wrong = name_problem(chart)
        if wrong is not None:
            problems.append(Problem(Reason.CHART_NAME, f"charts[{index}] {wrong}", index))
        elif chart in seen:
            problems.append(Problem(Reason.CHART_TWICE, f"charts[{index}] {chart!r} is named twice", index))
        seen.add(chart)
    return problems


def sample_problem(index: int, chart: str, count: object, units: object) -> Problem | None:
    """What is wrong with one sample, or None."""
    here = f"charts[{index}] {chart!r}"
    for field, value in (("count", count), ("units", units)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return Problem(Reason.WRONG_TYPE, f"{here}: {field} {value!r} is not a number", index)
        if not math.isfinite(value):
            return Problem(Reason.NOT_FINITE, f"{here}: {field} is {value!r}", index)
    assert isinstance(count, (int, float))
    assert isinstance(units, (int, float))
    if count < 0:
        return Problem(Reason.COUNT_NEGATIVE, f"{here}: count {count!r} is negative", index)
    if count != math.floor(count):
        return Problem(Reason.COUNT_FRACTIONAL, f"{here}: count {count!r} is not a whole number", index)
    if count > COUNT_MAX:
        return Problem(Reason.COUNT_TOO_LARGE, f"{here}: count {count!r} is above 2^53 - 1", index)
    if units <= 0:
        return Problem(Reason.UNITS_NOT_POSITIVE, f"{here}: units {units!r} must be above 0", index)
    if not UNITS_MIN <= units <= UNITS_MAX:
        return Problem(Reason.UNITS_OUT_OF_RANGE, f"{here}: units {units!r} must be in 2^-20 ... 2^40", index)
    return None


def rules_of(flags: int) -> list[int]:
    """The numbers of the rules whose bits are set: 0b101 is [1, 3]."""
    return [bit + 1 for bit in range(flags.bit_length()) if flags >> bit & 1]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every public message, made from the Structs."""
    roots, definitions = msgspec.json.schema_components(MESSAGES, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of the tFDC defender",
        "oneOf": list(roots),
        "$defs": definitions,
    }
