"""What the commands share: consoles, settings, a connection, and times and names as people read them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from runtime import config, log, resources
from runtime.bus import connect
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.jetstream import NotFound
from runtime.wire import to_datetime

T = TypeVar("T")
TABLE_COLUMNS = 200
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SPAN_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def stdout() -> Console:
    """For results. Lines are never wrapped or coloured by guess, so that they can be searched and cut."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def tables() -> Console:
    """For tables: folded to the width of the terminal, wide where there is none."""
    width = None if sys.stdout.isatty() else TABLE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width)


def table(*columns: tuple[str, bool], gap: int = 2) -> Table:
    """A table without lines, *gap* spaces between its columns; (title, whether it is a number)."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for title, is_number in columns:
        made.add_column(title, justify="right" if is_number else "left", overflow="fold")
    return made


def stderr() -> Console:
    """For progress and remarks, so that results can be piped on."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def settings() -> config.Settings:
    """The settings that the environment asks for. Raises SettingsError."""
    return config.load(os.environ)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine to its end; log lines are for people here."""
    log.setup("console", "warning")
    return uvloop.run(work)


@asynccontextmanager
async def session(fleet: config.Settings) -> AsyncIterator[Connection]:
    """A connection for one command; it does not wait for a server that is not there."""
    connection = await connect(fleet, "defender-cli")
    try:
        yield connection
    finally:
        await connection.close()


async def exists(connection: Connection, fleet: config.Settings, stream: str) -> bool:
    """Whether the server has this stream (or bucket: ``KV_<name>``)."""
    try:
        await connection.api(f"STREAM.INFO.{stream}", timeout_s=fleet.request_timeout_s)
    except NotFound:
        return False
    return True


async def prepared(connection: Connection, fleet: config.Settings, stream: str) -> None:
    """Makes the fleet's streams and buckets if *stream* is not there: no defender may have run yet."""
    if not await exists(connection, fleet, stream):
        await resources.ensure(connection, fleet)


def missing(kind: str, name: str, corrections: str) -> InputError:
    """The error for a bucket or a stream that is not there: whether it ever was, the server cannot tell."""
    return InputError(
        f"the {kind} {name} does not exist. If it was never created, no defender ever ran here: start one, "
        f"or correct {corrections}. If it was deleted: restart a defender, which makes it anew, empty"
    )


def print_json(value: object) -> None:
    """One line of JSON on stdout."""
    print(msgspec.json.encode(value).decode(), flush=True)


def since_time(text: str, now: datetime) -> datetime:
    """``10m`` (ms, s, m, h, d, w before *now*) or RFC 3339 as a time in UTC. Raises InputError."""
    span = _SPAN.fullmatch(text.strip())
    if span:
        return now - timedelta(seconds=float(span[1]) * _SPAN_S[span[2]])
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        problem = f"--since {text!r}: give a span (90s, 10m, 2h, 7d), a time (2025-03-01T08:00:00Z) or all"
        raise InputError(problem) from None
    return at.astimezone(UTC)


def clock(at_ns: int) -> str:
    """A time in ns since 1970 for people, UTC to the millisecond; the bare number outside the calendar."""
    try:
        return to_datetime(at_ns).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    except (OverflowError, ValueError, OSError):
        return f"{at_ns} ns"


def age(seconds: float) -> str:
    """How long ago, short: 0.4s, 12s, 3m, 2h, 5d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def clean(text: str) -> str:
    """*text* without characters that steer a terminal: names and runs come from outside."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def fits(text: str, glob: str) -> bool:
    """Whether a name matches a glob of the command line; no glob matches everything."""
    return not glob or fnmatchcase(text, glob)
