"""``defender status`` and ``where``: who holds what, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime import wire
from runtime.bucket import Bucket
from runtime.cli import fleet, reading, terminal
from runtime.cli.reading import Start
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.identity import decode_claims
from runtime.jetstream import NotFound
from runtime.membership import decode_heartbeats
from runtime.names import fnv1a_32, name_problem
from runtime.ownership import decode_records
from runtime.ring import Ring

REFRESH_S: Final = 1.0


def status(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second.")] = False,
    partitions: Annotated[bool, typer.Option("--partitions", "-p", help="A line a partition.")] = False,
) -> None:
    """Show who holds what: defenders, standbys, partitions, lag, age of the heartbeats."""
    terminal.run(_status(terminal.settings(), json, watch, partitions))


async def _status(settings: Settings, json: bool, watch: bool, partitions: bool) -> None:
    console = terminal.tables()
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        if json:
            terminal.print_json(as_tree(snapshot))
            while watch:
                await asyncio.sleep(REFRESH_S)
                terminal.print_json(as_tree(await read_snapshot(connection, settings)))
            return
        if not watch:
            console.print(rendered(snapshot, partitions))
            return
        with Live(rendered(snapshot, partitions), console=console, auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(REFRESH_S)
                live.update(rendered(await read_snapshot(connection, settings), partitions), refresh=True)


def as_tree(snapshot: fleet.Snapshot) -> dict[str, Any]:
    """A snapshot for machines."""
    return {
        "at": snapshot.now,
        "trouble": fleet.trouble(snapshot),
        "defenders": fleet.defender_rows(snapshot),
        "partitions": fleet.partition_rows(snapshot),
    }


def rendered(snapshot: fleet.Snapshot, partitions: bool) -> RenderableType:
    """A snapshot for people."""
    parts: list[RenderableType] = [Text(problem, style="bold red") for problem in fleet.trouble(snapshot)]
    parts.append(_defenders(fleet.defender_rows(snapshot)))
    if partitions:
        parts += [Text(), _partitions(fleet.partition_rows(snapshot))]
    return Group(*parts)


def _table(*columns: tuple[str, bool]) -> Table:
    """A table without lines; (title, whether it is a number)."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, is_number in columns:
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    return table


def _defenders(rows: list[fleet.DefenderRow]) -> Table:
    table = _table(
        ("stable ID", False),
        ("state", False),
        ("pod", False),
        ("track", False),
        ("revision", False),
        ("heartbeat", True),
        ("workers", True),
        ("partitions", True),
        ("lag", True),
        ("cache", True),
        ("", False),
    )
    for row in rows:
        beat = "-" if row.heartbeat_age_s is None else terminal.age(row.heartbeat_age_s)
        figures = (str(row.workers), str(row.partitions), f"{row.lag:,}", f"{row.cache_used:.0%}")
        style = "red" if row.heartbeat_age_s is None else "dim" if row.stable_id is None else None
        pod = terminal.clean(row.pod)
        table.add_row(
            row.stable_id or "-",
            row.state,
            pod,
            row.track,
            row.revision,
            beat,
            *figures,
            row.remark,
            style=style,
        )
    return table


def _partitions(rows: list[fleet.PartitionRow]) -> Table:
    table = _table(
        ("partition", True),
        ("owner", False),
        ("pod", False),
        ("worker", True),
        ("state", False),
        ("epoch", True),
        ("waiting", True),
        ("unacked", True),
        ("", False),
    )
    for row in rows:
        figures = (str(row.epoch), f"{row.waiting:,}", f"{row.unacked:,}")
        style = "red" if row.remark else None
        worker = "-" if row.worker is None else str(row.worker)
        who = (str(row.partition), row.owner or "-", row.pod, worker)
        table.add_row(*who, row.state, *figures, row.remark, style=style)
    return table


async def read_snapshot(connection: Connection, settings: Settings) -> fleet.Snapshot:
    """Reads the buckets and the consumers. Raises InputError where no defender ever ran."""
    names = settings.names
    try:
        claims, heartbeats, records = await asyncio.gather(
            _bucket(connection, settings, settings.nats_kv_stable_ids).entries(),
            _bucket(connection, settings, settings.nats_kv_heartbeats).entries(),
            _bucket(connection, settings, settings.nats_kv_assignments).entries("partition.*"),
        )
        streams = [names.samples_stream(names.partitions_of_shard(shard)[0]) for shard in range(names.shards)]
        consumers = [row for stream in streams async for row in _consumers(connection, stream)]
    except NotFound as error:
        problem = (
            f"{error}; no defender ever ran here: start one, or correct NATS_SERVERS and the NATS_KV_ names"
        )
        raise InputError(problem) from error
    return fleet.Snapshot(
        now=datetime.now(UTC),
        partitions=settings.partitions,
        claims=decode_claims(claims),
        heartbeats=decode_heartbeats(heartbeats),
        owned={n: fleet.Owned(record, epoch) for n, (record, epoch) in decode_records(records).items()},
        backlogs=fleet.backlogs(consumers),
    )


def _bucket(connection: Connection, settings: Settings, name: str) -> Bucket:
    return Bucket(connection, name, random=Random(), timeout_s=settings.request_timeout_s)


async def _consumers(connection: Connection, stream: str) -> AsyncIterator[dict[str, Any]]:
    """What the server says of every consumer of a stream, page by page."""
    offset = 0
    while True:
        page = await connection.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
        consumers = page.get("consumers") or []
        for consumer in consumers:
            yield consumer
        offset += len(consumers)
        if not consumers or offset >= page["total"]:
            return


class Whereabouts(msgspec.Struct, frozen=True):
    """Where a chamber's reports go, and why."""

    chamber: str
    hash: int
    partition: int
    stream: str
    owner_by_ring: str | None
    ring: list[str]
    row: fleet.PartitionRow
    consumer: str
    last_verdict: dict[str, Any] | None


def where(
    chamber: Annotated[str, typer.Argument(help="Name of the chamber.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show which partition, defender and pod a chamber belongs to, and why."""
    problem = name_problem(chamber)
    if problem:
        raise InputError(f"chamber {chamber!r} {problem}")
    found = terminal.run(_where(terminal.settings(), chamber))
    if json:
        terminal.print_json(found)
        return
    for line in where_lines(found):
        terminal.stdout().print(line)


def whereabouts(
    snapshot: fleet.Snapshot, settings: Settings, chamber: str, last: dict[str, Any] | None
) -> Whereabouts:
    """Pure; *last* is what is known of the chamber's last verdict."""
    names = settings.names
    partition = names.partition_of(chamber)
    ring = Ring(snapshot.claims, settings.partitions)
    steps = [
        f"{step.member} has {step.load} of at most {step.cap}: {'takes it' if step.taken else 'full, next'}"
        for step in ring.explain(partition)
    ]
    row = fleet.partition_rows(snapshot)[partition]
    return Whereabouts(
        chamber=chamber,
        hash=fnv1a_32(chamber),
        partition=partition,
        stream=names.samples_stream(partition),
        owner_by_ring=ring.owner(partition),
        ring=steps,
        row=row,
        consumer=names.consumer(partition, row.epoch) if row.epoch else "",
        last_verdict=last,
    )


def where_lines(found: Whereabouts) -> list[str]:
    """A line a fact."""
    row = found.row
    pod = f", pod {terminal.clean(row.pod)}" if row.pod else ""
    worker = "" if row.worker is None else f", worker {row.worker}"
    lines = [
        f"chamber    {found.chamber}",
        f"partition  {found.partition} = FNV-1a {found.hash:#010x} modulo PARTITIONS, stream {found.stream}",
        f"ring       {found.owner_by_ring or 'no member: nobody holds an ID'}",
        *(f"             {step}" for step in found.ring),
        f"owner      {row.owner or 'nobody'} ({row.state}{pod}{worker}), epoch {row.epoch}",
        f"consumer   {found.consumer or '-'}: {row.waiting} reports wait, {row.unacked} in hand",
    ]
    if row.remark:
        lines.append(f"trouble    {row.remark}")
    if found.owner_by_ring and row.owner and found.owner_by_ring != row.owner:
        lines.append(
            f"trouble    {row.owner} owns it, the ring gives it to {found.owner_by_ring}: a handoff?"
        )
    last = found.last_verdict
    lines.append(
        f"last       verdict of run {terminal.clean(last['run']) or '-'} at {terminal.clock(last['at'])}, "
        f"epoch {last['epoch']}, by {last['defender'] or '-'}"
        if last
        else "last       no verdict of this chamber is stored"
    )
    return lines


async def _where(settings: Settings, chamber: str) -> Whereabouts:
    names = settings.names
    partition = names.partition_of(chamber)
    last: dict[str, Any] | None = None
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        stream, subject = names.verdicts_stream(partition), names.verdict(partition, chamber)
        async for record in reading.read(connection, stream, subject, Start(last_of_each=True)):
            verdict = wire.decode_verdict(record.payload)
            last = {
                name: getattr(verdict, name)
                for name in ("run", "at", "epoch", "seq", "ordinal", "defender", "spec")
            }
    return whereabouts(snapshot, settings, chamber, last)
