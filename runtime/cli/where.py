"""``defender where``: where a chamber's reports go, and why there."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from runtime import wire
from runtime.cli import fleet, reading, terminal
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.errors import InputError
from runtime.fleet_snapshot import Snapshot
from runtime.names import fnv1a_32, name_problem


class Whereabouts(msgspec.Struct, frozen=True):
    """Where a chamber's reports go, and why."""

    chamber: str
    hash: int
    partition: int
    stream: str
    ring_version: int
    owner_by_ring: str | None
    holder: str
    """The pod that holds the ring's owner; empty when nobody does."""
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
    snapshot: Snapshot, settings: Settings, chamber: str, last: dict[str, Any] | None
) -> Whereabouts:
    """Pure; *last* is what is known of the chamber's last verdict."""
    names, layout = settings.names, snapshot.layout
    partition = names.partition_of(chamber)
    owner = layout.owner(partition) if layout else None
    claim = snapshot.claims.get(owner or "")
    row = fleet.partition_row(snapshot, partition)
    return Whereabouts(
        chamber=chamber,
        hash=fnv1a_32(chamber),
        partition=partition,
        stream=names.samples_stream(partition),
        ring_version=layout.version if layout else 0,
        owner_by_ring=owner,
        holder=claim.pod_name if claim else "",
        ring=[f"{step.member} {step.remark}" for step in (layout.explain(partition) if layout else ())],
        row=row,
        consumer=names.consumer(partition, row.epoch) if row.epoch else "",
        last_verdict=last,
    )


def where_lines(found: Whereabouts) -> list[str]:
    """A line a fact."""
    row = found.row
    pod = f", pod {terminal.clean(row.pod)}" if row.pod else ""
    worker = "" if row.worker is None else f", worker {row.worker}"
    holder = terminal.clean(found.holder) or "nobody"
    ring = (
        f"{found.owner_by_ring} by version {found.ring_version}, held by {holder}"
        if found.owner_by_ring
        else "no ring is committed yet"
    )
    lines = [
        f"chamber    {found.chamber}",
        f"partition  {found.partition} = FNV-1a {found.hash:#010x} modulo PARTITIONS, stream {found.stream}",
        f"ring       {ring}",
        *(f"             {step}" for step in found.ring),
        f"owner      {row.owner or 'nobody'} ({row.state}{pod}{worker}), epoch {row.epoch}",
        f"consumer   {found.consumer or '-'}: {row.waiting} reports wait, {row.unacked} in hand",
    ]
    if row.remark:
        lines.append(f"{'trouble' if row.is_trouble else 'handoff':<10} {terminal.clean(row.remark)}")
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
        subject = names.verdict(partition, chamber)
        async for record in reading.last_of_each(connection, [names.verdicts_stream(partition)], subject):
            verdict = wire.decode_verdict(record.payload)
            last = {
                name: getattr(verdict, name)
                for name in ("run", "at", "epoch", "seq", "ordinal", "defender", "spec")
            }
    return whereabouts(snapshot, settings, chamber, last)
