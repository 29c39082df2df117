"""One figure of a bench: what was measured against what, and whether it keeps its promise."""

from __future__ import annotations

import os
from dataclasses import dataclass

QUICK = os.environ.get("BENCH_QUICK", "0") not in ("", "0")
GATE = os.environ.get("BENCH_GATE", "1") != "0"


@dataclass(frozen=True)
class Figure:
    """*met* is None where there is nothing to keep."""

    what: str
    measured: str
    target: str
    baseline: str
    met: bool | None
    is_ratio: bool

    @property
    def verdict(self) -> str:
        return "" if self.met is None else "yes" if self.met else "NO"


FIGURES: list[Figure] = []


def figure(
    what: str,
    measured: str,
    *,
    target: str = "",
    baseline: str = "",
    met: bool | None = None,
    is_ratio: bool = False,
) -> None:
    """Notes a figure, prints it, and fails the bench if it must hold and does not.

    Absolute figures depend on the machine and on who else uses it: a quick round reports them only.
    """
    FIGURES.append(Figure(what, measured, target, baseline, met, is_ratio))
    against = f" (baseline {baseline})" if baseline else ""
    print(f"\n{what}: {measured}{against}; target {target or 'none'}")
    if met is False and GATE and not QUICK:
        raise AssertionError(f"{what}: {measured}, target {target}")
