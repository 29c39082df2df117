"""The picture of ownership: time across, a row a partition, a colour a stable ID. Pure.

Rows stand by their first owner, so that an ID's partitions make a band; a band that keeps its colour kept
its ID, and where it changes its shade another pod took over. Red is a time without owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Final, NamedTuple

from bench.lab.page_axes import px, rect, text
from bench.lab.page_plots import WIDE, Bounds, Sheet, Size
from bench.lab.result import Owned, Result

HOVERS_MAX: Final = 6000
"""Stretches of one page that tell who owned; beyond, a row's picture stays and only the words go."""
UNOWNED_MS: Final = 50.0
"""From here on a time without owner is drawn; a handoff by the records is shorter."""
UNOWNED_WIDTH: Final = 2.0
"""Pixels that it has at least, so that it is seen."""
PICTURE: Final = 430
"""Height of the picture that rows aim at, in pixels."""
ROW_MAX: Final = 14.0
ROW_MIN: Final = 1.5
LETTERS: Final = 7
"""Of an ID's last part, which tells it from the others: ``12`` of defender-12."""
LABEL: Final = 11.0
"""Pixels that an ID's name needs; a lower band has none."""


class Hole(NamedTuple):
    """A time in which a partition had no owner by the records."""

    begun_ns: int
    ended_ns: int


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which defender-2 comes before defender-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def colours(results: Sequence[Result]) -> dict[str, str]:
    """A colour an ID: hues a golden angle apart, so that neighbours differ; no red, which means unowned."""
    found: dict[str, str] = {}
    for result in results:
        for stable_id in sorted({owned.stable_id for owned in result.owned}, key=natural):
            place = len(found)
            hue, light = 62 + place * 137.5 % 300, (0.70, 0.62, 0.78)[place % 3]
            found.setdefault(stable_id, f"oklch({light} .105 {hue:.0f})")
    return found


def rows(result: Result) -> dict[int, list[Owned]]:
    """Each partition's stretches in time, the partitions by their first owner."""
    found: dict[int, list[Owned]] = {}
    for owned in sorted(result.owned, key=lambda owned: (owned.partition, owned.begun_ns)):
        found.setdefault(owned.partition, []).append(owned)
    order = sorted(found, key=lambda p: (natural(found[p][0].stable_id), p))
    never = [p for p in range(result.partitions) if p not in found]
    return {partition: found.get(partition, []) for partition in [*order, *never]}


def holes(stretches: Sequence[Owned], begun_ns: int, ended_ns: int) -> list[Hole]:
    """The times from a partition's first owner on in which it had none for UNOWNED_MS or longer; all of the
    time for a partition that never had one."""
    found, reached = [], stretches[0].begun_ns if stretches else begun_ns
    for stretch in stretches:
        if stretch.begun_ns - reached >= UNOWNED_MS * 1e6:
            found.append(Hole(reached, stretch.begun_ns))
        reached = max(reached, stretch.ended_ns)
    if ended_ns - reached >= UNOWNED_MS * 1e6:
        found.append(Hole(reached, ended_ns))
    return found


def ownership(
    result: Result, ends: Bounds, shades: dict[str, str], size: Size = WIDE, hovers: int = HOVERS_MAX
) -> str:
    """The picture; with words for each stretch where there are at most *hovers*."""
    ordered = rows(result)
    if not result.owned:
        return Sheet(result, ends, size, 20).draw("No ownership was recorded.", [text(size.left, 34, "–")])
    row = min(ROW_MAX, max(ROW_MIN, PICTURE / len(ordered)))
    sheet = Sheet(result, ends, size, row * len(ordered), 10)
    tops = {partition: sheet.frame.top + row * place for place, partition in enumerate(ordered)}
    wide = sheet.frame.right - sheet.frame.left
    parts = [rect(sheet.frame.left, sheet.frame.top, wide, sheet.frame.bottom - sheet.frame.top, "field")]
    parts += _stretches(sheet, ordered, tops, row, shades, len(result.owned) <= hovers)
    parts.append(_spots(list(_holes(sheet, ordered, tops, row)), "unowned", hovers))
    parts.append(_spots(list(_overlaps(sheet, ordered, tops, row)), "twice", hovers))
    parts += _edges(sheet)
    parts += _bands(sheet, ordered, tops, row)
    parts.append(sheet.time_axis())
    told = (
        f"Ownership of {len(ordered)} partitions over time: {result.partitions_reassigned} reassigned, "
        f"{result.partitions_taken_over} taken over by another pod"
    )
    return sheet.draw(told, parts)


def _stretches(
    sheet: Sheet,
    ordered: dict[int, list[Owned]],
    tops: dict[int, float],
    row: float,
    shades: dict[str, str],
    with_words: bool,
) -> Iterator[str]:
    by_shade: dict[tuple[str, bool], list[str]] = {}
    height = px(row - (1 if row >= 5 else 0.3 if row >= 2.5 else 0))
    for partition, stretches in ordered.items():
        pod, stable_id, is_second, y = "", "", False, px(tops[partition])
        for stretch in stretches:
            moved = bool(pod) and stretch.pod != pod
            is_second = stretch.stable_id == stable_id and is_second != moved
            pod, stable_id = stretch.pod, stretch.stable_id
            left, right = sheet.at(stretch.begun_ns), sheet.at(stretch.ended_ns)
            left += 0.7 if moved and right - left > 3 else 0.0
            if right - left < 0.05:
                continue
            if with_words:
                told = (
                    f"partition {partition}: {stretch.stable_id}, {stretch.pod}, "
                    f"{sheet.clock(stretch.begun_ns)} to {sheet.clock(stretch.ended_ns)}"
                )
                made = f"<rect x='{px(left)}' y='{y}' width='{px(right - left)}' height='{height}'>"
                made += f"<title>{escape(told)}</title></rect>"
            else:
                made = f"M{px(left)} {y}h{px(right - left)}v{height}h-{px(right - left)}z"
            by_shade.setdefault((stable_id, is_second), []).append(made)
    for (owner, is_lighter), made_of in by_shade.items():
        kind = " class='second'" if is_lighter else ""
        inside = "".join(made_of) if with_words else f"<path d='{''.join(made_of)}'/>"
        yield f"<g fill='{shades[owner]}'{kind}>{inside}</g>"


class Spot(NamedTuple):
    """Something wrong: a rectangle in pixels, and what it is."""

    x: float
    y: float
    width: float
    height: float
    told: str


def _spots(spots: Sequence[Spot], kind: str, hovers: int) -> str:
    if len(spots) <= hovers:
        return "".join(rect(*spot[:4], kind, spot.told) for spot in spots)
    path = "".join(f"M{px(s.x)} {px(s.y)}h{px(s.width)}v{px(s.height)}h-{px(s.width)}z" for s in spots)
    return f"<path d='{path}' class='{kind}'/>"


def _holes(
    sheet: Sheet, ordered: dict[int, list[Owned]], tops: dict[int, float], row: float
) -> Iterator[Spot]:
    every = [stretch for stretches in ordered.values() for stretch in stretches]
    begun, ended = min(owned.begun_ns for owned in every), max(owned.ended_ns for owned in every)
    for partition, stretches in ordered.items():
        for hole in holes(stretches, begun, ended):
            left = sheet.at(hole.begun_ns)
            width = max(UNOWNED_WIDTH, sheet.at(hole.ended_ns) - left)
            lasted_ms = (hole.ended_ns - hole.begun_ns) / 1e6
            told = (
                f"partition {partition}: no owner for {lasted_ms:,.0f} ms from {sheet.clock(hole.begun_ns)}"
            )
            yield Spot(left, tops[partition], width, row, told)


def _overlaps(
    sheet: Sheet, ordered: dict[int, list[Owned]], tops: dict[int, float], row: float
) -> Iterator[Spot]:
    for partition, stretches in ordered.items():
        for one, other in pairwise(stretches):
            if other.begun_ns < one.ended_ns:
                left, right = sheet.at(other.begun_ns), sheet.at(min(one.ended_ns, other.ended_ns))
                told = f"partition {partition}: {one.pod} and {other.pod} from {sheet.clock(other.begun_ns)}"
                yield Spot(left, tops[partition], max(UNOWNED_WIDTH, right - left), row, told)


def _edges(sheet: Sheet) -> Iterator[str]:
    """Where the steps begin and end: lines only, since a shade would change the colours."""
    for mark in sheet.result.marks:
        for at_ns in (mark.begun_ns, mark.ended_ns):
            if at_ns:
                at = px(sheet.at(at_ns))
                top, bottom = px(sheet.frame.top), px(sheet.frame.bottom)
                yield f"<line x1='{at}' y1='{top}' x2='{at}' y2='{bottom}' class='cut'/>"


def _bands(
    sheet: Sheet, ordered: dict[int, list[Owned]], tops: dict[int, float], row: float
) -> Iterator[str]:
    """The ends of the first owners' names at their bands, as many as fit below each other."""
    bands: dict[str, list[float]] = {}
    for partition, stretches in ordered.items():
        if stretches:
            bands.setdefault(stretches[0].stable_id, []).append(tops[partition])
    free = 0.0
    for stable_id, within in bands.items():
        middle = (within[0] + within[-1] + row) / 2
        if middle - LABEL / 2 >= free:
            short = stable_id.rpartition("-")[2][-LETTERS:]
            yield text(sheet.frame.left - 7, middle + 3.5, short, "band", "end")
            free = middle + LABEL / 2
