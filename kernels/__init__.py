"""The u-chart core: pure functions over arrays, compiled with numba.

``u_chart`` judges one chart of numbers at hand; ``Charts`` keeps many and judges what comes. Below them,
``state`` holds the layout of a chart in memory, ``judge`` the kernels, ``jit`` their on-disk cache.
Nothing here does I/O (but for the cache of compiled code), reads a clock or draws a random number.

The names of the package load their modules at first use: a process that wants the layout alone
(``import kernels.state``) compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.charts import Charts
    from kernels.one_chart import UChart, u_chart

__all__ = ["Charts", "UChart", "u_chart"]

_HOMES = {"Charts": "kernels.charts", "UChart": "kernels.one_chart", "u_chart": "kernels.one_chart"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
