"""``defender verdicts``, ``alarms``, ``rejected``: what came out, and what comes."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from runtime.cli import reading, terminal
from runtime.cli.lines import (
    ALARM_HEADING,
    REJECTED_HEADING,
    VERDICT_HEADING,
    Filter,
    Line,
    alarm_lines,
    rejected_lines,
    verdict_lines,
)
from runtime.cli.reading import Record, Start
from runtime.config import Settings
from runtime.connection import Connection
from runtime.jetstream import NotFound

LAST: Final = 20
_GLOB: Final = frozenset("*?[")

Chamber = Annotated[str, typer.Option(help="Only chambers that match this glob, such as 'ETCH-*'.")]
Chart = Annotated[str, typer.Option(help="Only charts that match this glob.")]
Since = Annotated[str, typer.Option(help="From this time on: a span (10m), RFC 3339, or all.")]
Last = Annotated[
    int | None, typer.Option(min=0, help="The newest N messages.  [default: 20, without --since]")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a message and line.")]


@dataclass(frozen=True)
class _Kind:
    """What one command reads, and how it shows it."""

    streams: list[str]
    settings: str
    """Those that may be wrong when a stream is missing."""
    subject: str
    heading: str
    lines: Callable[[Record, Filter], list[Line]]


@dataclass(frozen=True)
class _Choice:
    """What a person asked for."""

    wanted: Filter
    since: str
    last: int | None
    follow: bool
    json: bool


def verdicts(
    chamber: Chamber = "",
    chart: Chart = "",
    since: Since = "",
    last: Last = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Show verdicts: every judged sample with its limits and the rules that signal."""
    settings = terminal.settings()
    names = settings.names
    streams = [names.verdicts_stream(names.partitions_of_shard(shard)[0]) for shard in range(names.shards)]
    subject = f"{names.root}.verdict.*.*"
    if chamber and _GLOB.isdisjoint(chamber):
        partition = names.partition_of(chamber)
        streams, subject = [names.verdicts_stream(partition)], names.verdict(partition, chamber)
    kind = _Kind(
        streams, "NATS_SERVERS, STREAM_VERDICTS or PARTITIONS", subject, VERDICT_HEADING, verdict_lines
    )
    terminal.run(_show(settings, kind, _Choice(Filter(chamber, chart), since, last, follow, json)))


def alarms(
    chamber: Chamber = "",
    chart: Chart = "",
    since: Since = "",
    last: Last = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Show alarms: only charts that signal, and why."""
    settings = terminal.settings()
    names = settings.names
    subject = names.alarm(chamber if chamber and _GLOB.isdisjoint(chamber) else "*")
    kind = _Kind([names.alarms], "NATS_SERVERS or STREAM_ALARMS", subject, ALARM_HEADING, alarm_lines)
    terminal.run(_show(settings, kind, _Choice(Filter(chamber, chart), since, last, follow, json)))


def rejected(
    chamber: Chamber = "",
    chart: Chart = "",
    since: Since = "",
    last: Last = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Show what was rejected, with the reason; --json has the original bytes too."""
    settings = terminal.settings()
    names = settings.names
    wrong = "NATS_SERVERS or STREAM_REJECTED"
    kind = _Kind([names.rejected], wrong, names.reject(), REJECTED_HEADING, rejected_lines)
    terminal.run(_show(settings, kind, _Choice(Filter(chamber, chart), since, last, follow, json)))


async def _show(settings: Settings, kind: _Kind, choice: _Choice) -> None:
    console = terminal.stdout()
    at = None if choice.since in ("", "all") else terminal.since_time(choice.since, datetime.now(UTC))

    def show(lines: list[Line]) -> None:
        if choice.json:
            if lines:
                terminal.print_json(lines[0].tree)
            return
        for line in lines:
            console.print(line.text, style=line.style or None)

    async with terminal.session(settings) as connection:
        ends = {stream: await _end(connection, stream, kind.settings) for stream in kind.streams}
        if not choice.json:
            console.print(kind.heading, style="bold")
        async for record in _past(connection, kind, choice, at, ends):
            show(kind.lines(record, choice.wanted))
        if choice.follow:
            begins = {stream: end + 1 for stream, end in ends.items()}
            async for record in reading.followed(connection, begins, kind.subject):
                show(kind.lines(record, choice.wanted))


async def _end(connection: Connection, stream: str, settings: str) -> int:
    """The last sequence of a stream. Raises InputError when there is no such stream."""
    try:
        return (await reading.bounds(connection, stream))[1]
    except NotFound as error:
        raise terminal.missing("stream", stream, settings) from error


async def _past(
    connection: Connection, kind: _Kind, choice: _Choice, at: datetime | None, ends: dict[str, int]
) -> AsyncIterator[Record]:
    """What is there already, up to *ends*, and asked for: since *at*, all, or the newest."""

    def matches(record: Record) -> bool:
        return bool(kind.lines(record, choice.wanted))

    if choice.since:
        parts = [reading.read(connection, stream, kind.subject, Start(at=at)) for stream in kind.streams]
        kept: deque[Record] = deque(maxlen=choice.last)
        async for record in reading.merged(parts):
            if record.seq > ends[record.stream] or not matches(record):
                continue
            if choice.last is None:
                yield record
            else:
                kept.append(record)
        for record in kept:
            yield record
        return
    last = LAST if choice.last is None else choice.last
    found: list[Record] = []
    for stream, end in ends.items():
        found += await reading.newest(connection, stream, kind.subject, last, end, matches)
    for record in sorted(found, key=lambda record: record.at_ns)[-last:] if last else []:
        yield record
