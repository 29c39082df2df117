"""Bad input through NATS: original bytes and reason in REJECTED, counted, and nothing else disturbed.

Each case is a chamber of its own that publishes a good report, the bad one and a good one again; all cases
are published in one go, so that they share batches.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop
from fleet import settings_for

from bench.lab.pods import Pod, brisk
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.wire import CHARTS_MAX, Reason, decode_verdict
from tests.load import SPECS, fleet
from tests.oracle import Stored, Streams

GOOD: dict[str, Any] = {"charts": ["given_a", "other_d"], "counts": [3, 1], "units": [25.0, 20.0]}
MANY = CHARTS_MAX + 1


class Case(NamedTuple):
    """A bad report; *reasons* in their order, and the charts of it that are judged all the same."""

    payload: bytes
    reasons: list[Reason]
    judged: list[str] | None = None


def bad(**changes: Any) -> bytes:
    return msgspec.json.encode({k: v for k, v in {**GOOD, **changes}.items() if v is not ...})


def packed(**changes: Any) -> bytes:
    return msgspec.msgpack.encode({**GOOD, **changes})


CASES: dict[str, Case] = {
    "no bytes at all": Case(b"", [Reason.UNDECODABLE]),
    "bytes that are neither JSON nor MessagePack": Case(b"\xc1\xff\x00", [Reason.UNDECODABLE]),
    "JSON that breaks off": Case(bad()[:-4], [Reason.UNDECODABLE]),
    "MessagePack that breaks off": Case(packed()[:-4], [Reason.UNDECODABLE]),
    "bytes after the end": Case(packed() + b"\x01", [Reason.UNDECODABLE]),
    "nesting without end": Case(b'{"charts":' + b"[" * 100_000, [Reason.UNDECODABLE]),
    "text that is not UTF-8": Case(b'{"run": "\xff\xfe"}', [Reason.UNDECODABLE]),
    "a number": Case(b"7", [Reason.WRONG_TYPE]),
    "a list": Case(msgspec.msgpack.encode([GOOD]), [Reason.WRONG_TYPE]),
    "counts that are no list": Case(bad(counts=3), [Reason.WRONG_TYPE]),
    "charts that are no list": Case(bad(charts="given_a"), [Reason.WRONG_TYPE]),
    "a count that is text": Case(bad(counts=["3", 1]), [Reason.WRONG_TYPE], ["other_d"]),
    "a count that is true": Case(bad(counts=[3, True]), [Reason.WRONG_TYPE], ["given_a"]),
    "a count that is null": Case(bad(counts=[None, 1]), [Reason.WRONG_TYPE], ["other_d"]),
    "units that are a list": Case(bad(units=[25.0, [1.0]]), [Reason.WRONG_TYPE], ["given_a"]),
    "a chart that is a number": Case(bad(charts=[7, "other_d"]), [Reason.WRONG_TYPE], ["other_d"]),
    "a run that is a number": Case(bad(run=7), [Reason.WRONG_TYPE]),
    "a time that is none": Case(bad(at="yesterday"), [Reason.WRONG_TYPE]),
    "a time without an offset": Case(bad(at="2026-01-01T00:00:00"), [Reason.WRONG_TYPE]),
    "a time that is a fraction": Case(bad(at=1.5), [Reason.WRONG_TYPE]),
    "no counts": Case(bad(counts=...), [Reason.MISSING_FIELD]),
    "nothing in it": Case(b"{}", [Reason.MISSING_FIELD]),
    "lists of different lengths": Case(bad(units=[25.0]), [Reason.LENGTHS_DIFFER]),
    "no chart": Case(bad(charts=[], counts=[], units=[]), [Reason.EMPTY]),
    "a reset without a reason": Case(b'{"reset": ""}', [Reason.EMPTY]),
    "a reset of no chart": Case(b'{"reset": "x", "charts": []}', [Reason.EMPTY]),
    "more charts than a report may have": Case(
        bad(charts=[f"c{i}" for i in range(MANY)], counts=[1] * MANY, units=[1.0] * MANY),
        [Reason.TOO_MANY_CHARTS],
    ),
    "more bytes than REPORT_BYTES_MAX": Case(bad(note="x" * 300_000), [Reason.TOO_LARGE]),
    "a chart with a space": Case(bad(charts=["two words", "other_d"]), [Reason.CHART_NAME], ["other_d"]),
    "a chart with 65 bytes": Case(bad(charts=["given_a", "x" * 65]), [Reason.CHART_NAME], ["given_a"]),
    "a chart without a name": Case(bad(charts=["", "other_d"]), [Reason.CHART_NAME], ["other_d"]),
    "a chart twice": Case(bad(charts=["given_a", "given_a"]), [Reason.CHART_TWICE], ["given_a"]),
    "the name of another chamber": Case(bad(chamber="another"), [Reason.CHAMBER_MISMATCH]),
    "a run of 257 characters": Case(bad(run="R" * 257), [Reason.RUN_NAME]),
    "a time of 1970": Case(bad(at=0), [Reason.TIME_FAR_OFF]),
    "a time of 2200": Case(bad(at="2200-01-01T00:00:00Z"), [Reason.TIME_FAR_OFF]),
    "a time beyond all calendars": Case(bad(at=2**63 - 1), [Reason.TIME_FAR_OFF]),
    "a count that is NaN": Case(packed(counts=[math.nan, 1]), [Reason.NOT_FINITE], ["other_d"]),
    "infinite units": Case(packed(units=[25.0, math.inf]), [Reason.NOT_FINITE], ["given_a"]),
    "a negative count": Case(bad(counts=[-1, 1]), [Reason.COUNT_NEGATIVE], ["other_d"]),
    "a fractional count": Case(bad(counts=[3, 0.5]), [Reason.COUNT_FRACTIONAL], ["given_a"]),
    "a count of 2^60": Case(bad(counts=[2**60, 1]), [Reason.COUNT_TOO_LARGE], ["other_d"]),
    "a count that would be rounded": Case(bad(counts=[2**53 + 1, 1]), [Reason.COUNT_TOO_LARGE], ["other_d"]),
    "a count beyond 64 bits": Case(
        b'{"charts":["a"],"counts":[1%s],"units":[1]}' % (b"0" * 40), [Reason.COUNT_TOO_LARGE]
    ),
    "units of 0": Case(bad(units=[0, 20.0]), [Reason.UNITS_NOT_POSITIVE], ["other_d"]),
    "negative units": Case(bad(units=[25.0, -1.0]), [Reason.UNITS_NOT_POSITIVE], ["given_a"]),
    "units of 1e300": Case(bad(units=[1e300, 20.0]), [Reason.UNITS_OUT_OF_RANGE], ["other_d"]),
    "units of 1e-300": Case(packed(units=[25.0, 1e-300]), [Reason.UNITS_OUT_OF_RANGE], ["given_a"]),
    "a reset with samples": Case(bad(reset="maintenance"), [Reason.RESET_WITH_SAMPLES]),
    "no reset and a bad chart": Case(bad(reset=None, counts=[-1, 1]), [Reason.COUNT_NEGATIVE], ["other_d"]),
    "two bad charts": Case(bad(counts=[-1, 0.5]), [Reason.COUNT_NEGATIVE, Reason.COUNT_FRACTIONAL]),
}
NAMES = {
    "a chamber with 65 bytes": b"x" * 65,
    "a chamber with a control character": b"a\x01b",
    "a chamber that is not UTF-8": b"a\xff\xfeb",
    "a chamber with a no-break space": "a\u00a0b".encode(),
}
CHAMBERS = {case: f"chamber-{number}" for number, case in enumerate(CASES)}
ODD_BUT_GOOD = ("café", "x" * 64, "a=b,c;(d)", "\u30c1\u30e3\u30f3\u30d0")


class Outcome(NamedTuple):
    streams: Streams
    metrics: dict[Reason, float]
    restarts: float


async def run(settings: Settings) -> Outcome:
    good = msgspec.json.encode(GOOD)
    messages = [(CHAMBERS[case].encode(), good) for case in CASES]
    messages += [(CHAMBERS[case].encode(), found.payload) for case, found in CASES.items()]
    messages += [(chamber, good) for chamber in NAMES.values()]
    messages += [(chamber.encode(), good) for chamber in ODD_BUT_GOOD]
    messages += [(CHAMBERS[case].encode(), good) for case in CASES]
    async with fleet(settings, SPECS) as outside:
        with Pod(settings) as pod:
            await outside.publish(messages)
            await pod.wait_serving()
            streams = await outside.audit()
            metrics = {
                reason: pod.metric("defender_rejected_total", reason=reason.value) for reason in Reason
            }
            return Outcome(streams, metrics, pod.metric("defender_worker_restarts_total"))


@pytest.fixture(scope="module")
def outcome(nats_server: NatsServer) -> Iterator[Outcome]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run(run(settings_for(nats_server, **brisk())))


def rejected_of(streams: Streams, payload: bytes, chamber: str) -> Stored:
    found = [m for m in streams.rejected if m.payload == payload and m.chamber == chamber]
    assert len(found) == 1, f"{len(found)} rejections"
    return found[0]


def test_every_reason_has_a_case() -> None:
    """Chambers' names are cases of their own."""
    assert {reason for case in CASES.values() for reason in case.reasons} == set(Reason) - {
        Reason.CHAMBER_NAME
    }


@pytest.mark.parametrize("name", CASES)
def test_a_bad_report_is_rejected_with_its_bytes_and_reason_and_its_good_charts_are_judged(
    outcome: Outcome, name: str
) -> None:
    """The chamber's reports before and after it are judged as if it had been without its bad charts."""
    case, chamber = CASES[name], CHAMBERS[name]
    rejection = rejected_of(outcome.streams, case.payload, chamber)
    problems = json.loads(rejection.headers["Tfdc-Problems"])
    assert [problem["reason"] for problem in problems] == case.reasons
    assert rejection.headers["Tfdc-Reason"] == case.reasons[0]
    assert all(problem["detail"] for problem in problems)
    verdicts = [decode_verdict(m.payload) for m in outcome.streams.verdicts if m.chamber == chamber]
    between = [] if case.judged is None else [case.judged]
    assert [verdict.charts for verdict in verdicts] == [GOOD["charts"], *between, GOOD["charts"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_chamber_whose_name_cannot_be_is_rejected_under_an_underscore(outcome: Outcome, name: str) -> None:
    """What a subject of NATS may carry and a chamber's name may not."""
    bare = [m for m in outcome.streams.rejected if m.headers["Tfdc-Reason"] == Reason.CHAMBER_NAME]
    assert len(bare) == len(NAMES)
    assert {m.chamber for m in bare} == {"_"}
    assert {m.payload for m in bare} == {msgspec.json.encode(GOOD)}


@pytest.mark.parametrize("chamber", ODD_BUT_GOOD)
def test_an_odd_chamber_that_a_subject_can_carry_is_judged(outcome: Outcome, chamber: str) -> None:
    """Up to 64 bytes of UTF-8."""
    assert [m.chamber for m in outcome.streams.verdicts].count(chamber) == 1


def test_rejections_are_counted_by_reason(outcome: Outcome) -> None:
    """/metrics has every problem that REJECTED tells of, and no worker died of any."""
    told = Counter(
        problem["reason"]
        for m in outcome.streams.rejected
        for problem in json.loads(m.headers["Tfdc-Problems"])
    )
    assert outcome.metrics == {reason: told[reason.value] for reason in Reason}
    assert min(outcome.metrics.values()) > 0
    assert outcome.restarts == 0
