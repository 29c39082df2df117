"""Lines for people: what of a message they show, which filters let it pass, what steers no terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from runtime import alarms
from runtime.cli import terminal
from runtime.cli.lines import Filter, alarm_lines, rejected_lines, verdict_lines
from runtime.cli.reading import Record
from runtime.errors import InputError
from runtime.wire import Verdict

AT_NS = 1_740_816_000_250_000_000
ALL = Filter()
VERDICT = Verdict(
    chamber="ETCH-07",
    seq=12,
    ordinal=3,
    epoch=4,
    spec=1,
    run="LOT\x1b[31m1",
    at=AT_NS,
    charts=["particles", "pits"],
    counts=[31, 0],
    units=[25.0, 25.0],
    u=[1.24, 0.0],
    centre=[0.21, None],
    lcl=[0.0, None],
    ucl=[0.485, None],
    flags=[0b101, 0],
    phase=[2, 0],
    basis=[5, 5],
    stage=[1, 1],
)


def record(payload: bytes, subject: str = "tfdc.verdict.3.ETCH-07", headers: bytes | None = None) -> Record:
    return Record("S", 12, AT_NS, 0, subject, payload, headers)


def test_a_verdict_has_a_line_a_chart_with_limits_phase_and_rules() -> None:
    signal, learning = verdict_lines(record(msgspec.msgpack.encode(VERDICT)), ALL)
    left, right = "2025-03-01 08:00:00.250 ETCH-07", "particles 31 25 1.24 0 0.21 0.485 phase II 1,3"
    assert " ".join(signal.text.split()) == f"{left} LOT\N{REPLACEMENT CHARACTER}[31m1 {right}"
    assert signal.style == "bold red"
    assert learning.text.split()[4:] == ["pits", "0", "25", "0", "-", "-", "-", "learning"]
    assert signal.tree["flags"] == [5, 0], "machines get the whole message"


@pytest.mark.parametrize(
    ("wanted", "charts"),
    [
        (Filter("ETCH-*"), ["particles", "pits"]),
        (Filter("etch-*"), []),
        (Filter("", "p*s"), ["particles", "pits"]),
        (Filter("ETCH-0?", "pits"), ["pits"]),
        (Filter("CVD*", "pits"), []),
    ],
)
def test_filters_are_globs_on_chamber_and_chart(wanted: Filter, charts: list[str]) -> None:
    lines = verdict_lines(record(msgspec.msgpack.encode(VERDICT)), wanted)
    assert [line.text.split()[4] for line in lines] == charts


def test_a_reset_is_one_line_with_its_reason() -> None:
    reset = Verdict("C", 1, 1, 1, 0, at=AT_NS, charts=["pits"], reset="pump changed")
    (line,) = verdict_lines(record(msgspec.msgpack.encode(reset)), ALL)
    assert line.text.endswith("reset of pits: pump changed")
    assert verdict_lines(record(msgspec.msgpack.encode(reset)), Filter("", "particles")) == []


def test_an_alarm_has_a_line_a_chart_with_its_text() -> None:
    payload = alarms.encode_alarm(VERDICT)
    assert payload is not None
    (line,) = alarm_lines(record(payload, "tfdc.alarm.ETCH-07"), ALL)
    assert "particles: u 1.24 is above UCL 0.485; a run of points steadily rising" in line.text
    assert alarm_lines(record(payload, "tfdc.alarm.ETCH-07"), Filter("", "pits")) == []


PROBLEMS = [
    {"reason": "count_negative", "detail": "charts[1] 'b': count -1 is negative", "chart": 1},
    {"reason": "chart_name", "detail": "charts[0] is empty", "chart": 0},
]


def headers(problems: list[dict[str, object]]) -> bytes:
    lines = {
        "Tfdc-Reason": problems[0]["reason"],
        "Tfdc-Problems": json.dumps(problems),
        "Tfdc-Chamber": "X-1",
        "Tfdc-Seq": "7",
    }
    return b"NATS/1.0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items()) + b"\r\n"


def test_a_rejection_shows_reason_and_detail_and_gives_machines_the_original_bytes() -> None:
    payload = b'{"charts": ["", "b", "c"], "counts": [1, -1, 1]}'
    (line,) = rejected_lines(record(payload, "tfdc.rejected._", headers(PROBLEMS)), Filter("X-*"))
    assert "X-1" in line.text
    assert line.text.endswith("count_negative           48  charts[1] 'b': count -1 is negative (and 1 more)")
    assert line.tree["payload"].encode() == payload
    assert line.tree["problems"] == PROBLEMS
    (line,) = rejected_lines(record(b"\xff\x00", "tfdc.rejected._", headers(PROBLEMS[:1])), ALL)
    assert line.tree["payload_base64"] == "/wA="


def test_a_rejection_matches_the_charts_that_are_bad() -> None:
    message = record(
        b'{"charts": ["", "b", "c"], "counts": [1, -1, 1]}', "tfdc.rejected._", headers(PROBLEMS)
    )
    assert rejected_lines(message, Filter("", "b"))
    assert not rejected_lines(message, Filter("", "c"))
    whole = headers([{"reason": "lengths_differ", "detail": "…"}])
    assert rejected_lines(record(message.payload, "tfdc.rejected._", whole), Filter("", "c"))


def test_a_message_that_cannot_be_read_is_told_and_not_hidden() -> None:
    (line,) = verdict_lines(record(b"\xc1"), ALL)
    assert "cannot be read" in line.text
    (line,) = alarm_lines(record(b"[]", "tfdc.alarm.A"), ALL)
    assert "cannot be read" in line.text


def test_a_span_or_a_time_says_since_when() -> None:
    now = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
    assert (now - terminal.since_time("10m", now)).total_seconds() == 600
    assert (now - terminal.since_time("1.5h", now)).total_seconds() == 5400
    assert terminal.since_time("2025-03-01T08:00:00+01:00", now) == datetime(2025, 3, 1, 7, tzinfo=UTC)
    with pytest.raises(InputError, match="give a span"):
        terminal.since_time("yesterday", now)


def test_times_and_ages_are_short_and_never_fail() -> None:
    assert terminal.clock(AT_NS) == "2025-03-01 08:00:00.250"
    assert terminal.clock(2**63 - 1).startswith("2262-")
    assert terminal.clock(-(2**70)).endswith(" ns")
    assert [terminal.age(s) for s in (0.44, 12.3, 150, 7300, 300_000)] == ["0.4s", "12s", "2m", "2h", "3d"]
