"""Kernels coming into a process: from the warm cache, and compiled where there is none.

Promised: all of them loaded within 1 s in the fork server, compiled within 20 s. Each round is a process of
its own, which imports NumPy and numba first; their time is told beside it. Cold: an empty cache folder, which
``warm`` fills, and from which the warm ones read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import QUICK, figure

WARM_S_MAX = 1.0
COLD_S_MAX = 20.0

LOADING = """
import json, time
started = time.perf_counter()
import numba, numpy
imported = time.perf_counter()
import kernels.judge, kernels.sweep
from kernels import jit
loaded = time.perf_counter()
jit.warm()
found = [(status.name, status.source, status.took_ms) for status in jit.status()]
print(json.dumps([imported - started, loaded - imported, found]))
"""


def load(folder: Path) -> tuple[float, float, list[tuple[str, str, float]]]:
    """(seconds of importing numba and NumPy, seconds of loading the kernels, how each of them came)."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported_s, loaded_s, found = json.loads(done.stdout)
    return imported_s, loaded_s, found


def test_loading(benchmark: Any, tmp_path: Path) -> None:
    """Cold, then warm, as the fork server does it; the best of each."""
    folders = [tmp_path / str(i) for i in range(1 if QUICK else 2)]
    _, cold_s, compiled = min((load(folder) for folder in folders), key=lambda one: one[1])
    assert {source for _, source, _ in compiled} == {"compiled"}
    rounds = [benchmark.pedantic(load, (folders[0],), rounds=1)]
    rounds += [load(folders[0]) for _ in range(1 if QUICK else 9)]
    assert {source for _, _, found in rounds for _, source, _ in found} == {"cache"}
    imported_s, warm_s, _ = min(rounds, key=lambda one: one[1])
    longest = max(compiled, key=lambda kernel: kernel[2])
    figure(
        f"{len(compiled)} kernels from the warm cache",
        f"{warm_s:.2f} s",
        target=f"{WARM_S_MAX:.0f} s",
        baseline=f"after numba and NumPy, {imported_s:.2f} s",
        met=warm_s <= WARM_S_MAX,
    )
    figure(
        f"{len(compiled)} kernels compiled",
        f"{cold_s:.1f} s",
        target=f"{COLD_S_MAX:.0f} s",
        baseline=f"{longest[0]} alone {longest[2] / 1e3:.1f} s",
        met=cold_s <= COLD_S_MAX,
    )
