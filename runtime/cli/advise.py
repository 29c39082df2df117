"""``defender specs advise``: limits by chart, from what the stored verdicts say of each."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from runtime import specs as model
from runtime import wire
from runtime.bucket import Bucket
from runtime.cli import reading, terminal
from runtime.cli.reading import Start
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.jetstream import NotFound
from runtime.names import name_problem
from runtime.specs import ChartSpec, Specs
from runtime.specs_advice import Advice, History, advice, entry
from runtime.specs_text import to_yaml
from runtime.wire import Verdict

_GLOB_CHARACTERS = frozenset("*?[")


def advise(
    chamber: Annotated[str, typer.Option(help="Only chambers that match this glob.")] = "",
    chart: Annotated[str, typer.Option(help="Only charts that match this glob.")] = "",
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    yaml: Annotated[bool, typer.Option("--yaml", help="As entries for the specs document.")] = False,
) -> None:
    """Advise limits for each chart: by its expected count, and by how its history scatters.

    Reads all stored verdicts of the chambers that match; nothing is changed.
    """
    if json and yaml:
        raise InputError("--json and --yaml exclude each other: give one of them")
    specs, advices = terminal.run(_advices(terminal.settings(), chamber, chart))
    console = terminal.stderr()
    changes = [one for one in advices if one.is_change]
    if json:
        terminal.print_json(advices)
    elif yaml:
        if changes:
            print(to_yaml(Specs(charts=entries(specs, changes))), end="")
            console.print("# put these entries before all that match the same charts", style="dim")
    elif advices:
        terminal.tables().print(_table(advices))
    untold = sum(one.advised is None for one in advices)
    if not advices:
        console.print("no verdicts of such charts are stored yet")
    elif not json:
        known = len(advices) - untold
        console.print(
            f"# other limits advised for {len(changes)} of {known} charts; too few samples: {untold}"
        )


def entries(specs: Specs, changes: Iterable[Advice]) -> tuple[ChartSpec, ...]:
    """An entry for each chart of *changes*, made of the one that matches it now."""
    return tuple(entry(specs.match(one.chamber, one.chart)[1], one) for one in changes)


def _table(advices: Iterable[Advice]) -> Table:
    table = terminal.table(
        ("chamber", False),
        ("chart", False),
        ("samples", True),
        ("expected count", True),
        ("sigma_z", True),
        ("limits", False),
        ("advised", False),
        ("because", False),
    )
    for one in advices:
        table.add_row(
            one.chamber,
            one.chart,
            str(one.samples),
            "-" if one.expected_count is None else f"{one.expected_count:.3g}",
            "-" if one.sigma_z is None else f"{one.sigma_z:.2f}",
            one.limits,
            "-" if one.advised is None else one.advised,
            one.reason,
            style="bold" if one.is_change else "",
        )
    return table


async def _advices(settings: Settings, chamber: str, chart: str) -> tuple[Specs, list[Advice]]:
    """The specs in force, and an advice for each chart that matches, by chamber and chart."""
    from kernels.dispersion import mark  # numba: only where it is needed

    async with terminal.session(settings) as connection:
        specs = await _in_force(connection, settings)
        histories = await _histories(connection, settings, chamber, chart)
    return specs, [
        advice(*key, history, specs.match(*key)[1], mark) for key, history in sorted(histories.items())
    ]


async def _in_force(connection: Connection, settings: Settings) -> Specs:
    bucket_name = settings.nats_kv_chart_specs
    if not await terminal.exists(connection, settings, f"KV_{bucket_name}"):
        return model.BUILT_IN
    bucket = Bucket(connection, bucket_name, random=Random(), timeout_s=settings.request_timeout_s)
    stored = await bucket.get(model.KEY)
    return model.BUILT_IN if stored is None or stored.value is None else model.decode(stored.value)


async def _histories(
    connection: Connection, settings: Settings, chamber: str, chart: str
) -> dict[tuple[str, str], History]:
    """The samples of every chart that matches, by (chamber, chart)."""
    names = settings.names
    is_name = name_problem(chamber) is None and not _GLOB_CHARACTERS & set(chamber)
    subject = f"{names.root}.verdict.*.{chamber if is_name else '*'}"
    histories: dict[tuple[str, str], History] = {}
    unreadable = 0
    for shard in range(names.shards):
        stream = names.verdicts_stream(names.partitions_of_shard(shard)[0])
        try:
            async for record in reading.read(connection, stream, subject, Start()):
                if not terminal.fits(record.chamber, chamber):
                    continue
                try:
                    verdict = wire.decode_verdict(record.payload)
                except msgspec.MsgspecError:
                    unreadable += 1
                    continue
                if verdict.reset is None:
                    _add(histories, verdict, chart)
        except NotFound:
            continue
    if unreadable:
        terminal.stderr().print(f"{unreadable} verdicts of another version cannot be read", style="yellow")
    return histories


def _add(histories: dict[tuple[str, str], History], verdict: Verdict, glob: str) -> None:
    """The samples of one verdict to those of their charts."""
    for i, chart in enumerate(verdict.charts):
        if terminal.fits(chart, glob):
            history = histories.setdefault((verdict.chamber, chart), History())
            history.add(verdict.stage[i], verdict.counts[i], verdict.units[i], verdict.flags[i])
