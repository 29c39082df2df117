"""The cache of compiled kernels: running processes read it, only warming writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
KERNELS = {"tails", "quantiles", "judge", "alert", "undo", "restore", "sweep"}
LOADED_MS_MAX = 1000.0
"""All kernels from a warm cache, in CPU time, for a busy machine takes longer; 300 to 500 seen."""

PROGRAM = """
import json, os, sys, time
import numba
started = time.process_time()
import kernels.judge, kernels.sweep
loaded_ms = (time.process_time() - started) * 1e3
from kernels import jit
before = sorted(os.listdir(folder)) if os.path.isdir(folder := str(jit.cache_folder())) else []
written = [path.name for path in jit.warm()] if "warm" in sys.argv else []
print(json.dumps({
    "sources": {status.name: status.source for status in jit.status()},
    "loaded_ms": loaded_ms,
    "misses": jit.misses(),
    "before": before,
    "written": written,
    "features": jit.config.CPU_FEATURES,
}))
"""


@dataclass
class Process:
    """What a process that imported the kernels reported."""

    sources: dict[str, str]
    loaded_ms: float
    misses: int
    before: list[str]
    written: list[str]
    features: str | None
    log: str


def start(folder: Path, *arguments: str, **environment: str) -> Process:
    """Import the kernels in a process of its own, for a CPU that is not this one by name."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), "NUMBA_CPU_NAME": "x86-64-v3", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    reported: dict[str, Any] = json.loads(ran.stdout)
    return Process(**reported, log=ran.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder's path."""
    return tmp_path_factory.mktemp("cache") / "kernels"


@pytest.fixture(scope="module")
def first(folder: Path) -> Process:
    """The process that warms the folder."""
    return start(folder, "warm")


@pytest.fixture
def warm_folder(folder: Path, first: Process) -> Path:
    """The folder after that."""
    assert first.written
    return folder


def test_a_miss_is_compiled_in_memory_counted_and_logged_once_and_writes_nothing(first: Process) -> None:
    """With an empty cache every kernel is compiled; one line says so, and the folder is not made."""
    assert first.sources == dict.fromkeys(KERNELS, "compiled")
    assert first.misses == len(KERNELS)
    assert first.before == []
    assert first.log.count("defender warm") == 1


def test_warming_writes_a_file_a_kernel_and_no_other(warm_folder: Path, first: Process) -> None:
    """Files get their final names in one step: nothing partial is left."""
    assert sorted(first.written) == sorted(path.name for path in warm_folder.iterdir())
    assert {name.split("-")[0] for name in first.written} == KERNELS


def test_the_next_process_only_loads(warm_folder: Path, first: Process) -> None:
    """From a warm cache nothing is compiled, logged or written, warming included."""
    files = {path.name: path.stat().st_mtime_ns for path in warm_folder.iterdir()}
    second = start(warm_folder, "warm")
    assert second.sources == dict.fromkeys(KERNELS, "cache")
    assert (second.misses, second.written, second.log) == (0, [], "")
    assert second.loaded_ms < min(LOADED_MS_MAX, first.loaded_ms / 10)
    assert files == {path.name: path.stat().st_mtime_ns for path in warm_folder.iterdir()}


def test_a_named_cpu_brings_its_own_features_not_the_hosts(first: Process) -> None:
    """Else an image's cache would serve only the machine that built it."""
    assert first.features == ""


def test_a_damaged_file_is_named_and_compiled_anew(warm_folder: Path, tmp_path: Path) -> None:
    """A file that is cut short is never run."""
    for path in warm_folder.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:-1] if path.name.startswith("undo") else content)
    process = start(tmp_path)
    assert process.sources == dict.fromkeys(KERNELS, "cache") | {"undo": "compiled"}
    assert "undo-" in process.log
    assert "damaged" in process.log


def modules_after(code: str) -> set[str]:
    """What is loaded after some code in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return set(ran.stdout.split())


def test_the_package_alone_loads_neither_numba_nor_numpy() -> None:
    """Its names load their modules at first use; the layout takes NumPy."""
    assert not {"numba", "numpy"} & modules_after("import kernels")
    assert "numba" not in modules_after("import kernels.state")


def test_the_fork_server_loads_the_kernels_of_a_worker_and_no_others() -> None:
    """Those of a stream are there before the first fork; sweeps, designs and notebooks are not."""
    loaded = {name for name in modules_after("import runtime.worker") if name.startswith("kernels.")}
    assert "kernels.judge" in loaded
    assert not loaded & {f"kernels.{name}" for name in ("sweep", "charts", "one_chart", "design")}


def test_the_kernels_judge_the_same_with_the_jit_off() -> None:
    """The same source as plain Python passes a sample of the same tests."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"),
            *(f"tests/kernels/test_{name}.py" for name in PLAIN),
            *("-k", "not finite and not corners and not restart_at_any_report", "--tb=short"),
        ],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "KERNEL_EXAMPLES": "2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


PLAIN = ("judge", "alert", "undo", "restore", "charts", "exact", "prediction", "dispersion")
"""Tests that plain Python passes in a few seconds each."""
