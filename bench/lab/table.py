"""A run in the terminal: live while it goes on, its result after it, and several beside each other.

Met and broken promises differ by a word and a sign, not by colour alone. All names come from outside: what
steers a terminal is taken out of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from types import TracebackType
from typing import Final, Self

from msgspec import Struct
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.lab import words
from bench.lab.result import Result
from bench.lab.words import number
from runtime.cli.terminal import clean

COLUMNS: Final = 100
"""A result fits this width."""
LINE_EVERY_S: Final = 2.0
"""Between two lines of progress where there is no terminal."""
PROBLEMS_MAX: Final = 12
"""Problems that the terminal shows; the page and the JSON have them all."""


class Now(Struct, frozen=True):
    """How a run stands at one moment."""

    elapsed_s: float
    step: str
    """What is being done."""
    reports: int
    """Stored so far."""
    verdicts: int
    waiting: int
    """Reports without verdict."""
    latency_ms_p99: float
    """Of the last second."""
    pods: int
    """Whose process runs."""
    ready: int
    members: int
    """Of the ring."""
    cores: float
    """That pods, lab and server take together."""


class Progress:
    """The live view of a run: redrawn in place on a terminal, elsewhere a line every LINE_EVERY_S."""

    def __init__(self, console: Console, heading: str) -> None:
        self._console, self._heading = console, clean(heading)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._line_due_s = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._console.print(Text(self._heading))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, now: Now) -> None:
        """Call it as often as there is news."""
        if self._live:
            self._live.update(_moment(self._heading, now), refresh=True)
        elif now.elapsed_s >= self._line_due_s:
            self._console.print(Text(_line(now)), soft_wrap=True)
            self._line_due_s = now.elapsed_s + LINE_EVERY_S


def _line(now: Now) -> str:
    return (
        f"{now.elapsed_s:6.1f} s  {clean(now.step)}: {now.reports:,} reports, {now.verdicts:,} verdicts, "
        f"{now.waiting:,} waiting, p99 {words.ms(now.latency_ms_p99)}, pods {now.ready}/{now.pods} ready, "
        f"{now.members} in the ring, {now.cores:.1f} cores"
    )


def _moment(heading: str, now: Now) -> Group:
    grid = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(4):
        grid.add_column(no_wrap=True)

    def cell(name: str, value: str, style: str = "bold") -> Text:
        return Text.assemble((f"{name} ", "dim"), (value, style))

    grid.add_row(
        cell("reports", f"{now.reports:,}"),
        cell("verdicts", f"{now.verdicts:,}"),
        cell("waiting", f"{now.waiting:,}"),
        cell("p99", words.ms(now.latency_ms_p99)),
    )
    grid.add_row(
        cell("pods", f"{now.pods}"),
        cell("ready", f"{now.ready}", "bold" if now.ready == now.pods else "bold yellow"),
        cell("in the ring", f"{now.members}"),
        cell("cores", f"{now.cores:.1f}"),
    )
    step = Text.assemble((f"{now.elapsed_s:6.1f} s  ", "dim"), (clean(now.step), "bold cyan"))
    return Group(Text(heading, style="dim"), step, grid)


# --- one result -----------------------------------------------------------------------------------


def print_result(console: Console, result: Result) -> None:
    """The whole result, at most COLUMNS wide."""
    width = min(console.width, COLUMNS)
    style = "bold green" if words.is_good(result) else "bold red"
    heading = Text.assemble(
        (clean(result.scenario), "bold"), f" · {clean(result.identity)} · ", words.fleet(result)
    )
    parts: list[Text | Table] = [heading, Text(words.verdict(result), style=style)]
    if result.broken:
        parts.append(Text(f"A fault was put in on purpose: {clean(result.broken)}", style="yellow"))
    parts += [Text(), _done(result), Text(), _figures(result)]
    if result.promises:
        parts += [Text(), promises(result)]
    for title, lines, line_style in (("Notes", result.notes, ""), ("Problems", result.problems, "red")):
        parts += _lines(title, lines, line_style)
    for part in parts:
        console.print(part, width=width, highlight=False, markup=False, emoji=False)


def _lines(title: str, lines: Sequence[str], style: str) -> Iterator[Text]:
    if lines:
        yield Text(f"\n{title}", style="bold")
    for line in lines[:PROBLEMS_MAX]:
        yield Text(f"  {clean(line)}", style=style)
    if len(lines) > PROBLEMS_MAX:
        yield Text(f"  and {len(lines) - PROBLEMS_MAX} more in the page and the JSON", style="dim")


def _done(result: Result) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    begun = words.begun_ns(result)
    for mark in result.marks:
        at = f"{(mark.begun_ns - begun) / 1e9:.1f} s"
        table.add_row(Text(at, style="dim"), Text(clean(mark.what)), Text(words.lasted(mark)))
    if not result.marks:
        table.add_row("", Text("nothing was done to the fleet", style="dim"), "")
    return table


def _figures(result: Result) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def _rows(result: Result) -> Iterator[tuple[str, Text]]:
    yield (
        "counts",
        Text(
            f"{number(result.reports)} reports, {number(result.verdicts)} verdicts, "
            f"{number(result.samples)} samples, "
            f"{number(result.rejected)} rejected"
        ),
    )
    counts = Text()
    for field, name in (
        ("lost", "lost"),
        ("doubled", "doubled"),
        ("wrong", "wrong"),
        ("out_of_order", "out of order"),
        ("stale", "of an old epoch"),
    ):
        value = getattr(result, field)
        counts.append(", " if counts else "").append(
            f"{number(value)} {name}", style="bold red" if value else ""
        )
    yield "", counts
    alarms = f"{number(result.alarms_lost)} alarms lost, {number(result.alarms_doubled)} alarms doubled"
    yield "", Text(alarms, style="bold red" if result.alarms_lost or result.alarms_doubled else "")
    if result.unknown:
        yield "", Text(f"of {number(result.unknown)} nothing can be said", style="yellow")
    yield "latency", _quantiles(result.latency_ms_p50, result.latency_ms_p99, result.latency_ms_max)
    gaps = _quantiles(result.gap_ms_p50, result.gap_ms_p99, result.gap_ms_max)
    yield "unattended", gaps.append(f"over {words.count(len(result.gaps_ms), 'change')} of a partition's pod")
    yield "", Text(f"at most {words.ms(result.unowned_max_ms)} without a live owner by the records")
    owners = Text(
        f"{number(result.partitions_reassigned)} reassigned "
        f"({number(result.partitions_must_move)} must move), "
        f"{number(result.partitions_taken_over)} taken over, "
    )
    doubly = f"{number(result.doubly_owned)} doubly owned"
    yield "ownership", owners.append(doubly, style="bold red" if result.doubly_owned else "")
    yield "identity", Text(f"{words.s(result.identity_recovery_s_max)} from a pod's start to its ID at most")
    yield "duration", Text(f"{words.s(result.duration_s)} for the steps")
    if result.rate_sustained:
        yield "sustained", Text(f"{number(result.rate_sustained)} reports/s")
    yield "pods", Text(_pods(result))
    yield (
        "lab",
        Text(
            f"{number(result.producer_reports_per_s)} reports/s wanted, producers late by "
            f"{words.ms(result.producer_late_ms_max)} at most, "
            f"observer {words.told('observer_cores', result.observer_cores)}"
        ),
    )
    if result.machine:
        yield "machine", Text(f"{clean(words.machine(result))}; {words.date(result.begun_ns)}")


def _quantiles(p50: float, p99: float, longest: float) -> Text:
    return Text(f"p50 {words.ms(p50)}   p99 {words.ms(p99)}   max {words.ms(longest)}   ")


def _pods(result: Result) -> str:
    if not result.pods:
        return "none"
    cpu, pss = [pod.cpu_s for pod in result.pods], [pod.pss_mb for pod in result.pods]
    return (
        f"{len(result.pods)}, {words.count(result.pods_restarted, 'container restart')}; CPU median "
        f"{median(cpu):.1f} s, most {max(cpu):.1f} s; PSS median {median(pss):.0f} MB, most {max(pss):.0f} MB"
    )


def promises(result: Result) -> Table:
    """The budget's lines: what was promised, what was seen, whether it was met."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("promise", overflow="fold")
    table.add_column("at most", justify="right")
    table.add_column("seen", justify="right")
    table.add_column("")
    for promise in result.promises:
        told = Text("✓ met", style="green") if promise.met else Text("✗ broken", style="bold red")
        limit, seen = words.told(promise.name, promise.limit), words.told(promise.name, promise.seen)
        table.add_row(Text(clean(words.title(promise.name))), limit, seen, told)
    return table


# --- several results ------------------------------------------------------------------------------

COMPARED: Final = (
    "scenario",
    "identity",
    "reassigned",
    "must move",
    "duration",
    "gap p50",
    "gap p99",
    "gap max",
    "latency p99",
    "lost",
    "doubled",
    "ID recovery",
)


def compared(result: Result) -> tuple[str, ...]:
    """A result as a row under COMPARED."""
    return (
        clean(result.scenario) + ("" if result.is_whole else " (broken off)"),
        clean(result.identity),
        number(result.partitions_reassigned),
        number(result.partitions_must_move),
        words.s(result.duration_s),
        words.ms(result.gap_ms_p50),
        words.ms(result.gap_ms_p99),
        words.ms(result.gap_ms_max),
        words.ms(result.latency_ms_p99),
        number(result.lost),
        number(result.doubled),
        words.s(result.identity_recovery_s_max),
    )


def comparison(results: Sequence[Result]) -> str:
    """The results side by side as a Markdown table with a caption, for the docs."""
    lines = [f"| {' | '.join(COMPARED)} |", "|---|---|" + "---:|" * (len(COMPARED) - 2)]
    for result in results:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in compared(result)) + " |")
    return "\n".join([*lines, "", f"{words.sizes(results)}. On {clean(words.caption(results))}.", ""])


def comparison_table(results: Sequence[Result]) -> Table:
    """The same for the terminal; a fault is red, a scenario is named once."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(COMPARED):
        table.add_column(name.replace(" ", "\n"), justify="left" if place < 2 else "right", vertical="top")
    faults = (COMPARED.index("lost"), COMPARED.index("doubled"))
    before = ""
    for result in results:
        row = compared(result)
        cells = [
            Text(cell, style="bold red" if i in faults and cell != "0" else "") for i, cell in enumerate(row)
        ]
        if row[0] == before:
            cells[0] = Text()
        before = row[0]
        table.add_row(*cells)
    table.caption = Text(clean(words.caption(results)), style="dim")
    return table
