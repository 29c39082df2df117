"""The entry point: what it imports, which exit code a mistake has, and that people see no stack trace."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli import INTERRUPTED, guarded
from runtime.cli.basics import schema_text
from runtime.errors import InputError, SettingsError
from runtime.specs import Baseline
from runtime.specs_text import parse
from runtime.wire import Reason

DOCS = Path(__file__).parents[2] / "docs"

RUN = """
import sys, types
supervisor = types.ModuleType("runtime.supervisor")
supervisor.main = lambda argv: print("ran", argv) or 7
sys.modules["runtime.supervisor"] = supervisor
sys.argv = ["defender", "run", "--more"]
from runtime.cli import main
code = main()
heavy = {"typer", "rich", "aiohttp", "numba", "numpy", "yaml"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def test_run_goes_to_the_supervisor_without_importing_what_only_people_need() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "ran ['--more']\n"), done.stderr


INTERRUPTED_ITSELF = """
import os, signal, sys, types
app = types.ModuleType("runtime.cli.app")
app.execute = lambda argv: os.kill(os.getpid(), signal.SIGINT) or 0
sys.modules["runtime.cli.app"] = app
from runtime.cli import main
sys.exit(main())
"""


def test_an_interrupt_ends_a_command_also_where_its_parent_ignores_interrupts() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell without job control does for &
    try:
        done = subprocess.run([sys.executable, "-c", INTERRUPTED_ITSELF], timeout=20, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == INTERRUPTED


def defender(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", *argv]
    environ = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1", **environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def test_a_wrong_setting_is_one_line_that_names_it_with_its_own_exit_code() -> None:
    done = defender("config", PARTITIONS="many")
    assert done.returncode == SettingsError.exit_code
    assert done.stderr.startswith("defender: PARTITIONS: 'many'")
    assert len(done.stderr.splitlines()) == 1


def test_a_mistyped_command_or_option_is_answered_with_usage_and_exit_code_2() -> None:
    done = defender("verdicst")
    assert done.returncode == 2
    assert "Did you mean 'verdicts'" in done.stderr
    assert defender("verdicts", "--lats", "3").returncode == 2


def test_config_shows_values_and_sources_and_hides_secrets() -> None:
    done = defender("config", NATS_USER="me", NATS_PASSWORD="hush", WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^WORKERS +3 +environment", done.stdout, re.MULTILINE)
    assert re.search(r"^PARTITIONS +64 +default", done.stdout, re.MULTILINE)
    assert "hush" not in done.stdout


def test_every_problem_of_a_specs_file_is_a_line_and_no_server_is_needed_to_find_it(tmp_path: Path) -> None:
    file = tmp_path / "specs.yaml"
    file.write_text("charts:\n  - {chambr: E*}\ndefault: {k: 0}\n")
    done = defender("specs", "check", str(file))
    assert done.returncode == InputError.exit_code
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["defender", " line 2"],
        ["defender", " line 3"],
    ]


def test_without_a_server_a_command_says_which_setting_to_look_at() -> None:
    done = defender("status", NATS_SERVERS="nats://127.0.0.1:9")
    assert done.returncode == 69
    assert "correct NATS_SERVERS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [(InputError("x"), 65), (SettingsError("A", "x"), 64), (KeyboardInterrupt(), INTERRUPTED)],
)
def test_what_ends_a_command_decides_its_exit_code(raised: BaseException, code: int) -> None:
    def command() -> int:
        raise raised

    assert guarded(command) == code
    assert guarded(lambda: 3) == 3


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    script = f"{sys.executable} -m runtime schema | head -c 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_the_stored_json_schema_is_the_one_of_the_messages() -> None:
    assert (DOCS / "wire.schema.json").read_text() == schema_text(), (
        "run: defender schema > docs/wire.schema.json"
    )


def test_the_documentation_names_every_reason_and_every_baseline() -> None:
    wire = (DOCS / "wire.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in wire] == []
    charts = (DOCS / "charts.md").read_text()
    assert [baseline for baseline in Baseline if f"**`{baseline}`**" not in charts] == []


def test_the_example_in_the_documentation_is_a_sound_document() -> None:
    example = re.search(r"```yaml\n(.*?)```", (DOCS / "charts.md").read_text(), re.DOTALL)
    assert example is not None
    specs = parse(example[1], window=256)
    assert [spec.baseline for spec in specs.charts] == [Baseline.FROZEN, Baseline.MOVING, Baseline.GIVEN]
    assert specs.default.minimum == 8
