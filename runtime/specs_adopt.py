"""Adopting: frozen centre lines become given ones, an entry a chart. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from runtime.specs import Baseline, ChartSpec, Limits, Specs
from runtime.specs_methods import BY_QUANTILES


class Frozen(NamedTuple):
    """The frozen baseline of one chart; *sigma_z* where its limits are Laney's."""

    chamber: str
    chart: str
    centre: float
    sigma_z: float | None = None


def adopt(specs: Specs, frozen: Iterable[Frozen]) -> Specs:
    """*specs* with the given centre of each chart in *frozen*.

    An entry for exactly this chart is put before the one that matched it so far and takes over its limits,
    rules, alarm and name; an entry that was adopted before gets the new centre. All other charts match what
    they matched.
    """
    before: dict[int, list[ChartSpec]] = {}
    replaced: dict[int, ChartSpec] = {}
    for adopted in sorted(frozen):
        index, found = specs.match(adopted.chamber, adopted.chart)
        entry = _given(found, adopted)
        if index < len(specs.charts) and (found.chamber, found.chart) == (entry.chamber, entry.chart):
            replaced[index] = entry
        else:
            before.setdefault(index, []).append(entry)
    entries: list[ChartSpec] = []
    for index, spec in enumerate(specs.charts):
        entries += before.get(index, [])
        entries.append(replaced.get(index, spec))
    entries += before.get(len(specs.charts), [])
    return msgspec.structs.replace(specs, charts=tuple(entries))


def _given(found: ChartSpec, adopted: Frozen) -> ChartSpec:
    """*found* for one chart, with what its baseline came to in the place of how to come to it."""
    usual = ChartSpec()
    return msgspec.structs.replace(
        found,
        chamber=escaped(adopted.chamber),
        chart=escaped(adopted.chart),
        baseline=Baseline.GIVEN,
        centre=adopted.centre,
        phase_one=usual.phase_one,
        minimum=usual.minimum,
        start=usual.start,
        alpha=found.alpha if found.limits in BY_QUANTILES else usual.alpha,
        sigma_z=adopted.sigma_z if found.limits is Limits.LANEY else None,
        sigma_z_floor=None,
        screen_ranges=False,
    )


def escaped(name: str) -> str:
    """A glob that matches exactly *name*."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)
