"""``defender history show``: which chambers are stored, and a chamber's reports."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer
from msgspec import Struct
from rich.progress import Progress

from runtime import config
from runtime.cli import terminal
from runtime.cli.history_chosen import GLOB, Store, chosen, like, reading, span_of, spoken
from runtime.cli.terminal import clean, clock, fits
from runtime.config import Settings
from runtime.errors import InputError
from runtime.history import History, Span
from runtime.wire import Verdict, rules_of

LAST: Final = 20
SIGNALS_SHOWN: Final = 4
"""Charts of a report whose signals are told one by one."""
REPORT_HEADING: Final = (
    f"{'time (UTC)':<23}  {'report':>7}  {'seq':>9}  {'run':<12}  {'charts':>6}  {'stage':<9}  "
    f"{'phase':<8}  signals"
)
SAMPLE_HEADING: Final = (
    f"{'time (UTC)':<23}  {'report':>7}  {'run':<12}  {'chart':<18}  {'count':>7} {'units':>9}  {'u':>10}  "
    f"{'LCL':>10} {'centre':>10} {'UCL':>10}  {'flags':>5}  {'phase':<8}  {'stage':>6}  rules"
)
_PHASES: Final = ("learning", "phase I", "phase II", "predicts")


class Asked(NamedTuple):
    """Which reports of a chamber: with samples of charts that match, of a time, the newest so many."""

    chart: str
    span: Span
    last: int | None


class Kept(Struct, frozen=True):
    """What is stored of a chamber; times in ns since 1970."""

    chamber: str
    partition: int
    reports: int
    """By their numbers, first to last; those that were read, where a span is given."""
    first_at: int
    last_at: int
    first_ordinal: int
    last_ordinal: int
    last_seq: int
    charts: list[str]
    """Of the first and the last reports."""


def show(
    chamber: Annotated[
        str, typer.Argument(help="A chamber, for its reports; a glob or nothing, for the chambers.")
    ] = "",
    chart: Annotated[str, typer.Option(help="The samples of this chart, or of those that match.")] = "",
    last: Annotated[
        int | None, typer.Option(min=1, help="The newest N reports.  [default: 20, without --since]")
    ] = None,
    since: Annotated[str, typer.Option(help="From this time on: a span (10m), RFC 3339, or all.")] = "",
    until: Annotated[str, typer.Option(help="Before this time: the same.")] = "",
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a report, or chamber, and line.")
    ] = False,
    store: Store = None,
) -> None:
    """Show what is stored: the chambers, or the reports of one as they were judged."""
    settings, span = terminal.settings(), span_of(since, until)
    if chamber and GLOB.isdisjoint(chamber):
        if last is None and not since:
            last = LAST
        if not terminal.run(_reports(settings, store, chamber, Asked(chart, span, last), json)):
            raise InputError(f"nothing is stored of {chamber} {spoken(span)}".rstrip())
        return
    if chart or last is not None:
        raise InputError("--chart and --last are for the reports of one chamber: name it")
    kept = terminal.run(_kept(settings, store, chamber, span))
    if not kept:
        raise InputError(f"nothing is stored {spoken(span)}")
    if json:
        for one in kept:
            terminal.print_json(one)
        return
    _print_kept(kept)


def _print_kept(kept: list[Kept]) -> None:
    table = terminal.table(
        *(("chamber", False), ("partition", True), ("reports", True), ("numbers", True)),
        *(("first (UTC)", False), ("last (UTC)", False), ("charts", False)),
    )
    for one in kept:
        table.add_row(
            *(clean(one.chamber), str(one.partition), f"{one.reports:,}"),
            f"{one.first_ordinal}–{one.last_ordinal}",
            *(clock(one.first_at)[:19], clock(one.last_at)[:19], _some(one.charts)),
        )
    terminal.tables().print(table)
    count = f"{len(kept):,} chambers" if len(kept) > 1 else "1 chamber"
    terminal.stderr().print(f"{count}, {sum(one.reports for one in kept):,} reports", style="dim")


def _some(charts: list[str]) -> str:
    shown = [clean(chart) for chart in charts[:SIGNALS_SHOWN]]
    more = f" and {len(charts) - len(shown)} more" if len(charts) > len(shown) else ""
    return f"{', '.join(shown)}{more}"


async def _kept(settings: Settings, store: config.History | None, glob: str, span: Span) -> list[Kept]:
    kept: list[Kept] = []
    async with reading(settings, store) as history:
        found = await chosen(history, settings, [glob] if glob else [])
        console = terminal.stderr()
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            shown = progress.add_task("reading", total=len(found))
            for chamber, partition in found.items():
                one = await kept_of(history, partition, chamber, span)
                kept += [] if one is None else [one]
                progress.advance(shown)
    return kept


async def kept_of(history: History, partition: int, chamber: str, span: Span) -> Kept | None:
    """What is stored of a chamber; None where nothing is. Without a span only the ends are read: there may be
    months in between."""
    first: Verdict | None = None
    last: Verdict | None = None
    charts: dict[str, None] = {}
    reports = 0
    pages = history.verdicts(partition, chamber, span)
    async for page in pages:
        first, last = first or page[0], page[-1]
        reports += len(page)
        charts |= dict.fromkeys(chart for verdict in page for chart in verdict.charts)
        if span == Span():
            break
    if first is None or last is None:
        return None
    if span == Span():
        seq = (await history.last_stored({chamber: partition}))[chamber].seq
        last = next(iter(await history.verdicts_after(partition, chamber, seq - 1)), last)
        charts |= dict.fromkeys(last.charts)
        reports = last.ordinal - first.ordinal + 1
    return Kept(
        *(chamber, partition, reports, first.at, last.at, first.ordinal, last.ordinal, last.seq),
        sorted(charts),
    )


async def _reports(
    settings: Settings, store: config.History | None, chamber: str, asked: Asked, json: bool
) -> int:
    """Prints them; how many there were."""
    console = terminal.stdout()
    shown = 0
    async with reading(settings, store) as history:
        partition = (await chosen(history, settings, [chamber]))[chamber]
        async for verdict in _wanted(history, partition, chamber, asked):
            if json:
                terminal.print_json(msgspec.to_builtins(verdict))
            else:
                if not shown:
                    console.print(SAMPLE_HEADING if asked.chart else REPORT_HEADING, style="bold")
                for text, style in (
                    sample_lines(verdict, asked.chart) if asked.chart else [report_line(verdict)]
                ):
                    console.print(text, style=style or None)
            shown += 1
    return shown


async def _wanted(history: History, partition: int, chamber: str, asked: Asked) -> AsyncIterator[Verdict]:
    """The reports that are asked for, oldest first. Raises InputError where no sample is of such a chart."""
    newest: deque[Verdict] = deque(maxlen=asked.last)
    others: dict[str, None] = {}
    found = not asked.chart
    async for page in history.verdicts(partition, chamber, asked.span):
        for verdict in page:
            if not _concerns(verdict, asked.chart):
                if not found:
                    others |= dict.fromkeys(verdict.charts)
                continue
            found = found or verdict.reset is None
            if asked.last is None:
                yield verdict
            else:
                newest.append(verdict)
    if not found and others:
        there = like(asked.chart, others)
        raise InputError(f"{chamber} has no chart {asked.chart!r} in what is stored; it has {there}")
    for verdict in newest:
        yield verdict


def _concerns(verdict: Verdict, chart: str) -> bool:
    """Whether a report has such a chart; a reset of all charts concerns each."""
    whole = verdict.reset is not None and not verdict.charts
    return not chart or whole or any(fits(one, chart) for one in verdict.charts)


def report_line(verdict: Verdict) -> tuple[str, str]:
    """A report in one line, and its colour."""
    left = f"{clock(verdict.at):<23}  {verdict.ordinal:>7}  {verdict.seq:>9}  {clean(verdict.run):<12}"
    if verdict.reset is not None:
        return f"{left}  {_reset(verdict)}", "magenta"
    stages, phases = sorted(set(verdict.stage)), set(verdict.phase)
    stage = f"{stages[0]}–{stages[-1]}" if len(stages) > 1 else str(stages[0])
    phase = _phase(next(iter(phases))) if len(phases) == 1 else "mixed"
    signals = [
        f"{clean(chart)} {_rules(flags)}"
        for chart, flags in zip(verdict.charts, verdict.flags, strict=True)
        if flags
    ]
    more = f"; {len(signals) - SIGNALS_SHOWN} more" if len(signals) > SIGNALS_SHOWN else ""
    told = f"{'; '.join(signals[:SIGNALS_SHOWN])}{more}"
    text = f"{left}  {len(verdict.charts):>6}  {stage:<9}  {phase:<8}  {told}"
    union = 0
    for flags in verdict.flags:
        union |= flags
    return text.rstrip(), _style(union, max(phases))


def sample_lines(verdict: Verdict, chart: str) -> list[tuple[str, str]]:
    """A line for each sample of the charts that match, and its colour."""
    left = f"{clock(verdict.at):<23}  {verdict.ordinal:>7}  {clean(verdict.run):<12}"
    if verdict.reset is not None:
        return [(f"{left}  {_reset(verdict)}", "magenta")]
    return [
        (f"{left}  {_sample(verdict, i)}".rstrip(), _style(verdict.flags[i], verdict.phase[i]))
        for i, name in enumerate(verdict.charts)
        if fits(name, chart)
    ]


def _sample(verdict: Verdict, i: int) -> str:
    limits = " ".join(
        f"{_number(limit):>10}" for limit in (verdict.lcl[i], verdict.centre[i], verdict.ucl[i])
    )
    flags = verdict.flags[i]
    return (
        f"{clean(verdict.charts[i]):<18}  {verdict.counts[i]:>7} {verdict.units[i]:>9.6g}  "
        f"{_number(verdict.u[i]):>10}  {limits}  {flags:>5}  {_phase(verdict.phase[i]):<8}  "
        f"{verdict.stage[i]:>6}  {_rules(flags)}"
    )


def _reset(verdict: Verdict) -> str:
    return f"reset of {clean(', '.join(verdict.charts)) or 'all charts'}: {clean(verdict.reset or '')}"


def _rules(flags: int) -> str:
    return ",".join(map(str, rules_of(flags)))


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}"


def _phase(phase: int) -> str:
    return _PHASES[phase] if phase < len(_PHASES) else str(phase)


def _style(flags: int, phase: int) -> str:
    if flags:
        return "bold red" if flags & 1 else "yellow"
    return "dim" if phase == 0 else ""
