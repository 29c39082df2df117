"""How long a chart in control runs until rule 1 signals falsely: simulated, and in the docs."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.charts import Charts, Spec
from kernels.state import DIAGNOSE_EVERY, EXACT_BELOW

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = json.loads(
    (ROOT / "tests/reference/u_chart_arl0_by_mean_count.json").read_text()
)
EXACT = {
    row["mean_count"]: {
        "three_sigma": row["three_sigma"]["arl0"],
        "exact": row["exact_00135"]["arl0"],
        "auto": row["exact_00135" if row["mean_count"] < EXACT_BELOW else "three_sigma"]["arl0"],
    }
    for row in ROWS
}
"""Mean count -> limits -> samples between two false signals, from the Poisson distribution itself."""
LIMITS = ("three_sigma", "exact", "auto")
CHARTS, SAMPLES = 2000, 300
SEED = 370
STANDARD_ERRORS = 4.0
MARKER = "<!-- arl0 table -->\n"


@cache
def signals(mean: float) -> dict[str, int]:
    """False signals of 600,000 samples, by limits; all limits judge the same counts."""
    assert SAMPLES < DIAGNOSE_EVERY
    counts = np.random.default_rng([SEED, round(1000 * mean)]).poisson(mean, (CHARTS, SAMPLES))
    found = {}
    for limits in LIMITS:
        charts = Charts(CHARTS, [Spec(baseline="given", centre=mean, limits=limits, rules=(1,))], window=15)
        found[limits] = int(np.count_nonzero(charts.replay(counts, 1.0).flags))
    return found


def table() -> str:
    """The docs' table: exact run lengths, and simulated ones in brackets."""
    lines = [
        "| expected count ū·n | `three_sigma` | `exact` | `auto` |",
        "|---|---|---|---|",
    ]
    for mean, exact in EXACT.items():
        found = signals(mean)
        cells = [f"{exact[name]:,.0f} ({CHARTS * SAMPLES / found[name]:,.0f})" for name in LIMITS]
        lines.append(f"| {mean:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mean", EXACT)
def test_in_control_run_lengths_come_out_by_simulation(mean: float) -> None:
    """Signals of 600,000 samples are those of the published run length, within four standard errors."""
    for limits, arl0 in EXACT[mean].items():
        expected = CHARTS * SAMPLES / arl0
        error = math.sqrt(expected * (1 - 1 / arl0))
        assert abs(signals(mean)[limits] - expected) <= STANDARD_ERRORS * error, (limits, arl0)


@pytest.mark.parametrize("mean", EXACT)
def test_auto_is_exact_below_ten_and_three_sigma_from_ten_on(mean: float) -> None:
    """The same signals of the same counts, where the others' differ."""
    found = signals(mean)
    like, unlike = ("exact", "three_sigma") if mean < EXACT_BELOW else ("three_sigma", "exact")
    assert found["auto"] == found[like] != found[unlike]


def test_the_docs_have_the_run_lengths() -> None:
    """The table in docs/charts.md is what ``table`` gives."""
    text = (ROOT / "docs/charts.md").read_text()
    assert text.count(MARKER) == 1
    assert text.partition(MARKER)[2].partition("\n\n")[0] + "\n" == table()
