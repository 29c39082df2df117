"""``defender ring``: the ring as a table and as a picture, and what a change of its members would move."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final

import msgspec
import typer
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from runtime import fleet_report
from runtime.cli import terminal
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.errors import InputError
from runtime.fleet_report import RingReport
from runtime.fleet_snapshot import Snapshot, natural
from runtime.records import Layout, Member, RingRecord
from runtime.ring import LOAD_PERCENT_MAX

LETTERS: Final = string.ascii_lowercase + string.ascii_uppercase
COLOURS: Final = (
    "cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta",
    "bright_yellow", "bright_blue",
)  # fmt: skip
ROW: Final = 64
"""Partitions a line of the picture."""


class Share(Struct, frozen=True):
    """A member's part of the ring."""

    stable_id: str
    track: str
    weight: float
    partitions: int
    of_mean: float
    """Its partitions over the mean of its weight; 1 is even."""
    cap: int
    pod: str


class Plan(Struct, frozen=True):
    """What a change of the members moves: partition -> (from, to)."""

    members: list[str]
    joins: list[str]
    leaves: list[str]
    moves: dict[int, tuple[str | None, str | None]]


def ring(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="What would move if these IDs left; several: with commas.")
    ] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", help="What would move if these IDs joined.")
    ] = None,
) -> None:
    """Show the ring: each member's share, and which partitions it has; or what a change would move."""
    settings = terminal.settings()
    snapshot = terminal.run(_read(settings))
    layout = committed(snapshot)
    if without or with_:
        plan = planned(layout, _changed(snapshot, layout, _listed(without), _listed(with_)))
        if json:
            terminal.print_json(plan)
        else:
            terminal.tables().print(Group(*plan_lines(plan), Text(), picture(layout, plan.moves)))
        return
    found = fleet_report.report(snapshot)
    if json:
        terminal.print_json({**msgspec.structs.asdict(found), "shares": shares(snapshot, layout)})
        return
    terminal.tables().print(rendered(snapshot, layout, found))


async def _read(settings: Settings) -> Snapshot:
    async with terminal.session(settings) as connection:
        return await read_snapshot(connection, settings)


def committed(snapshot: Snapshot) -> Layout:
    """The committed ring. Raises InputError where there is none."""
    if snapshot.layout is None:
        problem = snapshot.ring_problem or "no ring is committed yet: is a defender running? defender status"
        raise InputError(problem)
    return snapshot.layout


def _listed(given: Iterable[str] | None) -> list[str]:
    return [name for text in given or () for name in text.split(",") if name]


# --- what a change moves --------------------------------------------------------------------------


def _changed(snapshot: Snapshot, layout: Layout, leaves: list[str], joins: list[str]) -> RingRecord:
    strangers = [name for name in leaves if name not in layout.members]
    if strangers:
        members = fleet_report.named(sorted(layout.members, key=natural))
        raise InputError(f"--without {','.join(strangers)}: not in the ring; its members are {members}")
    there = [name for name in joins if name in layout.members]
    if there:
        raise InputError(f"--with {','.join(there)}: in the ring already")
    tracks = Counter(member.track for member in layout.members.values())
    usual = tracks.most_common(1)[0][0] if tracks else "stable"
    after = {name: member for name, member in layout.members.items() if name not in leaves}
    for name in joins:
        claim = snapshot.claims.get(name)
        after[name] = Member(claim.track, claim.weight) if claim else Member(usual)
    return msgspec.structs.replace(layout.record, members=after)


def planned(layout: Layout, record: RingRecord) -> Plan:
    """What becomes of the ring under another record. Pure."""
    other = Layout(record)
    return Plan(
        members=sorted(record.members, key=natural),
        joins=sorted(record.members.keys() - layout.members.keys(), key=natural),
        leaves=sorted(layout.members.keys() - record.members.keys(), key=natural),
        moves={p: (layout.owners[p], other.owners[p]) for p in layout.moved(other)},
    )


def plan_lines(plan: Plan) -> list[Text]:
    """A plan for people: how many move, then from whom to whom."""
    lines = [f"members  {len(plan.members)} after the change"]
    if plan.joins:
        lines.append(f"enter    {fleet_report.named(plan.joins, 16)}")
    if plan.leaves:
        lines.append(f"leave    {fleet_report.named(plan.leaves, 16)}")
    lines.append(f"moves    {len(plan.moves)} partitions")
    ways: dict[tuple[str, str], list[int]] = {}
    for partition, (one, two) in plan.moves.items():
        ways.setdefault((one or "nobody", two or "nobody"), []).append(partition)
    for (one, two), partitions in sorted(ways.items(), key=lambda way: (natural(way[0][0]), way[0][1]))[:40]:
        lines.append(f"  {one} -> {two}: {fleet_report.numbers(partitions)}")
    if len(ways) > 40:
        lines.append(f"  … and {len(ways) - 40} more ways; --json has all")
    return [Text(line) for line in lines]


# --- the ring as it is ----------------------------------------------------------------------------


def shares(snapshot: Snapshot, layout: Layout) -> list[Share]:
    """Each member's part, in the order of the IDs; the means and caps of a pinned track are its own."""
    counts = Counter(layout.owners)
    pinned = {track: len(parts) for track, parts in layout.record.pins.items() if parts}
    groups: dict[str, float] = {}
    for member in layout.members.values():
        group = member.track if member.track in pinned else ""
        groups[group] = groups.get(group, 0.0) + member.weight
    free = layout.partitions - sum(count for track, count in pinned.items() if track in groups)
    found = []
    for stable_id, member in sorted(layout.members.items(), key=lambda item: natural(item[0])):
        group = member.track if member.track in pinned else ""
        size = pinned[group] if group else free
        part = size * round(member.weight * 1000) / round(groups[group] * 1000)
        claim = snapshot.claims.get(stable_id)
        found.append(
            Share(
                stable_id=stable_id,
                track=member.track,
                weight=member.weight,
                partitions=counts[stable_id],
                of_mean=counts[stable_id] / part if part else 0.0,
                cap=_cap(size, member.weight, groups[group]),
                pod=claim.pod_name if claim else "",
            )
        )
    return found


def _cap(partitions: int, weight: float, weights: float) -> int:
    """ceil(1.1 x the member's mean), in thousandths of weight, as the ring computes it."""
    return -(-partitions * LOAD_PERCENT_MAX * round(weight * 1000) // (100 * round(weights * 1000)))


def rendered(snapshot: Snapshot, layout: Layout, found: RingReport) -> RenderableType:
    """The ring for people."""
    record = layout.record
    why = f": {terminal.clean(record.reason)}" if record.reason else ""
    heading = (
        f"version {record.version}, {len(layout.members)} members, {layout.partitions} partitions, "
        f"algorithm {record.algorithm}{why}"
    )
    table = terminal.table(
        ("", False),
        ("stable ID", False),
        ("track", False),
        ("weight", True),
        ("partitions", True),
        ("of mean", True),
        ("cap", True),
        ("pod", False),
    )
    marks = letters(layout.members)
    for share in shares(snapshot, layout):
        mark, colour = marks[share.stable_id]
        table.add_row(
            Text(mark, style=colour),
            share.stable_id,
            share.track,
            f"{share.weight:g}",
            str(share.partitions),
            f"{share.of_mean:.2f}",
            str(share.cap),
            terminal.clean(share.pod) or "vacant",
            style=None if share.pod else "red",
        )
    signs = {
        **dict.fromkeys(found.moving, "^"),
        **dict.fromkeys(found.unserved, "?"),
        **dict.fromkeys(found.doubly_owned, "2"),
        **dict.fromkeys(found.unowned, "!"),
    }
    return Group(Text(heading), Text(), table, Text(), picture(layout, signs))


def letters(members: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A mark and a colour for each member: a letter, or two where there are more than 52 members."""
    names = sorted(members, key=natural)
    wide = len(names) > len(LETTERS)
    marks = {}
    for place, name in enumerate(names):
        first, second = divmod(place, len(LETTERS))
        mark = LETTERS[second] + LETTERS[first % len(LETTERS)] if wide else LETTERS[second]
        marks[name] = (mark, COLOURS[place % len(COLOURS)])
    return marks


def picture(layout: Layout, signs: Mapping[int, object]) -> RenderableType:
    """The partitions in lines, a member's letter in each cell; below a cell its sign, if it has one.

    *signs* by partition: a character, or anything else for ``^``. Readable without colour.
    """
    marks = letters(layout.members)
    width = max((len(mark) for mark, _ in marks.values()), default=1)
    row = ROW // width
    lines = []
    for first in range(0, layout.partitions, row):
        cells = range(first, min(first + row, layout.partitions))
        line, below = Text(f"{first:>5} "), Text(" " * 6)
        for partition in cells:
            owner = layout.owners[partition]
            mark, colour = marks[owner] if owner else ("." * width, "red")
            sign = signs.get(partition, " ")
            moves = partition in signs
            line.append(mark, style=f"{colour} reverse bold" if moves else colour)
            below.append((sign if isinstance(sign, str) else "^").ljust(width), style="bold yellow")
        lines.append(line)
        if any(partition in signs for partition in cells):
            lines.append(below)
    return Group(*lines, *_legend(signs))


def _legend(signs: Mapping[int, object]) -> Sequence[Text]:
    meanings = {"^": "moves", "!": "has no live owner", "2": "has two owners", "?": "is not served"}
    used = {sign if isinstance(sign, str) else "^" for sign in signs.values()}
    told = [f"{sign} {meaning}" for sign, meaning in meanings.items() if sign in used]
    return [Text(), Text("      " + "   ".join(told))] if told else []
