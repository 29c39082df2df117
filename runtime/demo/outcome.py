"""What a show came to, and what of it was not as it must be. Pure."""

from __future__ import annotations

from msgspec import Struct

from runtime.demo.checks import BOOK_TOLERANCE


class Outcome(Struct, frozen=True, kw_only=True):
    """The figures of a show, as its last line of JSON has them.

    *lost*, *duplicated* and *unexpected* are what a subscriber counted against the server's acknowledgements;
    latencies are from a report's publishing to its verdict at the subscriber, over all reports, those that
    waited for the killed worker included. *cache_hit_rate* alone is the defender's own figure.
    """

    reports: int
    verdicts: int
    alarms: int
    rejected: int
    lost: int
    duplicated: int
    planted: int
    planted_found: int
    chance_alarms: int
    """Charts that signalled with nothing planted: three-sigma limits and run rules do on sound counts."""
    samples_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    latency_ms_max: float
    cache_hit_rate: float
    samples: int
    resets: int
    broken: int
    broken_rejected: int
    unexpected: int
    unacknowledged: int
    missed: int
    recovery_ms: float | None
    partitions_recovered: int
    book_points: int
    book_deviation: float | None
    book_agrees: bool
    reports_per_s: float
    publisher_behind_ms_max: float
    seconds: float
    ready_s: float
    leave_s: float
    leave_code: int
    chambers: int
    workers: int
    seed: int


def faults(outcome: Outcome) -> list[str]:
    """What was not so, a line each; empty when the show kept every promise."""
    o = outcome
    found = {
        f"{o.lost} of {o.reports} reports lost: no verdict, or a part of it missing": o.lost > 0,
        f"{o.duplicated} verdicts, alarms or rejections came twice": o.duplicated > 0,
        f"{o.unexpected} messages came that should not have": o.unexpected > 0,
        f"{o.planted - o.planted_found} of {o.planted} planted excursions not found": o.planted_found
        != o.planted,
        "nothing was planted: more reports a chamber are needed": o.planted == 0,
        f"{o.broken - o.broken_rejected} of {o.broken} broken messages not in REJECTED for their reason": (
            o.broken_rejected != o.broken
        ),
        f"{o.unacknowledged} reports were not acknowledged by the NATS server": o.unacknowledged > 0,
        f"the observer missed {o.missed} messages: it could not keep up": o.missed > 0,
        "the killed worker's partitions had no verdict again": o.recovery_ms is None,
        f"the data set's limits or signals are not the book's to {BOOK_TOLERANCE:g}": not o.book_agrees,
        f"the defender left with code {o.leave_code} after SIGTERM, not 0": o.leave_code != 0,
    }
    return [text for text, wrong in found.items() if wrong]
