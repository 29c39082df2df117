"""What one show publishes: the simulated fab with a published data set woven in. Pure.

The plan goes to the publisher as JSON; both sides compute the same messages from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from runtime.config import Settings
from runtime.errors import InputError
from runtime.fab import Excursion, Expect, Fab, Planned, PublishedSet, published_set
from runtime.specs import Specs
from runtime.wire import Reason

REPORTS_MIN: Final = 1_000
CHAMBERS_USUAL: Final = 40
CHAMBER_REPORTS_A_SECOND: Final = 20
"""By default the fab has so many chambers that none reports more often: one report of a chamber is judged at
a time, and no real chamber finishes a run every millisecond."""
RUNS_DEFAULT: Final = 300
RUNS_MIN: Final = 150
"""Mean runs of a chamber. Phase I takes 25 and the first maintenance comes at run 120; some chambers run
five times as often as others."""
CHARTS: Final = 4
EXCURSION_EVERY: Final = 100
BROKEN_EVERY_MAX: Final = 100
BROKEN_MIN: Final = 3 * len(Reason)
SET_PART: Final = 0.8
"""The data set is spread over this part of the show, so that the killed worker has it in hand."""


class Plan(Struct, frozen=True, kw_only=True):
    """One show: *rate* reports/s for *seconds* from *chambers* chambers with `CHARTS` charts each."""

    seconds: float
    rate: float
    chambers: int
    seed: int
    workers: int

    @property
    def reports(self) -> int:
        """Messages to publish, resets and broken ones included."""
        return round(self.seconds * self.rate)

    @property
    def spacing_ns(self) -> int:
        return round(1e9 / self.rate)


class Stored(Struct, frozen=True, tag=True):
    """A message that the server acknowledged: what must come of it. *sent_ns* is CLOCK_MONOTONIC."""

    seq: int
    chamber: str
    run: str
    sent_ns: int
    expect: Expect
    samples: int
    planted: tuple[tuple[int, Excursion, str], ...] = ()
    """(number of the excursion, its kind, chart)."""
    reason: Reason | None = None


class Refused(Struct, frozen=True, tag=True):
    """A message that the server did not acknowledge: it may or may not be stored."""

    chamber: str
    run: str
    cause: str


class Prepared(Struct, frozen=True, tag=True):
    """The publisher is connected and waits for the start."""


class Finished(Struct, frozen=True, tag=True):
    """The publisher has heard of every message. *behind_ms_max*: how late a message left, at worst."""

    sent: int
    seconds: float
    behind_ms_max: float


Word = Prepared | Stored | Refused | Finished
"""What the publisher says, one JSON object a line."""


def planned(seconds: float, rate: float, chambers: int | None, seed: int, workers: int) -> Plan:
    """The plan that a person asked for. Raises InputError when the charts could not learn in it."""
    reports = round(seconds * rate)
    if reports < REPORTS_MIN:
        raise InputError(
            f"--seconds {seconds:g} at --rate {rate:g} is {reports} reports; the charts need "
            f"{REPORTS_MIN:,} to learn before anything is planted: raise one of them"
        )
    most = reports // RUNS_MIN
    if chambers is None:
        usual = max(CHAMBERS_USUAL, round(rate / CHAMBER_REPORTS_A_SECOND))
        chambers = max(4, min(usual, reports // RUNS_DEFAULT))
    elif chambers > most:
        raise InputError(
            f"--chambers {chambers} leaves each chamber {reports / chambers:.0f} of the {reports:,} reports; "
            f"to learn and to show they need {RUNS_MIN}: at most {most}, or raise --seconds or --rate"
        )
    return Plan(seconds=seconds, rate=rate, chambers=chambers, seed=seed, workers=workers)


def specs() -> Specs:
    """How the show's charts are judged: the book's settings for the data set, the default for the fab."""
    return Specs(charts=(published_set().spec(),))


def messages(plan: Plan, start_ns: int) -> Iterator[Planned]:
    """Every message of the show in its order; the first report's time is *start_ns* (ns since 1970)."""
    fab = Fab(
        plan.chambers,
        CHARTS,
        plan.seed,
        start_ns=start_ns,
        spacing_ns=plan.spacing_ns,
        excursion_every=EXCURSION_EVERY,
        broken_every=max(2, min(BROKEN_EVERY_MAX, plan.reports // BROKEN_MIN)),
    ).reports()
    known: PublishedSet = published_set()
    every = int(plan.reports * SET_PART) // len(known.counts)
    woven = known.reports(start_ns, every * plan.spacing_ns)
    for number in range(1, plan.reports + 1):
        from_set = next(woven, None) if number % every == 0 else None
        yield from_set if from_set is not None else next(fab)


def environment(environ: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """*environ* with *chosen* settings and no others: what a person has exported is for another fleet."""
    ours = {name.upper() for name in Settings.__struct_fields__} - {"NUMBA_CACHE_DIR"}
    kept = {name: value for name, value in environ.items() if name not in ours}
    return {**kept, **chosen, "PYTHONUNBUFFERED": "1"}


def settings_of(url: str, plan: Plan, folder: str) -> dict[str, str]:
    """The settings of the show's defender, as environment variables; what it leaves is left in *folder*."""
    return {
        "TMPDIR": folder,
        "NATS_SERVERS": url,
        "POD_NAME": "demo",
        "WORKERS": str(plan.workers),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }
