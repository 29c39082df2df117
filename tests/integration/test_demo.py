"""``defender demo`` as a person runs it: real processes, a kill, and a summary that can be trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "runtime", "demo"]
DEADLINE_S = 50.0


def demo(*arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "TMPDIR": str(folder), **environ},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture
def folder() -> Any:
    """Short, for it holds a server's store; everything that a demo leaves shows here."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def test_a_short_demo_keeps_every_promise_and_says_so_in_one_json_object(folder: Path) -> None:
    done = demo("--seconds", "6", "--rate", "500", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["reports"] == 3000
    assert found["lost"] == found["duplicated"] == found["unexpected"] == 0
    assert found["planted"] == found["planted_found"] > 0
    assert found["rejected"] == found["broken"] == found["broken_rejected"] > 0
    assert found["verdicts"] >= found["reports"] - found["rejected"]
    assert found["alarms"] > 0
    assert found["samples_per_s"] > 0
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p99"] <= found["latency_ms_max"]
    assert 0.9 < found["cache_hit_rate"] <= 1
    assert found["recovery_ms"] > 0
    assert found["book_agrees"]
    assert found["book_deviation"] <= 1e-12
    assert "kill -9 of worker 0" in done.stderr
    assert not list(folder.iterdir()), "store and logs are removed"


def test_an_interrupted_demo_ends_its_processes_removes_its_store_and_leaves_with_130(folder: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "--seconds", "30"],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "ready" in line:
            break
    marks = f"TMPDIR={folder}".encode()
    assert len(processes_with(marks)) > 3
    running.send_signal(signal.SIGINT)
    assert running.wait(DEADLINE_S) == 130
    running.stdout.close()
    deadline_s = time.monotonic() + 5.0
    while processes_with(marks) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not processes_with(marks)
    assert not list(folder.iterdir())


def processes_with(mark: bytes) -> list[int]:
    """Processes with *mark* in their environment; those that end meanwhile are none."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_a_missing_nats_server_is_told_with_the_extra_that_brings_it(folder: Path) -> None:
    done = demo(folder=folder, NATS_SERVER_BIN=str(folder / "none"))
    assert done.returncode == 64
    assert "tfdc-defender[embedded]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.iterdir())


def test_what_cannot_be_shown_is_refused_before_anything_starts(folder: Path) -> None:
    done = demo("--seconds", "5", "--rate", "20", folder=folder)
    assert done.returncode == 65
    assert "raise one of them" in done.stderr
