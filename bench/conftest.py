"""Collects the figures of all benches and prints them as one table at the end.

BENCH_QUICK=1 makes one short round of each (for CI: does it run, are the ratios sane). BENCH_GATE=0 reports
figures without failing on them; a quick round never fails on an absolute figure.
"""

from __future__ import annotations

from typing import Any

import pytest
from figures import FIGURES, QUICK
from rich.console import Console
from rich.table import Table


@pytest.fixture
def quick() -> bool:
    """Whether one short round is enough."""
    return QUICK


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of figures: what was measured, what is promised, what it was compared with."""
    if not FIGURES:
        return
    table = Table(title="Figures" + (" (quick round)" if QUICK else ""), title_justify="left")
    for column in ("what", "measured", "target", "baseline of the same run", "met"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for figure in FIGURES:
        table.add_row(figure.what, figure.measured, figure.target, figure.baseline, figure.verdict)
    console = Console(width=150)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write_line("")
    terminalreporter.write_line(capture.get())
