"""Scenarios and budgets as files, sized for a fleet, and the commands that play them."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from typer.testing import CliRunner

import bench.lab.run
from bench.lab import budget, plan, scenario_file
from bench.lab.errors import LabError, ScenarioError
from bench.lab.result import Mark, Result
from bench.lab.scenario import Do, Scenario
from bench.lab.scenario_file import load, parsed, sized
from runtime.cli import INTERRUPTED, guarded
from runtime.cli.app import app, execute
from runtime.config import Identity

NAMES = [
    *("blue-green", "canary", "crash", "migrate", "nats-restart", "partition", "ramp", "rolling-update"),
    *("scale-down", "scale-up", "soak", "steady", "zombie"),
]
SCENARIO = """
what = "An update"
[fleet]
defenders = 10
[[steps]]
do = "rolling-update"
surge = "25 %"
"""


def scenario(steps: str, before: str = "") -> Scenario:
    return parsed(f'what = "so"\n{before}\n{steps}', "so", "so.toml")


def seen(name: str = "rolling-update", identity: str = "claim", **figures: object) -> Result:
    """A run in which nothing went wrong, but for *figures*."""
    counts = dict.fromkeys((f for f in budget.FIGURES if f != "rate_sustained"), 0)
    made = {**counts, "scenario": name, "identity": identity, "reports": 1000, "verdicts": 1000, **figures}
    return msgspec.convert(made, Result)


# --- files ----------------------------------------------------------------------------------------


def test_every_scenario_that_is_asked_for_comes_with_the_lab_and_says_what_it_is() -> None:
    assert [name for name, _ in scenario_file.names()] == NAMES
    for name, what in scenario_file.names():
        assert ". Look at " in what, name


def test_the_scenarios_do_all_that_a_step_can_do() -> None:
    done = {step.do for name in NAMES for step in load(name).steps}
    assert done == set(get_args(Do))


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_has_every_size_and_is_told_in_words(name: str) -> None:
    for defenders in (1, 2, 3, 7, 30, 60):
        made = sized(load(name), defenders, seconds=8.0)
        assert made.fleet.defenders == defenders
        for step in made.steps:
            counts = (step.to, step.surge, step.unavailable, step.count)
            assert all(isinstance(count, int) for count in counts)
        assert len(plan.steps(made)) == len(made.steps) + 2
        assert list(plan.fleet(made))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('what = "x"\nsteps = ]', "so.toml: is not TOML: .*line 2"),
        ("settle_s = 1", "so.toml: what: is missing; text is wanted"),
        (
            'what = "x"\n[load]\nreport_per_s = 3',
            'load.report_per_s: is no field .did you mean "reports_per_s"',
        ),
        ('what = "x"\nsetle_s = 3', 'so.toml: setle_s: is no field .did you mean "settle_s"'),
        ('what = "x"\nname = "y"', "name: is the file's name"),
        (
            'what = "x"\n[fleet]\ndefenders = "30"',
            "fleet.defenders: expected `int`, got `str`; a whole number",
        ),
        ('what = "x"\n[fleet]\ndefenders = 0', "fleet.defenders: is 0: give 1 to 500"),
        (
            'what = "x"\n[fleet]\npartitions = 5000',
            "fleet.partitions: '5000' is not a whole number >= 1, <= 4096",
        ),
        (
            'what = "x"\n[fleet]\nhistory = "casandra"',
            'did you mean "cassandra"..; one of jetstream, cassandra',
        ),
        (
            'what = "x"\n[fleet.settings]\nRENEWS_S = 1',
            'settings.RENEWS_S: is no setting .did you mean "RENEW_S"',
        ),
        (
            'what = "x"\n[fleet.settings]\nrenew_s = 1',
            'settings.renew_s: is no setting .did you mean "RENEW_S"',
        ),
        ('what = "x"\n[fleet.settings]\nRENEW_S = 9', "fleet.settings.RENEW_S: is 9, must be < "),
        ('what = "x"\n[fleet.settings]\nPOD_UID = "a"', "POD_UID: the lab gives each pod its own"),
        ('what = "x"\n[fleet.settings]\nWORKERS = 2', r"WORKERS: write it as workers in \[fleet\]"),
        ('what = "x"\n[load]\nchambers = 0', "load: chambers is 0: give 1 to"),
        ('what = "x"\n[load]\nreports_per_s = nan', "load: reports_per_s is nan"),
        ('what = "x"\nsettle_s = -1', "settle_s: is -1: give 0 to"),
        ('what = " "', "what: is empty"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_file_field_and_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told) as raised:
        parsed(text, "so", "so.toml")
    assert str(raised.value).startswith("so.toml: ")
    assert raised.value.exit_code == 64


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ('do = "crsh"', "step 2: do: 'crsh' is none of them .did you mean \"crash\"..; one of wait, rolling"),
        ("seconds = 3", "step 2: do: is missing; one of wait, rolling-update"),
        ('do = "wait"', "step 2: wait needs seconds; a number is wanted"),
        ('do = "wait"\nseconds = 0', "step 2: wait: seconds is 0: give more than 0"),
        ('do = "wait"\nseconds = inf', "step 2: wait: seconds is inf"),
        ('do = "wait"\nsecond = 3', 'step 2: second: is no field .did you mean "seconds"'),
        ('do = "scale"', "step 2: scale needs to; a whole number, or a share"),
        ('do = "scale"\nto = "half"', "scale: to is 'half': give a whole number, or a share"),
        ('do = "scale"\nto = "2000 %"', "scale: to is '2000 %'.* at most \"1000 %\""),
        ('do = "scale"\nto = 0', "scale: to is 0: give 1 to 500"),
        (
            'do = "scale"\nto = 1.5',
            "step 2: to: expected `int | str`, got `float`; a whole number, or a share",
        ),
        ('do = "rolling-update"', "rolling-update needs surge or unavailable"),
        ('do = "rolling-update"\nsurge = 0', "neither surge nor unavailable is a pod"),
        (
            'do = "rolling-update"\nunavailable = "3 %"',
            "of 30 defenders neither surge nor unavailable is a pod",
        ),
        ('do = "crash"', "crash needs victim; one of worker, container, pod, leader"),
        ('do = "crash"\nvictim = "leaders"', 'did you mean "leader"..; one of worker'),
        ('do = "crash"\nvictim = "pod"\ncount = 0', "crash: count is 0"),
        ('do = "migrate"\nseconds = 3', "step 2: migrate has no use for seconds; its fields: none"),
        ('do = "zombie"', "zombie needs seconds"),
        ('do = "ramp"\nseconds = 3\nfactor = 1', "ramp: factor is 1: give more than 1, at most 10"),
    ],
)
def test_a_step_that_cannot_be_done_is_told_with_its_number(step: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        scenario(f'[[steps]]\ndo = "canary"\n[[steps]]\n{step}')


def test_a_name_that_is_none_and_a_file_that_is_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        ScenarioError, match=r"'roling-update' .did you mean \"rolling-update\"..: there are bl"
    ):
        load("roling-update")
    with pytest.raises(ScenarioError, match=r"none\.toml: cannot be read: No such file"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b'what = "\xe9"')
    with pytest.raises(ScenarioError, match=r"latin\.toml: is not text in UTF-8 \(byte 9\)"):
        load(str(tmp_path / "latin.toml"))


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text(SCENARIO + "[fleet.settings]\nRENEW_S = 1.5", encoding="utf-8")
    made = load(str(tmp_path / "ours.toml"))
    assert (made.name, made.fleet.settings) == ("ours", {"RENEW_S": "1.5"})


# --- sizes ----------------------------------------------------------------------------------------


def test_shares_are_of_the_defenders_and_rounded_as_the_platform_does() -> None:
    step = 'do = "rolling-update"\nsurge = "25 %"\nunavailable = "25 %"'
    (update,) = sized(scenario(f"[[steps]]\n{step}"), 10).steps
    assert (update.surge, update.unavailable) == (3, 2)  # up and down, as a Deployment's maxSurge is


def test_the_scenarios_at_their_own_size_do_what_the_promises_speak_of() -> None:
    assert sized(load("rolling-update")).steps[0].surge == 10
    assert sized(load("scale-up")).steps[0].to == 45
    assert sized(load("scale-down")).steps[0].to == 20


def test_a_fleet_of_any_size_is_scaled_up_and_from_two_on_down() -> None:
    assert all(int(sized(load("scale-up"), n).steps[0].to) > n for n in range(1, 60))
    assert all(int(sized(load("scale-down"), n).steps[0].to) < n for n in range(2, 60))
    assert sized(load("soak"), 7).steps[6].to == 7


def test_a_count_that_is_a_number_stays_what_it_is() -> None:
    made = sized(scenario('[[steps]]\ndo = "scale"\nto = 45', "[fleet]\ndefenders = 30"), 4)
    assert made.steps[0].to == 45


def test_what_is_given_on_the_command_line_replaces_what_the_file_says() -> None:
    made = sized(load("steady"), 3, rate=77, partitions=16, workers=2, seconds=4, seed=9, history="cassandra")
    fleet, reports = made.fleet, made.load
    assert (fleet.defenders, fleet.partitions, fleet.workers, fleet.history) == (3, 16, 2, "cassandra")
    assert (reports.reports_per_s, reports.seed, made.steps[0].seconds) == (77, 9, 4)


def test_seconds_are_the_time_in_which_nothing_is_done() -> None:
    waits = [step.seconds for step in sized(load("soak"), seconds=40).steps if step.do == "wait"]
    assert waits == [10, 10, 10, 10]
    assert sized(load("ramp"), seconds=3).steps[0].seconds == 3
    assert sized(load("canary"), seconds=3).settle_s == 1.5
    assert sized(load("zombie"), seconds=3).steps == load("zombie").steps


@pytest.mark.parametrize(
    "wrong", [{"defenders": 501}, {"rate": -1.0}, {"partitions": 4097}, {"workers": 0}, {"seconds": 0.0}]
)
def test_a_size_out_of_range_is_refused_as_in_a_file(wrong: dict[str, float]) -> None:
    with pytest.raises(ScenarioError, match="steady: "):
        sized(load("steady"), **wrong)  # type: ignore[arg-type]


# --- budget ---------------------------------------------------------------------------------------


def test_no_scenario_with_any_identity_may_lose_double_or_falsify_a_verdict() -> None:
    own = budget.load()
    for name, identity in itertools.product(NAMES, Identity):
        most = {limit.figure: limit.most for limit in budget.limits(own, name, identity)}
        for figure in ("lost", "doubled", "wrong", "out_of_order", "stale", "doubly_owned"):
            assert most[figure] == 0, (name, identity)


def test_every_scenario_that_a_line_of_the_budget_names_exists() -> None:
    assert {name for line in budget.load().promises for name in line.scenarios} <= set(NAMES)


def test_promises_are_met_to_the_limit_and_not_beyond() -> None:
    kept = budget.held(seen(gap_ms_p99=250.0), budget.load())
    assert {promise.name for promise in kept} >= {"lost", "partitions_reassigned", "gap_ms_p99"}
    assert all(promise.met for promise in kept)
    (late,) = [p for p in budget.held(seen(gap_ms_p99=250.1), budget.load()) if not p.met]
    assert (late.name, late.limit, late.seen) == ("gap_ms_p99", 250.0, 250.1)


def test_a_promise_may_be_held_against_another_figure_of_the_run() -> None:
    moved = seen("scale-up", partitions_reassigned=21, partitions_must_move=20)
    (broken,) = [promise for promise in budget.held(moved, budget.load()) if not promise.met]
    assert (broken.name, broken.limit, broken.seen) == ("partitions_reassigned", 20.0, 21.0)


@pytest.mark.parametrize("figures", [{"is_whole": False}, {"reports": 0}, {"lost": -1}])
def test_what_a_run_did_not_see_is_no_promise_kept(figures: dict[str, Any]) -> None:
    kept = {promise.name: promise.met for promise in budget.held(seen(**figures), budget.load())}
    assert not kept["lost"]


def test_of_two_lines_about_one_figure_the_later_counts() -> None:
    general = '[[promises]]\nwhy = "all"\nmax = {lost = 0}\n'
    special = '[[promises]]\nwhy = "x"\nscenarios = ["soak"]\nmax = {lost = 5}'
    made = budget.parsed(general + special, "b.toml")
    assert [limit.most for limit in budget.limits(made, "soak", "pod")] == [5]
    assert [limit.most for limit in budget.limits(made, "crash", "pod")] == [0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[promises]]\nwhy = "x"\nmax = {losst = 0}', 'promise 1: losst: is no figure .* "lost"'),
        ('[[promises]]\nwhy = "x"\nmax = {lost = "doubeld"}', 'doubeld: is no figure .* "doubled"'),
        ('[[promises]]\nwhy = "x"\nmax = {scenario = 0}', "scenario: is no figure of a run"),
        ('[[promises]]\nwhy = "x"\nidentities = ["clam"]\nmax = {lost = 0}', "Invalid enum value 'clam'"),
        ('[[promises]]\nwhy = "x"\nmin = {lost = 0}\nmax = {}', "unknown field `min`"),
        ("[[promises]", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_budget_is_told(text: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=f"b.toml: .*{told}"):
        budget.parsed(text, "b.toml")


# --- commands -------------------------------------------------------------------------------------


def command(*argv: str) -> tuple[int, str]:
    """Exit code and stdout of a command, an error's own exit code included."""
    runner = CliRunner()
    outcome = runner.invoke(app, argv)
    error = outcome.exception
    if isinstance(error, LabError):
        return error.exit_code, str(error)
    assert error is None or isinstance(error, SystemExit), repr(error)
    return outcome.exit_code, outcome.stdout


def test_list_and_show_start_nothing_and_say_what_would_be_done() -> None:
    code, told = command("lab", "list")
    assert code == 0
    assert all(name in told for name in NAMES)
    code, told = command("lab", "show", "rolling-update", "--defenders", "6")
    assert code == 0
    assert "all 6 pods replaced by a new revision, at most 2 more and 0 fewer at a time" in told
    assert "partitions reassigned ≤ 0" in told
    code, told = command("lab", "show", "migrate", "--json")
    assert msgspec.json.decode(told)["identity"] == "ordinal"


class Stand:
    """In the place of `bench.lab.run.run`: gives results without a fleet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **figures: object) -> None:
        self.figures = figures
        self.asked: list[tuple[str, str]] = []
        self.interrupted_by: signal.Signals | None = None
        self.is_early = False
        monkeypatch.setattr(bench.lab.run, "run", self.run)

    async def run(self, scenario: Scenario, *, identity: Identity, out: Path, **_: object) -> Result:
        self.asked.append((scenario.name, identity))
        figures = self.figures
        if self.interrupted_by is not None:
            os.kill(os.getpid(), self.interrupted_by)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                if self.is_early:
                    raise
                figures = {**figures, "is_whole": False}
        made = seen(scenario.name, identity, **figures)
        mark = Mark("something", 1_000_000_000, 2_000_000_000)
        return msgspec.structs.replace(made, promises=budget.held(made, budget.load()), marks=[mark])


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "rollin-update"),
        ("run", "steady", "--defenders", "900"),
        ("run", "steady", "--broken", "ack-erly"),
        ("compare", "steady", "--identities", "claim,ordnal"),
        ("compare", "steady", "--identities", ","),
        ("show", "missing.toml"),
    ],
)
def test_wrong_usage_ends_before_anything_is_started_with_64(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand = Stand(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert command("lab", *argv)[0] == 64
    assert not stand.asked
    assert not list(tmp_path.iterdir())


def test_a_run_writes_its_report_and_prints_the_summary_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stand(monkeypatch)
    code, told = command("lab", "run", "canary", "--out", str(tmp_path / "a" / "b"), "--json")
    assert code == 0
    last = msgspec.json.decode(told.splitlines()[-1])
    assert (last["scenario"], last["identity"], last["lost"]) == ("canary", "claim", 0)
    assert "marks" not in last
    written = msgspec.json.decode((tmp_path / "a" / "b" / "result.json").read_bytes(), type=Result)
    assert written.marks[0].what == "something"
    assert "<!doctype html>" in (tmp_path / "a" / "b" / "report.html").read_text(encoding="utf-8")


def test_a_broken_promise_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stand(monkeypatch, lost=1)
    assert command("lab", "run", "steady", "--out", str(tmp_path))[0] == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_whose_report_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    Stand(monkeypatch).interrupted_by = signum
    assert guarded(lambda: execute(["lab", "run", "steady", "--out", str(tmp_path)])) == code
    assert (tmp_path / "report.html").exists()


def test_an_interrupt_before_anything_was_seen_leaves_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(monkeypatch)
    stand.interrupted_by, stand.is_early = signal.SIGINT, True
    assert guarded(lambda: execute(["lab", "run", "steady", "--out", str(tmp_path)])) == INTERRUPTED
    assert not list(tmp_path.iterdir())


def test_compare_plays_each_scenario_with_each_identity_and_writes_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(monkeypatch)
    table = tmp_path / "docs" / "table.md"
    argv = ("steady", "migrate", "--identities", "claim,pod", "--markdown", str(table), "--json")
    code, told = command("lab", "compare", *argv, "--out", str(tmp_path / "out"))
    assert code == 0
    assert stand.asked == [("steady", "claim"), ("steady", "pod"), ("migrate", "ordinal")]
    assert len(msgspec.json.decode(told.splitlines()[-1])["runs"]) == 3
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| steady")]
    assert len(rows) == 2
    assert (tmp_path / "out" / "migrate-ordinal" / "report.html").exists()
    assert (tmp_path / "out" / "report.html").exists()


def test_a_run_that_cannot_begin_does_not_end_a_comparison_but_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(monkeypatch)

    async def run(scenario: Scenario, *, identity: Identity, **others: object) -> Result:
        if identity is Identity.ORDINAL:
            raise LabError("no room")
        return await stand.run(scenario, identity=identity, out=tmp_path)

    monkeypatch.setattr(bench.lab.run, "run", run)
    assert command("lab", "compare", "steady", "--out", str(tmp_path))[0] == 1
    assert [identity for _, identity in stand.asked] == ["claim", "pod"]
