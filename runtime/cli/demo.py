"""``defender demo``: a simulated fab, judged end to end, with a worker killed half-way.

What happens is in `runtime.demo`; here are the options, and how it is shown: a live view on a terminal,
plain lines elsewhere, one JSON object as the last line with ``--json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from runtime.cli import terminal
from runtime.demo.outcome import Outcome, faults
from runtime.demo.plan import Plan, planned
from runtime.demo.show import Milestone, Show
from runtime.demo.view import LiveView, milestone_line, progress_line, summary
from runtime.errors import DefenderError

REFRESH_S: Final = 0.25
PROGRESS_S: Final = 2.0
TERMINATED: Final = 128 + signal.SIGTERM


def demo(
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="How long the fab runs.")] = 20,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes of the defender.")] = 2,
    rate: Annotated[float, typer.Option(min=1, max=100_000, help="Reports a second.")] = 1_000,
    chambers: Annotated[
        int | None, typer.Option(min=1, help="Chambers of the fab.  [default: as the reports allow, to 40]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another fab.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="No live view; the last line is one object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server's store and the logs.")] = False,
) -> None:
    """Show it all on this machine: a fab, a NATS server, a defender, and a worker that is killed.

    Exit code 0 only if nothing was lost or came twice, every planted excursion was found, every broken
    message is in REJECTED, and a published data set got its published limits.
    """
    plan = planned(seconds, rate, chambers, seed, workers)
    try:
        outcome = terminal.run(_demo(plan, json, keep))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    problems = faults(outcome)
    if json:
        for problem in problems:
            terminal.stderr().print(f"not so: {problem}", style="bold red")
        terminal.print_json(outcome)
    else:
        for line in summary(outcome):
            terminal.stdout().print(line)
    if problems:
        raise typer.Exit(1)


async def _demo(plan: Plan, json: bool, keep: bool) -> Outcome:
    console = terminal.stderr() if json else terminal.tables()
    live = console.is_terminal and not json

    def on_milestone(milestone: Milestone) -> None:
        if not live:
            console.print(milestone_line(milestone), style="red" if milestone.is_trouble else None)

    show = Show(plan, on_milestone)
    this = asyncio.current_task()
    assert this is not None
    for signum in (signal.SIGTERM, signal.SIGHUP):  # the terminal may be closed on a show
        asyncio.get_running_loop().add_signal_handler(signum, this.cancel)
    kept = True
    try:
        outcome = await (_shown_live if live else _shown_plainly)(show, console)
        kept = keep or bool(faults(outcome))
        for example in show.ledger.examples():
            terminal.stderr().print(example, style="red")
        return outcome
    except DefenderError as error:
        if show.stage.folder.name:
            error.add_note(f"logs: {show.stage.folder}")
        raise
    except asyncio.CancelledError:
        kept = keep
        raise
    finally:
        _tidy(show, kept, keep)


def _tidy(show: Show, kept: bool, keep: bool) -> None:
    """The store goes unless it was asked for; the logs stay also when something was wrong."""
    if not show.stage.folder.name:
        return
    if not keep:
        show.stage.remove(logs=not kept)
    if kept:
        terminal.stderr().print(f"kept: {show.stage.folder}")


async def _shown_live(show: Show, console: Console) -> Outcome:
    """The whole terminal while it lasts; what was there before comes back."""
    showing = asyncio.create_task(show.run())
    try:
        with Live(LiveView(show), console=console, auto_refresh=False, screen=True) as live:
            while not showing.done():
                live.refresh()
                await asyncio.wait([showing], timeout=REFRESH_S)
        for milestone in show.milestones:
            console.print(milestone_line(milestone), style="red" if milestone.is_trouble else "dim")
        return showing.result()
    finally:
        await _ended(showing)


async def _shown_plainly(show: Show, console: Console) -> Outcome:
    showing = asyncio.create_task(show.run())
    try:
        told_s = time.monotonic()
        while not showing.done():
            await asyncio.wait([showing], timeout=REFRESH_S)
            if show.begun_ns and time.monotonic() - told_s >= PROGRESS_S and not showing.done():
                told_s = time.monotonic()
                console.print(progress_line(show))
        return showing.result()
    finally:
        await _ended(showing)


async def _ended(showing: asyncio.Task[Outcome]) -> None:
    """Waits until a show that is cut short has stopped its processes."""
    showing.cancel()
    with contextlib.suppress(asyncio.CancelledError, DefenderError):
        await showing
