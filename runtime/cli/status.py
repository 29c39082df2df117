"""``defender status``: who is there, who leads, who owns what, and what is wrong."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime import fleet_report
from runtime.cli import fleet, terminal
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.fleet_report import SILENT, VACANT, FleetRow
from runtime.fleet_snapshot import Snapshot

REFRESH_S: Final = 1.0


def status(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second.")] = False,
    partitions: Annotated[bool, typer.Option("--partitions", "-p", help="A line a partition.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 when something is wrong, for scripts.")
    ] = False,
    lag_max: Annotated[
        int | None, typer.Option(min=0, help="More waiting reports than this are something wrong.")
    ] = None,
) -> None:
    """Show who holds what: members, standbys, vacancies, leader, ring, partitions, lag."""
    problems = terminal.run(_status(terminal.settings(), json, watch, partitions, lag_max))
    if check and problems:
        raise typer.Exit(1)


async def _status(
    settings: Settings, json: bool, watch: bool, partitions: bool, lag_max: int | None
) -> list[str]:
    """What was wrong."""
    console = terminal.tables()
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        if json:
            terminal.print_json(as_tree(snapshot, lag_max))
            while watch:
                await asyncio.sleep(REFRESH_S)
                terminal.print_json(as_tree(await read_snapshot(connection, settings), lag_max))
        elif not watch:
            console.print(rendered(snapshot, partitions, lag_max))
        else:
            shown = rendered(snapshot, partitions, lag_max)
            with Live(shown, console=console, auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(REFRESH_S)
                    snapshot = await read_snapshot(connection, settings)
                    live.update(rendered(snapshot, partitions, lag_max), refresh=True)
        return problems_of(snapshot, lag_max)


def problems_of(snapshot: Snapshot, lag_max: int | None = None) -> list[str]:
    """What is wrong, a lag above *lag_max* included."""
    problems = fleet_report.trouble(snapshot)
    lag = sum(snapshot.lag(partition) for partition in range(snapshot.partitions))
    if lag_max is not None and lag > lag_max:
        problems.append(f"{lag:,} reports wait, more than {lag_max:,}")
    return problems


def as_tree(snapshot: Snapshot, lag_max: int | None = None) -> dict[str, Any]:
    """A snapshot for machines."""
    found = fleet_report.report(snapshot)
    return {
        "at": snapshot.now,
        "trouble": problems_of(snapshot, lag_max),
        "ring": {
            "version": found.version,
            "algorithm": found.algorithm,
            "partitions": found.partitions,
            "members": list(snapshot.layout.members) if snapshot.layout else [],
            "reason": found.reason,
            "committed_at": found.committed_at,
            "problem": found.problem,
        },
        "leader": found.leader,
        "frozen": found.frozen,
        "vacancies": found.vacancies,
        "unowned": found.unowned,
        "unserved": found.unserved,
        "doubly_owned": found.doubly_owned,
        "moving": found.moving,
        "defenders": [*found.members, *found.standbys],
        "partitions": fleet.partition_rows(snapshot),
    }


def rendered(snapshot: Snapshot, partitions: bool, lag_max: int | None = None) -> RenderableType:
    """A snapshot for people."""
    problems = problems_of(snapshot, lag_max)
    parts: list[RenderableType] = [Text(terminal.clean(problem), style="bold red") for problem in problems]
    parts += [*_headings(snapshot), Text()]
    rows = [*fleet_report.members(snapshot), *fleet_report.standbys(snapshot)]
    parts.append(_members(rows))
    parts += [_remark(row) for row in rows if row.remark]
    if partitions:
        parts += [Text(), _partitions(fleet.partition_rows(snapshot))]
    return Group(*parts)


def _headings(snapshot: Snapshot) -> list[Text]:
    ring, leader = snapshot.ring, snapshot.leader
    lines = []
    if ring is not None:
        when = f", {_ago(snapshot, ring.committed_at.timestamp())}" if ring.committed_at else ""
        why = f": {terminal.clean(ring.reason)}" if ring.reason else ""
        lines.append(f"ring        version {ring.version}, {len(ring.members)} members{when}{why}")
    if leader is not None:
        lines.append(f"leader      {terminal.clean(leader.pod_name) or '?'}, term {leader.term}")
        lines += [f"            {terminal.clean(remark)}" for remark in leader.remarks]
    if snapshot.frozen is not None:
        frozen = snapshot.frozen
        why = f": {terminal.clean(frozen.reason)}" if frozen.reason else ""
        who = terminal.clean(frozen.by)
        lines.append(f"frozen      by {who}, {_ago(snapshot, frozen.at.timestamp())}{why}")
    lines += tracks_lines(snapshot)
    owned = snapshot.partitions - len(snapshot.unowned)
    counts = f"{owned} of {snapshot.partitions} owned, {len(snapshot.doubly_owned)} doubly"
    moving = f", in handoff: {fleet_report.numbers(snapshot.moving)}" if snapshot.moving else ""
    lines.append(f"partitions  {counts}{moving}")
    return [Text(line, style="yellow" if line.startswith("frozen") else "") for line in lines]


def tracks_lines(snapshot: Snapshot) -> list[str]:
    """What operators said of tracks."""
    lines = []
    for track, wanted in sorted(snapshot.tracks.in_ring.items()):
        if track not in snapshot.tracks.chambers:
            lines.append(
                f"track       {track}: {'in' if wanted else 'out of'} the ring, by an operator's word"
            )
    for track, chambers in sorted(snapshot.tracks.chambers.items()):
        shown = terminal.clean(fleet_report.named(chambers))
        lines.append(f"track       {track}: only the chambers {shown or '(none)'}")
    return lines


def _ago(snapshot: Snapshot, at_s: float) -> str:
    return f"{terminal.age(max(0.0, snapshot.now.timestamp() - at_s))} ago"


def _members(rows: list[FleetRow]) -> Table:
    table = terminal.table(
        ("stable ID", False),
        ("state", False),
        ("pod", False),
        ("track", False),
        ("revision", False),
        ("beat", True),
        ("parts", True),
        ("lag", True),
        ("workers", True),
        ("cache", True),
        gap=1,
    )
    for row in rows:
        table.add_row(
            row.stable_id or "-",
            row.state,
            terminal.clean(row.pod) or "-",
            row.track,
            row.revision or "-",
            "-" if row.heartbeat_age_s is None else terminal.age(row.heartbeat_age_s),
            _share(row),
            f"{row.lag:,}",
            str(row.workers),
            f"{row.cache_used:.0%}",
            style=_style(row),
        )
    return table


def _share(row: FleetRow) -> str:
    """``8``, or ``3/8`` while it has another number than the ring gives it."""
    if row.stable_id is None or (row.in_ring and row.partitions == row.assigned):
        return str(row.partitions)
    return f"{row.partitions}/{row.assigned}"


def _style(row: FleetRow) -> str | None:
    if row.state in (SILENT, VACANT) or row.history_down:
        return "red"
    return "dim" if row.stable_id is None else None


def _remark(row: FleetRow) -> Text:
    who = row.stable_id or terminal.clean(row.pod)
    return Text(f"  {who}: {terminal.clean(row.remark)}", style=_style(row) or "")


def _partitions(rows: list[fleet.PartitionRow]) -> Table:
    table = terminal.table(
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
        table.add_row(
            str(row.partition),
            row.owner or "-",
            terminal.clean(row.pod),
            "-" if row.worker is None else str(row.worker),
            row.state,
            str(row.epoch),
            f"{row.waiting:,}",
            f"{row.unacked:,}",
            terminal.clean(row.remark),
            style="red" if row.is_trouble else "yellow" if row.remark else None,
        )
    return table
