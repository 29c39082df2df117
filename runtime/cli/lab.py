"""``defender lab``: whole fleets on this machine, under load, through what may befall them.

What is done and measured is `bench.lab`'s; here are the options, where the report goes, and the exit codes:
0 when every promise was kept, 1 when one was not or a run broke off, 64 for a scenario that is not one, 130
after Ctrl-C. Whatever ends a run, what was seen until then is written.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import typer
from rich.text import Text

from runtime.cli import INTERRUPTED, complain, terminal
from runtime.cli.command import Json
from runtime.config import History, Identity
from runtime.errors import DefenderError, InputError

if TYPE_CHECKING:
    from bench.lab.result import Result
    from bench.lab.scenario import Scenario

OUT: Final = Path("lab-out")
COMPARED: Final = ("rolling-update", "scale-up", "scale-down", "crash", "blue-green", "canary")
"""What `defender lab compare` plays when nothing is named."""
BROKEN_OFF: Final = 1

app = typer.Typer(
    name="lab",
    help="Whole fleets on this machine, under load: what a rolling update, a crash or a cutover costs.",
    no_args_is_help=True,
)

ScenarioOf = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A name of defender lab list, or a file.")
]
Defenders = Annotated[int | None, typer.Option(min=1, help="Pods, instead of the scenario's number.")]
Rate = Annotated[float | None, typer.Option(min=0, help="Reports a second.")]
Partitions = Annotated[int | None, typer.Option(min=1, help="Partitions of the fleet.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes of each pod.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Another seed: other reports, other victims.")]
Seconds = Annotated[
    float | None,
    typer.Option(help="Of load while nothing is done to the fleet, all in all; of each rate of a ramp."),
]
HistoryOf = Annotated[History | None, typer.Option(help="What keeps the charts' history.")]
Out = Annotated[Path, typer.Option(help="Folder of the report, the JSON and the pods' logs.")]
BudgetFile = Annotated[
    Path | None, typer.Option("--budget", help="A TOML file of promises.  [default: the lab's own]")
]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the server's store in it, too.")]
Cold = Annotated[
    bool, typer.Option("--cold", help="Start an interpreter for each pod; else forked from a warm image.")
]


class Signal(StrEnum):
    """What ended a run from outside."""

    NONE = ""
    INT = "SIGINT"
    TERM = "SIGTERM"


class How(NamedTuple):
    """What is the same for all runs of a command."""

    broken: str
    keep: bool
    cold: bool
    budget: Path | None


class Played(NamedTuple):
    """What came of a run: nothing where it ended before anything was seen."""

    result: Result | None
    ended_by: Signal


@app.command("list")
def list_(json: Json = False) -> None:
    """The scenarios that come with the lab."""
    _require("budget", "plan")
    from bench.lab import scenario_file

    found = scenario_file.names()
    if json:
        terminal.print_json([{"scenario": name, "what": what} for name, what in found])
        return
    table = terminal.table(("scenario", False), ("what is done, and what to look at", False))
    for name, what in found:
        table.add_row(name, what)
    terminal.tables().print(table)


@app.command()
def show(
    scenario: ScenarioOf,
    defenders: Defenders = None,
    identity: Annotated[Identity | None, typer.Option(help="Whose promises; claim, usually.")] = None,
    rate: Rate = None,
    partitions: Partitions = None,
    workers: Workers = None,
    seconds: Seconds = None,
    json: Json = False,
) -> None:
    """What a run would do, in words, and what is promised of it. Nothing is started."""
    _require("budget", "plan")
    from bench.lab import budget, plan

    sized = _sized(scenario, defenders, rate=rate, partitions=partitions, workers=workers, seconds=seconds)
    chosen = identity or _identity(sized)
    limits = budget.limits(budget.load(), sized.name, chosen)
    if json:
        promises = {limit.figure: limit.most for limit in limits}
        terminal.print_json({**msgspec.to_builtins(sized), "identity": chosen, "promises": promises})
        return
    console = terminal.stdout()
    console.print(terminal.clean(f"{sized.name}: {sized.what}."), style="bold")
    for line in plan.fleet(sized):
        console.print(f"  {terminal.clean(line)}")
    for place, line in enumerate(plan.steps(sized), 1):
        console.print(f"  {place:>2}. {line}")
    console.print(f"promised with identity {chosen}:")
    for why in dict.fromkeys(limit.why for limit in limits):
        console.print(f"  {why}:")
        console.print(f"      {', '.join(plan.promise(limit) for limit in limits if limit.why == why)}")


@app.command()
def run(
    scenario: ScenarioOf,
    defenders: Defenders = None,
    identity: Annotated[
        Identity | None,
        typer.Option(
            help="claim: a Deployment; ordinal: a StatefulSet; pod: a plain Deployment. Unless given claim, "
            "and ordinal where the scenario begins with a StatefulSet."
        ),
    ] = None,
    rate: Rate = None,
    partitions: Partitions = None,
    workers: Workers = None,
    seed: Seed = None,
    seconds: Seconds = None,
    history: HistoryOf = None,
    broken: Annotated[
        str,
        typer.Option(metavar="MODE", help="Break the defenders on purpose, to see the lab find it."),
    ] = "",
    out: Out = OUT,
    json: Json = False,
    keep: Keep = False,
    cold: Cold = False,
    budget: BudgetFile = None,
) -> None:
    """Play one scenario with a fleet on this machine, and report what it cost.

    Exit code 0 only if every promise was kept. OUT/report.html has the plots, OUT/result.json all figures.
    """
    _require("run", "page", "broken")
    sized = _sized(
        scenario,
        defenders,
        rate=rate,
        partitions=partitions,
        workers=workers,
        seconds=seconds,
        seed=seed,
        history=history.value if history else None,
    )
    _check_mode(broken)
    _make(out)
    how = How(broken, keep, cold, budget)
    played = terminal.run(_played(sized, identity or _identity(sized), out, how))
    result = played.result
    if result is not None:
        _write(out, result)
        _print(result, out, json)
    _leave([] if result is None else [result], 1, played.ended_by)


@app.command()
def compare(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO]...", help=f"Names or files; by default {', '.join(COMPARED)}."),
    ] = None,
    defenders: Defenders = None,
    identities: Annotated[str, typer.Option(help="Comma-separated.")] = "claim,ordinal,pod",
    rate: Rate = None,
    partitions: Partitions = None,
    workers: Workers = None,
    seed: Seed = None,
    seconds: Seconds = None,
    history: HistoryOf = None,
    out: Out = OUT,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
    json: Json = False,
    keep: Keep = False,
    cold: Cold = False,
    budget: BudgetFile = None,
) -> None:
    """Play scenarios with each identity, one after the other, and put what they cost side by side.

    OUT has the comparison, and OUT/SCENARIO-IDENTITY each run. It is written anew after each run.
    """
    _require("run", "page", "broken")
    chosen = [
        _sized(
            scenario,
            defenders,
            rate=rate,
            partitions=partitions,
            workers=workers,
            seconds=seconds,
            seed=seed,
            history=history.value if history else None,
        )
        for scenario in scenarios or COMPARED
    ]
    ways = _identities(identities)
    plays = [(sized, identity) for sized in chosen for identity in _ways(sized, ways)]
    _make(out)
    if markdown is not None:
        _make(markdown.parent)
    results, ended_by = _play_all(plays, out, How("", keep, cold, budget), markdown)
    _print_comparison(results, out, json)
    _leave(results, len(plays), ended_by)


# --- before a run ---------------------------------------------------------------------------------


def _require(*parts: str) -> None:
    """Raises InputError where these parts of the lab, or what they need, are not installed."""
    try:
        for part in parts:
            import_module(f"bench.lab.{part}")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == "bench":
            problem = f"the lab is not installed here ({missing} is missing): install the package as a whole"
        else:
            problem = f"the lab needs {missing}, which is not installed: pip install {missing}"
        raise InputError(problem) from error


def _sized(name_or_path: str, defenders: int | None, **instead: Any) -> Scenario:
    from bench.lab import scenario_file

    return scenario_file.sized(scenario_file.load(name_or_path), defenders, **instead)


def _begins_ordered(scenario: Scenario) -> bool:
    """Whether the scenario is about a StatefulSet."""
    return any(step.do == "migrate" for step in scenario.steps)


def _identity(scenario: Scenario) -> Identity:
    return Identity.ORDINAL if _begins_ordered(scenario) else Identity.CLAIM


def _ways(scenario: Scenario, ways: Sequence[Identity]) -> Sequence[Identity]:
    """Those of *ways* in which the scenario can be played."""
    return [Identity.ORDINAL] if _begins_ordered(scenario) else ways


def _identities(text: str) -> list[Identity]:
    from bench.lab.errors import ScenarioError
    from bench.lab.scenario_file import nearest

    known = [identity.value for identity in Identity]
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ScenarioError(
                f"--identities {text!r}: {name!r} is none{nearest(name, known)}; there are {', '.join(known)}"
            )
    if not names:
        raise ScenarioError(f"--identities {text!r}: names none of {', '.join(known)}")
    return [Identity(name) for name in dict.fromkeys(names)]


def _check_mode(broken: str) -> None:
    if not broken:
        return
    from bench.lab.broken import MODES
    from bench.lab.errors import ScenarioError
    from bench.lab.scenario_file import nearest

    if broken not in MODES:
        told = "; ".join(f"{mode}: {what}" for mode, what in MODES.items())
        raise ScenarioError(f"--broken {broken!r}: is no mode{nearest(broken, MODES)}; there are {told}")


def _make(folder: Path) -> None:
    """The folder, before anything is started that is to be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}; name another") from error


# --- the runs -------------------------------------------------------------------------------------


async def _played(scenario: Scenario, identity: Identity, out: Path, how: How) -> Played:
    """One run, with its progress on stderr. A signal ends it in order, and what was seen is kept."""
    from bench.lab import budget as budgets
    from bench.lab.run import run as play
    from bench.lab.table import Progress

    promises = budgets.load(how.budget)
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    ended_by = Signal.NONE

    def end(how: Signal) -> None:
        nonlocal ended_by
        if not ended_by:
            terminal.stderr().print(f"{how}: the run ends, and what was seen is reported; once more: at once")
        ended_by = how
        this.cancel()

    # SIGTERM, too: a CI that gives up wants the report as well
    handled = {signal.SIGINT: Signal.INT, signal.SIGTERM: Signal.TERM}
    for signum, told in handled.items():
        loop.add_signal_handler(signum, end, told)
    heading = f"{scenario.name}, {identity}, {scenario.fleet.defenders} defenders"
    try:
        with Progress(terminal.stderr(), heading) as progress:
            result = await play(
                scenario,
                identity=identity,
                out=out,
                broken=how.broken,
                keep=how.keep,
                is_cold=how.cold,
                promises=promises,
                on_now=progress.show,
            )
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return Played(None, ended_by)
    finally:
        for signum in handled:
            loop.remove_signal_handler(signum)
    return Played(result, ended_by)


def _play_all(
    plays: Sequence[tuple[Scenario, Identity]],
    out: Path,
    how: How,
    markdown: Path | None,
) -> tuple[list[Result], Signal]:
    """All runs, one after the other. One that cannot begin is told and left out."""
    results: list[Result] = []
    for place, (scenario, identity) in enumerate(plays, 1):
        terminal.stderr().print(f"{place} of {len(plays)}", style="dim")
        folder = out / f"{scenario.name}-{identity}"
        _make(folder)
        try:
            played = terminal.run(_played(scenario, identity, folder, how))
        except DefenderError as error:
            complain(f"{scenario.name}, {identity}: {error}")
            continue
        if played.result is not None:
            results.append(played.result)
            _write(folder, played.result)
            _write(out, results)
            _write_markdown(markdown, results)
        if played.ended_by:
            return results, played.ended_by
    return results, Signal.NONE


# --- what came of it ------------------------------------------------------------------------------


def _write(out: Path, seen: Result | list[Result]) -> None:
    from bench.lab import page

    coded = msgspec.json.format(msgspec.json.encode(seen), indent=1)
    _written(out / "result.json", coded)  # first: it is what cannot be made again
    _written(out / "report.html", page.written(seen).encode())


def _write_markdown(path: Path | None, results: Sequence[Result]) -> None:
    from bench.lab import table

    if path is not None:
        _written(path, table.comparison(results).encode())


def _written(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _print(result: Result, out: Path, json: bool) -> None:
    from bench.lab import table
    from bench.lab.result import summary

    table.print_result(terminal.stderr() if json else terminal.tables(), result)
    terminal.stderr().print(f"written: {out / 'report.html'}, {out / 'result.json'}")
    if json:
        terminal.print_json(summary(result))


def _print_comparison(results: Sequence[Result], out: Path, json: bool) -> None:
    from bench.lab import table
    from bench.lab.result import summary

    if results:
        console = terminal.stderr() if json else terminal.tables()
        console.print(table.comparison_table(results))
        for result in results:
            broken = [promise.name for promise in result.promises if not promise.met]
            if broken:
                told = f"{result.scenario}, {result.identity}: not kept: {', '.join(broken)}"
                terminal.stderr().print(Text(terminal.clean(told), style="bold red"))
        terminal.stderr().print(f"written: {out / 'report.html'}, {out / 'result.json'}")
    if json:
        terminal.print_json({"runs": [summary(result) for result in results]})


def _leave(results: Sequence[Result], wanted: int, ended_by: Signal) -> None:
    """Raises typer.Exit unless all that was wanted ran to its end and every promise was kept."""
    if ended_by:
        complain(f"ended by {ended_by}" + ("" if results else " before anything was seen"))
        raise typer.Exit(INTERRUPTED if ended_by is Signal.INT else 128 + signal.SIGTERM)
    kept = all(result.is_whole and all(p.met for p in result.promises) for result in results)
    if len(results) < wanted or not kept:
        raise typer.Exit(BROKEN_OFF)
