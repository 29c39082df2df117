"""How the report words a run: the names of its figures, numbers as people read them, the verdict. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from typing import Final, NamedTuple

from bench.lab.result import Mark, Result


class Figure(NamedTuple):
    """How a field of Result is called, and its unit."""

    title: str
    unit: str = ""


FIGURES: Final = {
    "lost": Figure("reports lost"),
    "doubled": Figure("verdicts doubled"),
    "wrong": Figure("verdicts wrong"),
    "out_of_order": Figure("verdicts out of order"),
    "stale": Figure("verdicts of an old epoch"),
    "alarms_lost": Figure("alarms lost"),
    "alarms_doubled": Figure("alarms doubled"),
    "unknown": Figure("reports of which nothing can be said"),
    "rejected": Figure("reports rejected"),
    "doubly_owned": Figure("doubly owned"),
    "partitions_reassigned": Figure("partitions reassigned"),
    "partitions_must_move": Figure("partitions that must move"),
    "partitions_taken_over": Figure("partitions taken over"),
    "gap_ms_p50": Figure("unattended gap p50", "ms"),
    "gap_ms_p99": Figure("unattended gap p99", "ms"),
    "gap_ms_max": Figure("unattended gap, longest", "ms"),
    "latency_ms_p50": Figure("verdict latency p50", "ms"),
    "latency_ms_p99": Figure("verdict latency p99", "ms"),
    "latency_ms_max": Figure("verdict latency, longest", "ms"),
    "unowned_max_ms": Figure("longest without a live owner", "ms"),
    "identity_recovery_s_max": Figure("slowest pod to its ID", "s"),
    "duration_s": Figure("duration of the steps", "s"),
    "pods_restarted": Figure("containers restarted"),
    "producer_late_ms_max": Figure("producers late by at most", "ms"),
    "observer_cores": Figure("observer", "cores"),
    "rate_sustained": Figure("rate sustained", "reports/s"),
}
FAULTS: Final = {
    "lost": "lost",
    "doubled": "doubled",
    "wrong": "wrong",
    "out_of_order": "out of order",
    "stale": "of an old epoch",
    "alarms_lost": "alarms lost",
    "alarms_doubled": "alarms doubled",
    "doubly_owned": "doubly owned",
}
"""Counts that are 0 in a fleet that does what it promises, whatever befalls it, and how a list calls them."""
UNTOLD: Final = "?"
"""In place of a figure that the run could not tell: one below 0, or no number."""
SECONDS_FROM_MS: Final = 10_000
"""From here on milliseconds are written as seconds."""


def title(field: str) -> str:
    """What a field of Result is called; a promise with a name of its own keeps it."""
    found = FIGURES.get(field)
    return found.title if found else field.replace("_", " ")


def told(field: str, value: float) -> str:
    """A field's value with its unit."""
    unit = FIGURES[field].unit if field in FIGURES else ""
    return ms(value) if unit == "ms" else f"{number(value)} {unit}".rstrip() if is_told(value) else UNTOLD


def is_told(value: float) -> bool:
    """Whether a run could tell a figure."""
    return 0 <= value < inf


def number(value: float) -> str:
    """Whole numbers with thousands separated, others with three figures: 84,312, 12.3, 0.0412."""
    if not is_told(value):
        return UNTOLD
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def ms(value: float) -> str:
    """Milliseconds; long ones in seconds."""
    if not is_told(value):
        return UNTOLD
    return f"{number(value / 1000)} s" if value >= SECONDS_FROM_MS else f"{number(value)} ms"


def s(value: float) -> str:
    """Seconds, to a hundredth below 10."""
    if not is_told(value):
        return UNTOLD
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def count(amount: int, noun: str, plural: str = "") -> str:
    """``1 pod``, ``12,000 pods``."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def verdict(result: Result) -> str:
    """The run in one sentence."""
    parts = [
        f"{number(result.lost)} of {number(result.reports)} reports lost",
        f"{number(result.doubled)} doubled",
    ]
    others = [(getattr(result, field), words) for field, words in list(FAULTS.items())[2:]]
    parts += [f"{number(seen)} {words}" for seen, words in others if seen]
    sentence = ", ".join(parts)
    if result.promises:
        met = sum(promise.met for promise in result.promises)
        sentence += f"; {met} of {count(len(result.promises), 'promise')} met"
    return sentence if result.is_whole else f"Broken off: {sentence}"


def is_good(result: Result) -> bool:
    """Whole, without fault, with each promise met."""
    faultless = not any(getattr(result, field) for field in FAULTS)
    return result.is_whole and faultless and all(promise.met for promise in result.promises)


def fleet(result: Result) -> str:
    """``30 defenders × 2 workers, 64 partitions, 90 s of load at 1,000 reports/s``."""
    seconds = f"{number(round(result.seconds, 1))} s of load at "
    return f"{size(result)}, {seconds}{number(result.producer_reports_per_s)} reports/s"


def size(result: Result) -> str:
    """``30 defenders × 2 workers, 64 partitions``."""
    workers = f" × {count(result.workers, 'worker')}"
    return f"{count(result.defenders, 'defender')}{workers}, {count(result.partitions, 'partition')}"


def sizes(results: Sequence[Result]) -> str:
    """Of the fleets that are compared, and their loads, each once."""
    told = (f"{size(one)}, {number(one.producer_reports_per_s)} reports/s" for one in results)
    return "; ".join(dict.fromkeys(told))


def machine(result: Result) -> str:
    """Where it ran, in a line; ``an unknown machine`` where the run did not say."""
    at = result.machine
    if at is None:
        return "an unknown machine"
    return (
        f"{at.cpu}, {count(at.cores, 'core')}, {at.memory_gb:.0f} GB, Linux {at.kernel}, "
        f"Python {at.python}, nats-server {at.nats_server}, defender {at.defender}"
    )


def date(at_ns: int) -> str:
    """The day and minute in UTC; ``–`` without a time."""
    return f"{datetime.fromtimestamp(at_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC" if at_ns else "–"


def caption(results: Sequence[Result]) -> str:
    """Where and when a comparison was made, each machine once."""
    where = "; ".join(dict.fromkeys(machine(result) for result in results))
    when = sorted({date(result.begun_ns)[:10] for result in results if result.begun_ns})
    days = when[0] if len(when) == 1 else f"{when[0]} to {when[-1]}" if when else "no date"
    return f"{where}; {days}"


def begun_ns(result: Result) -> int:
    """Where a run's time axis has its 0: its begin, or the first thing seen in it."""
    seen = [mark.begun_ns for mark in result.marks] + [second.at_ns for second in result.timeline[:1]]
    return result.begun_ns or min(seen, default=0)


def lasted(mark: Mark) -> str:
    """A mark's duration; nothing for a moment."""
    return f"{(mark.ended_ns - mark.begun_ns) / 1e9:.1f} s" if mark.ended_ns else ""
