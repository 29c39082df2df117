"""``defender chart``: one control chart of the stored verdicts, in the terminal, as a picture, as columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final

import msgspec
import typer
from msgspec.structs import replace
from rich.text import Text

from runtime import specs as model
from runtime import wire
from runtime.cli import reading, terminal
from runtime.cli.reading import Start
from runtime.cli.specs import described
from runtime.config import Settings
from runtime.connection import Connection
from runtime.control_chart import Axis, ControlChart, control_chart, facts, remark
from runtime.errors import DefenderError, InputError
from runtime.fleet_report import named
from runtime.jetstream import NotFound
from runtime.names import name_problem
from runtime.specs import ChartSpec
from runtime.terminal_chart import room, terminal_chart
from runtime.wire import Verdict

SUFFIXES: Final = (".png", ".svg")
WIDTHS, HEIGHTS = range(40, 1001), range(6, 201)
"""Of a terminal, in characters; the height is that of the points alone."""
WIDTHS_PX, HEIGHTS_PX = range(600, 8001), range(400, 8001)
TO_THE_MINUTE_NS: Final = 600 * 10**9
"""A span from which on its ends are told to the minute."""
ROWS: Final = 18
ROWS_AROUND: Final = 14
"""Of a terminal, for all that is not the points."""


class PlotMissing(DefenderError):
    """A picture is asked for where matplotlib is not installed."""

    exit_code = 69


class Drawn(msgspec.Struct, frozen=True):
    """What is to be drawn: the chart, and the spec that its newest sample was judged by, where it is kept."""

    chart: ControlChart
    spec: ChartSpec | None
    unreadable: int


def chart(
    chamber: Annotated[str, typer.Argument(help="Name of the chamber.")],
    chart: Annotated[str, typer.Argument(help="Name of the chart.")],
    last: Annotated[
        int | None,
        typer.Option(min=1, help="The newest N samples; else all, in a terminal as many as have a column."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a picture: a file .png or .svg.")] = None,
    time: Annotated[bool, typer.Option("--time", help="Over time, not over report numbers.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The columns, as one JSON object.")] = False,
    width: Annotated[
        int | None, typer.Option(help="Columns of the terminal, or pixels of the picture.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Rows that the points have in the terminal, or pixels of the picture.")
    ] = None,
) -> None:
    """Draw a control chart: its points, limits, phases, signals, resets and alarms."""
    for kind, name in (("chamber", chamber), ("chart", chart)):
        problem = name_problem(name)
        if problem:
            raise InputError(f"{kind} {name!r} {problem}")
    if json and out is not None:
        raise InputError("--json and --out exclude each other: give one of them")
    plot = None if out is None else _plot(out)
    _check("--width", width, WIDTHS if out is None else WIDTHS_PX)
    _check("--height", height, HEIGHTS if out is None else HEIGHTS_PX)
    columns = terminal.stdout().width if width is None else width
    if last is None and out is None and not json:
        last = room(columns)
    drawn = terminal.run(_drawn(terminal.settings(), chamber, chart, last))
    if drawn.unreadable:
        terminal.stderr().print(
            f"{drawn.unreadable} verdicts of another version cannot be read", style="yellow"
        )
    axis = Axis.TIME if time else Axis.REPORT
    if json:
        terminal.print_json(drawn.chart.columns())
    elif plot is not None and out is not None:
        size = (width or plot.WIDTH_PX, height or plot.usual_height_px(drawn.chart))
        try:
            plot.save(_cleaned(drawn.chart), out, heading(drawn), axis, *size)
        except OSError as error:
            raise InputError(f"{out}: {error.strerror or error}") from error
        terminal.stderr().print(f"drawn: {out}, {len(drawn.chart.points)} samples")
    else:
        _print(drawn, axis, columns, height)


def _plot(out: Path) -> ModuleType:
    """The module that draws pictures; raises before anything is read where it could not draw this one."""
    if out.suffix not in SUFFIXES:
        raise InputError(f"--out {out}: a picture is a file with the suffix {' or '.join(SUFFIXES)}")
    try:
        from runtime import plot  # matplotlib: half a second, and an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise PlotMissing(
            "--out needs matplotlib: pip install 'tfdc-defender[plot]'; without --out the terminal will do"
        ) from error
    return plot


def _check(option: str, value: int | None, allowed: range) -> None:
    if value is not None and value not in allowed:
        raise InputError(f"{option} {value}: give {allowed[0]} to {allowed[-1]}")


def _print(drawn: Drawn, axis: Axis, columns: int, height: int | None) -> None:
    console = terminal.stdout()
    if height is None:
        height = min(max(console.height - ROWS_AROUND, 10), ROWS) if console.is_terminal else ROWS
    for line in terminal_chart(_cleaned(drawn.chart), heading(drawn), axis, columns, height):
        text = Text.assemble(*((run.text, run.style) for run in line))
        text.rstrip()
        console.print(text)


def heading(drawn: Drawn) -> list[str]:
    """The title, and the small print under it."""
    one = drawn.chart
    first, newest = one.points[0], one.points[-1]
    lines = [terminal.clean(f"{one.chamber}  {one.chart}")]
    if drawn.spec is not None:
        lines.append(f"u-chart: {described(drawn.spec)}")
    count = len(one.points)
    samples = f"{count} samples, reports {first.ordinal}–{newest.ordinal}, {_times(first.at, newest.at)}"
    if count == 1:
        samples = f"1 sample, report {newest.ordinal}, {terminal.clock(newest.at)} UTC"
    lines.append(" · ".join([samples, *facts(one)]))
    if remark(one):
        lines.append(f"marked as {remark(one)}")
    return lines


def _times(first_ns: int, last_ns: int) -> str:
    first, last = terminal.clock(first_ns), terminal.clock(last_ns)
    if last_ns - first_ns > TO_THE_MINUTE_NS:
        first, last = first[:16], last[:16]
    return f"{first} – {last} UTC"


def _cleaned(one: ControlChart) -> ControlChart:
    return replace(one, breaks=[replace(b, text=terminal.clean(b.text)) for b in one.breaks])


async def _drawn(settings: Settings, chamber: str, chart: str, last: int | None) -> Drawn:
    """Raises InputError, which names what there is, where there is no such chamber or chart."""
    names = settings.names
    partition = names.partition_of(chamber)
    stream = names.verdicts_stream(partition)
    verdicts: list[Verdict] = []
    unreadable = 0
    async with terminal.session(settings) as connection:
        try:
            async for record in reading.read(connection, stream, names.verdict(partition, chamber), Start()):
                try:
                    verdicts.append(wire.decode_verdict(record.payload))
                except msgspec.MsgspecError:
                    unreadable += 1
        except NotFound as error:
            wrong = "NATS_SERVERS, STREAM_VERDICTS or PARTITIONS"
            raise terminal.missing("stream", stream, wrong) from error
        found = control_chart(verdicts, chamber, chart, last)
        if not found.points:
            raise InputError(await _no_samples(connection, settings, verdicts, chamber, chart, unreadable))
        spec = await _spec(connection, settings, chamber, chart, found.points[-1].spec)
    return Drawn(found, spec, unreadable)


async def _no_samples(
    connection: Connection,
    settings: Settings,
    verdicts: list[Verdict],
    chamber: str,
    chart: str,
    unreadable: int,
) -> str:
    """What there is instead of the samples of a chart."""
    charts = {name for verdict in verdicts if verdict.reset is None for name in verdict.charts}
    if charts:
        return f"{chamber} has no chart {chart!r} in its stored verdicts; it has {_like(chart, charts)}"
    if unreadable:
        return f"none of the {unreadable} verdicts of {chamber} can be read: they are of another version"
    if verdicts:
        return f"only resets of {chamber} are stored: its charts have no samples yet"
    chambers: set[str] = set()
    names = settings.names
    for shard in range(names.shards):
        stream = names.verdicts_stream(names.partitions_of_shard(shard)[0])
        request = {"subjects_filter": f"{names.root}.verdict.*.*"}
        answer = await connection.api(f"STREAM.INFO.{stream}", request)
        subjects = answer["state"].get("subjects") or {}
        chambers |= {subject.rpartition(".")[2] for subject in subjects}
    if not chambers:
        return f"no verdicts of {chamber} are stored, nor of any other chamber"
    return f"no verdicts of a chamber {chamber!r} are stored; there are those of {_like(chamber, chambers)}"


def _like(name: str, known: Iterable[str]) -> str:
    """Some of the names that there are, those that are most like *name* first."""
    every = sorted(known)
    near = difflib.get_close_matches(name, every, n=3)
    return terminal.clean(named([*near, *(one for one in every if one not in near)]))


async def _spec(
    connection: Connection, settings: Settings, chamber: str, chart: str, revision: int
) -> ChartSpec | None:
    """What a revision of the specs says of the chart; None where it is not kept, or is of a newer release."""
    if revision == 0:
        return model.BUILT_IN.match(chamber, chart)[1]
    bucket = settings.nats_kv_chart_specs
    try:
        rows = reading.read(connection, f"KV_{bucket}", f"$KV.{bucket}.{model.KEY}", Start(seq=revision))
        async for row in rows:
            if row.seq == revision and row.payload:
                return model.decode(row.payload).match(chamber, chart)[1]
            break
    except (NotFound, model.SpecsError):
        pass  # the chart can be drawn without
    return None
