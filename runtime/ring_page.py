"""The page ``/ring``: the fleet as one defender sees it, as HTML for people and JSON for machines.

The HTML needs nothing from elsewhere and runs no script; a browser reads it anew every few seconds. All
names in it come from outside and are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, Protocol

import msgspec

from runtime.fleet_report import SILENT, VACANT, FleetRow, RingReport, named, numbers

REFRESH_S: Final = 3
ROW: Final = 64
"""Partitions a line of the picture."""
_CELL: Final = 14
_LABEL: Final = 40

_STYLE: Final = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } h2 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; } th { text-align: left; color: #5b6676; font-weight: 600; }
th, td { padding: .15rem .9rem .15rem 0; } td.n, th.n { text-align: right; }
.bad { color: #b3261e; font-weight: 600; } .note { color: #8a6100; } .dim, .dim td { color: #5b6676; }
ul { margin: .3rem 0; padding-left: 1.2rem; } svg { max-width: 100%; height: auto; }
i.key { display: inline-block; width: .8em; height: .8em; margin-right: .45em; border-radius: 2px; }
@media (prefers-color-scheme: dark) { body { color: #dfe5ee; background: #12161c; }
  .bad { color: #ff8a80; } .note { color: #ffcf66; } th, .dim, .dim td { color: #93a0b3; } }
"""


class RingSource(Protocol):
    """Who knows how the fleet stands."""

    def ring(self) -> RingReport: ...


def as_json(report: RingReport) -> bytes:
    return msgspec.json.encode(report) + b"\n"


def as_html(report: RingReport) -> bytes:
    """The whole page."""
    colours = _colours(report)
    version = f"ring version {report.version}" if report.version else "no ring"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<meta http-equiv=refresh content={REFRESH_S}>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>Defender: {version}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Defender: {version}</h1>",
        *_trouble(report),
        *_headings(report),
        "<h2>Partitions</h2>",
        _picture(report, colours),
        "<h2>Members</h2>",
        _table(report.members, colours),
        *(["<h2>Standbys</h2>", _table(report.standbys, {})] if report.standbys else []),
        "<p class=dim>The same as JSON: <a href='ring.json'>ring.json</a></p></body></html>\n",
    ]
    return "".join(parts).encode()


def _trouble(report: RingReport) -> list[str]:
    if not report.trouble:
        return []
    return ["<ul class=bad>", *(f"<li>{escape(problem)}</li>" for problem in report.trouble), "</ul>"]


def _headings(report: RingReport) -> list[str]:
    lines = []
    if report.version:
        when = f", {report.committed_at:%Y-%m-%d %H:%M:%S} UTC" if report.committed_at else ""
        why = f": {escape(report.reason)}" if report.reason else ""
        lines.append(
            f"{len(report.members)} members, {report.partitions} partitions, "
            f"algorithm {report.algorithm}{when}{why}"
        )
    leader = report.leader
    if leader is not None:
        lines.append(f"Leader: {escape(leader.pod_name) or '?'}, term {leader.term}")
        lines += [f"<span class=note>{escape(remark)}</span>" for remark in leader.remarks]
    if report.frozen is not None:
        why = f": {escape(report.frozen.reason)}" if report.frozen.reason else ""
        lines.append(f"<span class=note>Frozen by {escape(report.frozen.by)}{why}</span>")
    if report.vacancies:
        lines.append(f"Vacancies: {escape(named(report.vacancies))}")
    if report.moving:
        lines.append(f"In handoff: {numbers(report.moving)}")
    return [f"<div>{line}</div>" for line in lines]


# --- the picture ----------------------------------------------------------------------------------


def _colours(report: RingReport) -> dict[str, str]:
    """A colour a member: hues a golden angle apart, so that neighbours differ however many there are."""
    members = [row.stable_id for row in report.members if row.stable_id and row.in_ring]
    return {
        name: f"hsl({place * 137.5 % 360:.0f} 62% {(56, 44, 68)[place % 3]}%)"
        for place, name in enumerate(members)
    }


def _picture(report: RingReport, colours: dict[str, str]) -> str:
    """A cell a partition in its member's colour; a frame around those that move or have something wrong."""
    frames: dict[int, tuple[str, str]] = {}
    for partitions, colour, words in (
        (report.moving, "#e0a100", "in handoff"),
        (report.unserved, "#e0a100", "not served"),
        (report.doubly_owned, "#b3261e", "two owners"),
        (report.unowned, "#b3261e", "no live owner"),
    ):
        frames.update(dict.fromkeys(partitions, (colour, words)))
    rows = -(-report.partitions // ROW)
    width, height = _LABEL + min(ROW, report.partitions) * _CELL, rows * _CELL
    cells = [
        f"<text x=0 y={row * _CELL + _CELL - 4} font-size=10 fill=currentColor>{row * ROW}</text>"
        for row in range(rows)
    ]
    for partition, owner in enumerate(report.owners):
        x, y = _LABEL + partition % ROW * _CELL, partition // ROW * _CELL
        frame, words = frames.get(partition, ("", ""))
        stroke = f" stroke='{frame}' stroke-width=2" if frame else ""
        title = f"partition {partition}: {escape(owner or 'nobody')}{', ' + words if words else ''}"
        fill = colours.get(owner or "", "#8884")
        cells.append(
            f"<rect x={x + 1} y={y + 1} width={_CELL - 2} height={_CELL - 2} rx=2 fill='{fill}'{stroke}>"
            f"<title>{title}</title></rect>"
        )
    told = (
        f"{report.partitions} partitions, {len(report.unowned)} without an owner, {len(report.moving)} moving"
    )
    return (
        f"<svg role=img aria-label='{told}' viewBox='0 0 {width} {height}' width={width} height={height}>"
        f"{''.join(cells)}</svg>"
    )


# --- the tables -----------------------------------------------------------------------------------

_COLUMNS: Final = (
    ("stable ID", ""),
    ("state", ""),
    ("pod", ""),
    ("track", ""),
    ("revision", ""),
    ("heartbeat", "n"),
    ("weight", "n"),
    ("partitions", "n"),
    ("by the ring", "n"),
    ("lag", "n"),
    ("workers", "n"),
    ("cache", "n"),
    ("", ""),
)


def _table(rows: Iterable[FleetRow], colours: dict[str, str]) -> str:
    heading = "".join(f"<th class='{kind}'>{title}</th>" for title, kind in _COLUMNS)
    lines = []
    for row in rows:
        style = "bad" if row.state in (SILENT, VACANT) else "" if row.in_ring else "dim"
        lines.append(f"<tr class='{style}'>{_cells(_values(row), colours.get(row.stable_id or ''))}</tr>")
    return f"<table><tr>{heading}</tr>{''.join(lines)}</table>"


def _values(row: FleetRow) -> list[str]:
    age = "–" if row.heartbeat_age_s is None else f"{row.heartbeat_age_s:.1f} s"
    figures = (f"{row.weight:g}", str(row.partitions), str(row.assigned), f"{row.lag:,}", str(row.workers))
    who = (row.stable_id or "–", row.state, row.pod or "–", row.track, row.revision or "–")
    return [*who, age, *figures, f"{row.cache_used:.0%}", row.remark]


def _cells(values: Sequence[str], colour: str | None) -> str:
    key = f"<i class=key style='background: {colour}'></i>" if colour else ""
    cells = []
    for (_, kind), value in zip(_COLUMNS, values, strict=True):
        cells.append(f"<td class='{kind}'>{key}{escape(value)}</td>")
        key = ""
    return "".join(cells)
