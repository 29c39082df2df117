"""What the commands of ``defender history`` share: the store, and which chambers and times are meant."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from runtime import config, log
from runtime.cli import snapshot, terminal
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import HistoryDiffers, InputError, SettingsError
from runtime.fleet_report import named
from runtime.history import History, Span, stores
from runtime.jetstream import NotFound
from runtime.names import name_problem
from runtime.records import RING_KEY
from runtime.wire import time_ns

PARTITIONS_AT_ONCE: Final = 16
GLOB: Final = frozenset("*?[")

Store = Annotated[config.History | None, typer.Option(help="The store to read.  [default: that of HISTORY]")]


def named_store(store: config.History) -> str:
    """Its name for people."""
    return {config.History.JETSTREAM: "JetStream", config.History.CASSANDRA: "Cassandra"}[store]


@asynccontextmanager
async def reading(
    settings: Settings, store: config.History | None, connection: Connection | None = None
) -> AsyncIterator[History]:
    """The history of *store*, by default that of the settings.

    Raises InputError where the stream of the verdicts is not there, SettingsError for PARTITIONS,
    HistoryDiffers for what cannot be read.
    """
    if connection is None:
        async with terminal.session(settings) as own, reading(settings, store, own) as history:
            yield history
        return
    await _check_partitions(connection, settings)
    try:
        async with opened(settings, connection, store) as history:
            yield history
    except NotFound as error:
        wrong = "NATS_SERVERS, STREAM_VERDICTS or PARTITIONS"
        raise terminal.missing("stream", settings.names.verdicts_stream(0), wrong) from error
    except msgspec.MsgspecError as error:
        raise HistoryDiffers(
            f"a stored verdict cannot be read: {error}; it is of another version: run that one"
        ) from error


@asynccontextmanager
async def opened(
    settings: Settings, connection: Connection, store: config.History | None
) -> AsyncIterator[History]:
    """The history of *store*. What its log would say of a store that is away comes as an error here."""
    logger = logging.getLogger(f"{log.ROOT}.cassandra")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        async with stores.opened(settings, connection, store) as history:
            yield history
    finally:
        logger.setLevel(level)


async def _check_partitions(connection: Connection, settings: Settings) -> None:
    """Of a fleet with other PARTITIONS only some chambers would be found, without a word."""
    bucket = settings.nats_kv_assignments
    try:
        rows = await snapshot.entries(connection, settings, bucket, [RING_KEY])
    except NotFound:
        return  # no defender has run here
    snapshot.laid_out(rows.get(RING_KEY), settings)


async def chosen(history: History, settings: Settings, wanted: list[str]) -> dict[str, int]:
    """The stored chambers that are meant, by their names, with their partitions; all where nothing is said.

    Raises InputError for a name or a glob that fits none: it names what there is.
    """
    names = settings.names
    exact = [one for one in wanted if GLOB.isdisjoint(one)]
    for name in exact:
        problem = name_problem(name)
        if problem:
            raise InputError(f"chamber {name!r} {problem}")
    partitions = range(names.partitions)
    listed = await _listed(
        history,
        settings,
        {names.partition_of(name) for name in exact} if wanted and exact == wanted else partitions,
    )
    for one in wanted:
        if not any(terminal.fits(name, one) for name in listed):
            known = await _listed(history, settings, partitions)
            if not known:
                raise InputError(f"no reports of {one} are stored, nor of any other chamber")
            raise InputError(
                f"no reports of a chamber {one!r} are stored; there are those of {like(one, known)}"
            )
    if not listed:
        raise InputError("no reports of any chamber are stored yet")
    return {
        name: partition
        for name, partition in sorted(listed.items())
        if not wanted or any(terminal.fits(name, one) for one in wanted)
    }


async def _listed(history: History, settings: Settings, partitions: Iterable[int]) -> dict[str, int]:
    room = asyncio.Semaphore(PARTITIONS_AT_ONCE)

    async def of(partition: int) -> list[str]:
        async with room:
            return await history.chambers(partition)

    asked = list(partitions)
    found = await asyncio.gather(*(of(partition) for partition in asked))
    listed = {name: partition for partition, names in zip(asked, found, strict=True) for name in names}
    for name, partition in listed.items():
        if settings.names.partition_of(name) != partition:
            raise SettingsError(
                "PARTITIONS",
                f"is {settings.partitions} here, but {name} is stored in partition {partition}, where it is "
                "not by that number: set it to what the fleet has",
            )
    return listed


def like(name: str, known: Iterable[str]) -> str:
    """Some of the names that there are, those that are most like *name* first."""
    every = sorted(known)
    near = difflib.get_close_matches(name, every, n=3)
    return terminal.clean(named([*near, *(one for one in every if one not in near)]))


def span_of(since: str, until: str) -> Span:
    """What ``--since`` and ``--until`` mean now. Raises InputError, also for an empty span."""
    now = datetime.now(UTC)
    span = Span(_time("--since", since, now), _time("--until", until, now))
    if span.first_ns is not None and span.end_ns is not None and span.first_ns >= span.end_ns:
        raise InputError(f"--since {since!r} is not before --until {until!r}: there is nothing in between")
    return span


def _time(option: str, text: str, now: datetime) -> int | None:
    if text in ("", "all"):
        return None
    try:
        return time_ns(terminal.since_time(text, now), 0)
    except InputError:
        problem = f"{option} {text!r}: give a span (90s, 10m, 2h, 7d), a time (2025-03-01T08:00:00Z) or all"
        raise InputError(problem) from None


def spoken(span: Span) -> str:
    """A span in words; empty for all times."""
    since = f"since {terminal.clock(span.first_ns)}" if span.first_ns is not None else ""
    before = f"before {terminal.clock(span.end_ns)}" if span.end_ns is not None else ""
    return " and ".join(part for part in (since, before) if part)
