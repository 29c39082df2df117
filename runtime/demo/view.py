"""A show on a terminal of 80 columns and 24 lines, and its summary as plain lines.

The live view reads a `Show` and changes nothing. Everything that it says of the output is what the
subscriber counted.
"""

from __future__ import annotations

import time
from collections import deque

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runtime.demo.checks import BookCheck
from runtime.demo.outcome import Outcome, faults
from runtime.demo.plan import CHARTS
from runtime.demo.show import Milestone, Phase, Show
from runtime.wire import Alarm

COLUMNS = 78
MILESTONES_SHOWN = 7
ALARMS_SHOWN = 4
_BAR = 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPEED_SPAN_S = 2.0
_TITLES = {
    Phase.STARTING: "the defender starts",
    Phase.PUBLISHING: "the fab runs",
    Phase.SETTLING: "last verdicts",
    Phase.LEAVING: "the defender leaves",
    Phase.OVER: "over",
}


class LiveView:
    """Render it some times a second; it remembers what it needs for the speed of the moment."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._counts: deque[tuple[float, int]] = deque()

    def __rich__(self) -> RenderableType:
        show = self._show
        parts: list[RenderableType] = [self._head(), Text(), self._figures(), Text()]
        parts.append(_section("what happened"))
        parts += [_milestone(milestone) for milestone in show.milestones[-MILESTONES_SHOWN:]]
        parts += [Text()] * (MILESTONES_SHOWN - len(show.milestones))
        parts.append(_section("newest alarms, planted ones in red"))
        if show.observer is not None:
            lines = [line for alarm in show.observer.alarms for line in self._alarm(alarm)]
            parts += lines[-ALARMS_SHOWN:]
        return Group(*parts)

    def _head(self) -> Text:
        show = self._show
        part = min(1.0, show.elapsed_s / show.plan.seconds)
        done = round(part * _BAR)
        head = Text("defender demo  ", style="bold", no_wrap=True, overflow="ellipsis")
        head.append("━" * done, style="green").append("━" * (_BAR - done), style="dim")
        head.append(f" {min(show.elapsed_s, show.plan.seconds):.0f} of {show.plan.seconds:.0f} s", style="")
        return head.append(f"  {_TITLES[show.phase]}", style="dim")

    def _figures(self) -> Table:
        show, ledger = self._show, self._show.ledger
        p50, p99, longest = ledger.latency_ms(0.5, 0.99, 1.0)
        planted, found = ledger.planted, ledger.planted_found
        broken, rejected = ledger.broken
        plan = show.plan
        rows = (
            ("fab", f"{plan.chambers} chambers, {plan.chambers * CHARTS} charts, {plan.rate:,.0f} reports/s"),
            ("reports", f"{ledger.reports:,} published, {ledger.unsettled:,} of them not judged yet"),
            (
                "samples",
                f"{ledger.samples:,} judged, {self._speed():,.0f}/s; {ledger.resets} maintenance resets",
            ),
            ("latency", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.0f} ms: publish to verdict"),
            (
                "defender",
                f"{plan.workers} workers, {show.scrape.partitions} partitions, lag {show.scrape.lag}, "
                f"cache hits {show.scrape.hit_rate:.1%}",
            ),
            (
                "planted",
                f"{found} of {planted} excursions found; {ledger.chance_alarms:,} other alarms, by chance",
            ),
            ("broken", f"{rejected} of {broken} bad messages in REJECTED"),
        )
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for title, text in rows:
            table.add_row(title, text)
        table.add_row("data set", _book(show.book))
        return table

    def _speed(self) -> float:
        """Samples a second over the last moments."""
        now, counts = time.monotonic(), self._counts
        counts.append((now, self._show.ledger.samples))
        while now - counts[0][0] > _SPEED_SPAN_S:
            counts.popleft()
        span_s = now - counts[0][0]
        return (counts[-1][1] - counts[0][1]) / span_s if span_s > 0 else 0.0

    def _alarm(self, alarm: Alarm) -> list[Text]:
        lines = []
        for chart in alarm.charts:
            planted = self._show.ledger.is_planted(alarm.seq, chart.chart)
            text = f"{'●' if planted else ' '} {alarm.chamber:<10} {alarm.run} {chart.text}"
            style = "bold red" if planted else ""
            lines.append(Text(text, style=style, no_wrap=True, overflow="ellipsis"))
        return lines


def _section(title: str) -> Text:
    return Text(f"{title} ".ljust(COLUMNS, "─"), style="dim")


def _milestone(milestone: Milestone) -> Text:
    style = "bold red" if milestone.is_trouble else ""
    return Text(milestone_line(milestone), style=style, no_wrap=True, overflow="ellipsis")


def milestone_line(milestone: Milestone) -> str:
    """``   10.0 s  kill -9 of worker 0 (pid 4711)``."""
    at = "" if milestone.at_s is None else f"{milestone.at_s:.1f} s"
    return f"{at:>8}  {milestone.text}"


def _book(check: BookCheck) -> Text:
    """The newest points as a line of blocks from 0 to the UCL; those beyond the limits in red."""
    book = check.book
    text = Text(f"{book.name} ", no_wrap=True, overflow="crop")
    for index in sorted(check.u):
        u = check.u[index]
        level = min(len(_BLOCKS) - 1, int(u / book.ucl * (len(_BLOCKS) - 1)))
        beyond = index in check.flagged or index in book.excluded
        style = "bold red" if beyond else "cyan" if index < book.phase_one else "green"
        text.append(_BLOCKS[level], style=style)
    return text


def progress_line(show: Show) -> str:
    """The state of a show in one line, for where there is no terminal."""
    ledger = show.ledger
    p50, p99 = ledger.latency_ms(0.5, 0.99)
    return (
        f"{show.elapsed_s:>6.1f} s  {ledger.reports:,} reports, {ledger.verdicts:,} verdicts, "
        f"{ledger.alarms:,} alarms, {ledger.rejected} rejected, latency p50 {p50:.1f} ms p99 {p99:.1f} ms"
    )


def summary(outcome: Outcome) -> list[Text]:
    """A show's figures for people, at most 80 columns; what was not so comes last, in red."""
    o = outcome
    deviation = (
        "not all judged as the book does"
        if o.book_deviation is None
        else f"largest deviation {o.book_deviation:.0e}"
    )
    recovery = (
        "no verdict after it" if o.recovery_ms is None else f"next verdict after {o.recovery_ms:.0f} ms"
    )
    chance = f"{o.chance_alarms:,} other alarms, 1 in {o.samples / max(1, o.chance_alarms):.0f} samples"
    rows = (
        (
            "reports",
            f"{o.reports:,} in {o.seconds:.1f} s, {o.reports_per_s:,.0f}/s, from {o.chambers} chambers",
        ),
        ("samples", f"{o.samples:,} judged, {o.samples_per_s:,.0f}/s; {o.resets} maintenance resets"),
        ("came out", f"{o.verdicts:,} verdicts, {o.alarms:,} alarms, {o.rejected} rejected"),
        ("account", f"{o.lost} lost, {o.duplicated} duplicated, {o.unexpected} unexpected"),
        (
            "planted",
            f"{o.planted_found} of {o.planted} excursions found; {chance}",
        ),
        ("broken", f"{o.broken_rejected} of {o.broken} messages in REJECTED, each for its reason"),
        (
            "latency",
            f"publish to verdict: p50 {o.latency_ms_p50:.1f} ms, p99 {o.latency_ms_p99:.1f} ms, "
            f"longest {o.latency_ms_max:.0f} ms",
        ),
        ("kill -9", f"{recovery}; {o.partitions_recovered} partitions seen with a new epoch"),
        (
            "data set",
            f"{o.book_points} points, {'the' if o.book_agrees else 'NOT the'} book's limits ({deviation})",
        ),
        ("cache", f"{o.cache_hit_rate:.2%} hits"),
        ("start", f"ready {o.ready_s:.1f} s after exec; left {o.leave_s:.2f} s after SIGTERM"),
    )
    lines = [Text(f"{title:<10}{text}") for title, text in rows]
    for line, (title, _) in zip(lines, rows, strict=True):
        line.stylize("bold", 0, len(title))
    problems = faults(o)
    if not problems:
        return [*lines, Text("Every promise was kept.", style="bold green")]
    return [*lines, *(Text(f"not so: {problem}", style="bold red") for problem in problems)]
