"""``defender history``: what the store keeps - show it, export it, copy it into the other store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from runtime import config, resources
from runtime.cli import history_show, terminal
from runtime.cli.history_chosen import Store, chosen, like, named_store, opened, reading, span_of, spoken
from runtime.config import Settings
from runtime.errors import DefenderError, InputError
from runtime.history import Span
from runtime.history_export import Format, Rows, check_format, file_of, replaced

if TYPE_CHECKING:
    from runtime.history_copy import Copied, Target, Trouble

SHOWN_MAX: Final = 20
"""Chambers whose troubles are told one by one."""

app = typer.Typer(help="The stored history: show, export, copy.", no_args_is_help=True)
app.command()(history_show.show)

Chambers = Annotated[
    list[str] | None, typer.Option("--chamber", help="Only this chamber, or glob; again for more.")
]


@app.command()
def export(
    file: Annotated[str, typer.Argument(help="FILE.parquet or FILE.csv; - writes to standard output.")],
    chamber: Chambers = None,
    chart: Annotated[list[str] | None, typer.Option(help="Only this chart, or glob; again for more.")] = None,
    since: Annotated[str, typer.Option(help="From this time on: a span (7d), RFC 3339, or all.")] = "",
    until: Annotated[str, typer.Option(help="Before this time: the same.")] = "",
    format: Annotated[Format | None, typer.Option(help="Default: by the file's ending.")] = None,
    store: Store = None,
) -> None:
    """Export the history, a row a sample: Parquet or CSV.

    Rows are in the order of chamber, report, chart. Times are UTC, to the nanosecond. Columns are those of
    the verdicts (docs/wire.md), empty where a chart has none; a reset is a row of its own, with its reason in
    "reset". The file gets its name when it is whole. defender publish reads the CSV.
    """
    kind = format or _format_of(file)
    check_format(kind)
    if file == "-" and kind is Format.PARQUET and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal: name a file, or pipe it on")
    settings, span = terminal.settings(), span_of(since, until)
    with _stream(file) as stream:
        rows = terminal.run(_export(settings, store, stream, kind, chamber or [], chart or [], span))
    where = "" if file == "-" else f"{terminal.clean(file)}: "
    terminal.stderr().print(f"{where}{rows.rows:,} rows of {rows.reports:,} reports")


def _format_of(file: str) -> Format:
    suffix = Path(file).suffix.lower()
    if file == "-" or suffix == ".csv":
        return Format.CSV
    if suffix in (".parquet", ".pq"):
        return Format.PARQUET
    raise InputError(f"{file}: give it the ending .parquet or .csv, or say which by --format")


@contextmanager
def _stream(file: str) -> Iterator[BinaryIO]:
    if file != "-":
        with replaced(Path(file)) as stream:
            yield stream
        return
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"standard output: {error.strerror or error}") from error


async def _export(
    settings: Settings,
    store: config.History | None,
    stream: BinaryIO,
    kind: Format,
    chambers: list[str],
    charts: list[str],
    span: Span,
) -> Rows:
    def wanted(chart: str) -> bool:
        return not charts or any(terminal.fits(chart, glob) for glob in charts)

    async with reading(settings, store) as history:
        found = await chosen(history, settings, chambers)
        file = file_of(kind, stream)
        rows = Rows(file, wanted)
        try:
            with _progress("exporting") as progress:
                shown = progress.add_task("", total=len(found), count="")
                for chamber, partition in found.items():
                    async for page in history.verdicts(partition, chamber, span):
                        rows.take(page)
                        progress.update(shown, count=f"{rows.rows:,} rows")
                    progress.advance(shown)
            if charts and rows.others and not rows.samples:
                there = like(charts[0], rows.others)
                raise InputError(f"no chart {charts[0]!r} in what is stored; there are {there}")
            if not rows.rows:
                raise InputError(_nothing(list(found), span))
            rows.finish()
        except BaseException:
            file.abandon()
            raise
    return rows


def _nothing(chambers: list[str], span: Span) -> str:
    of = chambers[0] if len(chambers) == 1 else f"{len(chambers)} chambers"
    what = " ".join(part for part in ("nothing is stored of", of, spoken(span)) if part)
    return f"{what}: there is nothing to write; defender history show says what there is"


def _progress(what: str) -> Progress:
    console = terminal.stderr()
    columns = (
        *(TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("chambers")),
        TextColumn("{task.fields[count]}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


@app.command()
def copy(
    source: Annotated[config.History, typer.Option("--from", help="The store to read.")],
    target: Annotated[config.History, typer.Option("--to", help="The store to write.")],
    chamber: Chambers = None,
    json: Annotated[bool, typer.Option("--json", help="The summary, as one JSON object.")] = False,
) -> None:
    """Copy the history from one store into the other, and compare.

    It can be made again, and while defenders run: what is there is passed over. To jetstream go the last
    HISTORY_DEPTH reports of each chamber, if they are newer than what VERDICTS has of it: a stream takes
    nothing in before what it has. The exit code is 1 when a report is not in the target as in the source.
    """
    if source is target:
        raise InputError(f"--from and --to are both {source}: give two stores")
    settings = terminal.settings()
    done = terminal.run(_copy(settings, source, target, chamber or []))
    troubled = [one for one in done if one.troubles]
    if json:
        terminal.print_json(_summary(done, source, target))
    else:
        _tell(done, source, target, settings)
    if troubled:
        raise typer.Exit(1)


async def _copy(
    settings: Settings, source: config.History, target: config.History, chambers: list[str]
) -> list[Copied]:
    """Of each chamber, in the order of their names."""
    from runtime.history_copy import IntoStore, IntoVerdicts, copy_all  # with NumPy

    done: list[Copied] = []
    read = 0
    async with terminal.session(settings) as connection:
        if target is config.History.JETSTREAM:
            await resources.ensure(connection, settings)
        async with (
            reading(settings, source, connection) as original,
            opened(settings, connection, target) as other,
        ):
            found = await chosen(original, settings, chambers)
            into: Target = IntoStore(other, settings.names)
            if target is config.History.JETSTREAM:
                depth, timeout_s = settings.history_depth, settings.request_timeout_s
                into = IntoVerdicts(connection, other, settings.names, depth, timeout_s)
            with _progress("copying") as progress:
                shown = progress.add_task("", total=len(found), count="")

                def tell(copied: Copied) -> None:
                    nonlocal read
                    done.append(copied)
                    read += copied.read
                    progress.update(shown, advance=1, count=f"{read:,} reports")

                try:
                    await copy_all(original, into, found, tell)
                except DefenderError as error:
                    error.add_note("copy again: what is there is passed over")
                    raise
    return sorted(done, key=lambda copied: copied.chamber)


def _counts(done: list[Copied]) -> dict[Trouble, int]:
    counts: dict[Trouble, int] = {}
    for copied in done:
        for trouble, reports in copied.troubles.items():
            counts[trouble] = counts.get(trouble, 0) + reports
    return counts


def _summary(done: list[Copied], source: config.History, target: config.History) -> dict[str, Any]:
    return {
        "from": source,
        "to": target,
        "chambers": len(done),
        "read": sum(copied.read for copied in done),
        "stored": sum(copied.stored for copied in done),
        "there": sum(copied.there for copied in done),
        "beyond": sum(copied.beyond for copied in done),
        "equal": not _counts(done),
        "troubles": _counts(done),
        "troubled": [copied for copied in done if copied.troubles],
    }


def _tell(done: list[Copied], source: config.History, target: config.History, settings: Settings) -> None:
    summary, console = _summary(done, source, target), terminal.stdout()
    equal = "compared: equal" if summary["equal"] else "compared: they differ"
    console.print(
        f"{named_store(source)} → {named_store(target)}: {summary['chambers']:,} chambers, "
        f"{summary['read']:,} reports; {summary['stored']:,} stored, {summary['there']:,} there already; "
        f"{equal}"
    )
    troubled: list[Copied] = summary["troubled"]
    for copied in troubled[:SHOWN_MAX]:
        reasons = ", ".join(f"{reports:,} {trouble}" for trouble, reports in copied.troubles.items())
        console.print(f"  {terminal.clean(copied.chamber)}: {reasons}", style="yellow")
    if len(troubled) > SHOWN_MAX:
        console.print(f"  … and {len(troubled) - SHOWN_MAX} chambers more", style="yellow")
    for trouble in summary["troubles"]:
        console.print(f"{trouble}: {_explained(trouble, settings)}")


def _explained(trouble: Trouble, settings: Settings) -> str:
    """Why, and what to do."""
    names, window_s = settings.names, settings.duplicate_window_s
    verdicts, samples = names.verdicts_stream(0), names.samples_stream(0)
    return {
        "older": f"than the newest verdict that {verdicts} has of the chamber, and a stream takes nothing in "
        "before what it has. With HISTORY=cassandra they are read from Cassandra. To have them in the stream "
        "too: end the defenders, copy from jetstream to cassandra, purge the chamber's subject in the "
        "stream, and copy back",
        "unnumbered": f"the chamber was judged up to a report whose number {samples} has not reached: "
        "the stream was made anew, and its next reports would pass for judged. Make it begin behind that "
        "number (first_seq of the stream), or leave these chambers out",
        "dropped": f"the server took them for repeats of messages that {verdicts} had, and lost, in the "
        f"last {window_s} s (DUPLICATE_WINDOW_S): copy again after that time",
        "different": f"{verdicts} has another verdict of the same report, and that is the one that counts",
        "lost": "stored, but not read back the same: copy again, and see the target's log if it stays so",
    }[trouble.value]
