"""The typer application: which commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

import runtime
from runtime.cli import (
    basics,
    chart,
    cutover,
    demo,
    follow,
    history,
    init,
    lab,
    load,
    operate,
    permissions,
    publish,
    ring,
    specs,
    status,
    where,
)

app = typer.Typer(
    name="defender",
    help="Judges the process chambers of a fab by u-charts. Settings: the environment, see defender config.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(basics.run)
app.command()(demo.demo)
app.command()(publish.publish)
app.command()(load.load)
app.command()(follow.verdicts)
app.command()(follow.alarms)
app.command()(follow.rejected)
app.command()(chart.chart)
app.command()(status.status)
app.command()(ring.ring)
app.command()(where.where)
app.command()(operate.drain)
app.command()(operate.forget)
app.command()(operate.freeze)
app.command()(operate.unfreeze)
app.command()(cutover.cutover)
app.command()(cutover.track)
app.add_typer(specs.app, name="specs")
app.add_typer(history.app, name="history")
app.add_typer(lab.app, name="lab")
app.command()(init.init)
app.command()(permissions.permissions)
app.command()(basics.config)
app.command()(basics.schema)
app.command()(basics.warm)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"defender {runtime.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def execute(argv: list[str]) -> int:
    """Runs one command and returns its exit code; DefenderErrors pass through."""
    try:
        app(argv, prog_name="defender")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    return 0
