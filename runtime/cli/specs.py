"""``defender specs``: how charts are judged - apply, show, check, adopt, advise."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import msgspec
import typer

from runtime import specs as model
from runtime import wire
from runtime.bucket import Bucket, Conflict, Entry
from runtime.cli import advise, reading, terminal
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.specs import BUILT_IN, Baseline, ChartSpec, Limits, Specs, Start
from runtime.specs_adopt import Frozen
from runtime.specs_adopt import adopt as with_given
from runtime.specs_methods import RuleSet
from runtime.specs_text import parse, to_yaml

ENTRIES_SHOWN: Final = 20
"""Of a document that is tried out: one with adopted charts has an entry for each of them."""

app = typer.Typer(help="How charts are judged: apply, show, check, adopt, advise.", no_args_is_help=True)
app.command()(advise.advise)

File = Annotated[str, typer.Argument(help="Specs as YAML or JSON; - reads standard input.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be stored, store nothing.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


class ChartSeen(msgspec.Struct, frozen=True):
    """A chart as its chamber's last verdict has it."""

    chamber: str
    chart: str
    phase: int
    centre: float | None
    basis: int
    sigma_z: float | None = None


@dataclass(frozen=True)
class Stored:
    """The document in force and its revision; 0 is the built-in default."""

    specs: Specs
    revision: int


@app.command()
def apply(file: File, dry_run: DryRun = False) -> None:
    """Check a document and put it into force. Running defenders take it over without a restart."""
    settings = terminal.settings()
    specs = parse(_text(file), settings.window)
    terminal.run(_store(settings, lambda stored, seen: specs, dry_run))


@app.command()
def adopt(
    chamber: Annotated[str, typer.Option(help="Only chambers that match this glob.")] = "",
    chart: Annotated[str, typer.Option(help="Only charts that match this glob.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Turn the frozen centre lines of phase II into given ones, which outlive an absence and a reset."""

    def adopted(stored: Specs, seen: list[ChartSeen]) -> Specs:
        chosen = [c for c in seen if terminal.fits(c.chamber, chamber) and terminal.fits(c.chart, chart)]
        frozen = frozen_centres(stored, chosen)
        terminal.stderr().print(f"{len(frozen)} of {len(chosen)} charts have a frozen centre line")
        return with_given(stored, frozen)

    terminal.run(_store(terminal.settings(), adopted, dry_run))


@app.command()
def show(
    revision: Annotated[int | None, typer.Option(help="This revision instead of the one in force.")] = None,
    history: Annotated[bool, typer.Option("--history", help="The revisions that are kept.")] = False,
    json: Json = False,
) -> None:
    """Show the specs in force, as YAML that can be applied again."""
    settings = terminal.settings()
    if history:
        rows = terminal.run(_history(settings))
        if json:
            terminal.print_json(rows)
        for row in rows if not json else ():
            terminal.stdout().print(f"{row['revision']:>8}  {row['at']}  {row['entries']} entries")
        return
    stored = terminal.run(_shown(settings, revision))
    if json:
        specs = msgspec.structs.replace(stored.specs, designs=())
        terminal.print_json({"revision": stored.revision, "specs": specs})
        return
    print(to_yaml(stored.specs), end="")
    origin = (
        f"revision {stored.revision}" if stored.revision else "the built-in default: nothing was applied yet"
    )
    terminal.stderr().print(f"# {origin}", style="dim")


@app.command()
def check(
    file: File,
    chamber: Annotated[
        str, typer.Option(help="With --chart: which entry this one chart matches, and why.")
    ] = "",
    chart: Annotated[str, typer.Option(help="With --chamber: the chart's name.")] = "",
) -> None:
    """Check a document and try it out on the charts seen so far; nothing is stored."""
    settings = terminal.settings()
    specs = parse(_text(file), settings.window)
    out = terminal.stdout()
    if bool(chamber) != bool(chart):
        raise InputError("--chamber and --chart name one chart together: give both, or none")
    if chamber:
        for step in specs.explain(chamber, chart):
            out.print(f"{'*' if step.matched else ' '} {step.label}: {step.why}")
        out.print(described(specs[specs.match(chamber, chart)[0]]))
        return
    model.designed(specs)
    out.print(f"the document is sound: {len(specs.charts)} entries and the default")
    seen = terminal.run(_seen_now(settings))
    for line in trial(specs, seen):
        out.print(line)


def frozen_centres(specs: Specs, seen: Iterable[ChartSeen]) -> list[Frozen]:
    """The baselines of the charts in phase II whose spec, and whose stage, is a frozen one.

    Without those with Laney's limits whose sigma_z no verdict says, or says to be 0.
    """
    return [
        Frozen(chart.chamber, chart.chart, chart.centre, chart.sigma_z if is_laney else None)
        for chart in seen
        if chart.phase == 2 and chart.centre
        for spec in [specs.match(chart.chamber, chart.chart)[1]]
        for is_laney in [spec.limits is Limits.LANEY]
        if spec.baseline is Baseline.FROZEN and model.basis(spec) == chart.basis
        if chart.sigma_z or not is_laney
    ]


def described(spec: ChartSpec) -> str:
    """A spec in one line."""
    baseline = {
        Baseline.GIVEN: f"given centre {spec.centre}",
        Baseline.FROZEN: f"frozen after {spec.phase_one} usable subgroups, trial limits from {spec.minimum}",
        Baseline.MOVING: f"moving, limits from {spec.minimum} usable subgroups",
    }[spec.baseline]
    limits = {
        Limits.THREE_SIGMA: f"{spec.k:g} sigma",
        Limits.LANEY: f"laney, {spec.k:g} sigma",
        Limits.EXACT: f"exact, alpha {spec.alpha:g}",
        Limits.AUTO: f"exact, alpha {spec.alpha:g}, below an expected count of 10, else {spec.k:g} sigma",
    }[spec.limits]
    counts = f" with counts {_pairs(spec.counts)}" if spec.counts else ""
    rules = spec.rules if isinstance(spec.rules, RuleSet) else ", ".join(map(str, spec.rules)) or "none"
    parts = [baseline, limits, f"rules {rules}{counts}"]
    if spec.start is Start.PREDICT:
        parts.insert(1, "prediction limits until then")
    if spec.cusum is not None:
        parts.append(f"CUSUM for a ratio of {spec.cusum.ratio:g}, ARL0 {spec.cusum.arl0:g}")
    if spec.ewma is not None:
        parts.append(f"EWMA with weight {spec.ewma.weight:g}, ARL0 {spec.ewma.arl0:g}")
    if not spec.alarm.is_episodic:
        parts.append("an alarm for each signal")
    if spec.alarm.fdr is not None:
        parts.append(f"alarms at a false discovery rate of {spec.alarm.fdr:g}")
    return "; ".join(parts)


def _pairs(counts: dict[int, int]) -> str:
    return ", ".join(f"{rule}: {points}" for rule, points in sorted(counts.items()))


def trial(specs: Specs, seen: list[ChartSeen]) -> list[str]:
    """What the document means for the charts that there are: how many each entry gets, who starts anew."""
    matches = [specs.match(chart.chamber, chart.chart)[0] for chart in seen]
    counts = Counter(matches)
    entries = len(specs.charts)
    lines = [
        f"{counts[index]:>6} charts  {specs.label(index)}: {described(specs[index])}"
        for index in (*range(min(entries, ENTRIES_SHOWN)), entries)
    ]
    if entries > ENTRIES_SHOWN:
        rest = sum(counts[index] for index in range(ENTRIES_SHOWN, entries))
        lines.insert(-1, f"{rest:>6} charts  in {entries - ENTRIES_SHOWN} more entries")
    anew = sum(model.basis(specs[index]) != chart.basis for index, chart in zip(matches, seen, strict=True))
    return [*lines, f"{anew:>6} of {len(seen)} charts seen would start a new stage"]


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8: {error.reason}") from error


def _bucket(connection: Connection, settings: Settings) -> Bucket:
    return Bucket(
        connection, settings.nats_kv_chart_specs, random=Random(), timeout_s=settings.request_timeout_s
    )


def _decoded(entry: Entry | None) -> Stored:
    if entry is None or entry.value is None:
        return Stored(BUILT_IN, 0)
    return Stored(model.decode(entry.value), entry.revision)


async def _store(settings: Settings, update: Any, dry_run: bool) -> None:
    """Stores ``update(specs in force, charts seen)`` and says what that means."""
    console = terminal.stderr()
    async with terminal.session(settings) as connection:
        await terminal.prepared(connection, settings, _stream(settings))
        bucket = _bucket(connection, settings)
        entry = await bucket.get(model.KEY)
        stored = _decoded(entry)
        seen = await _seen(connection, settings)
        specs = model.designed(update(stored.specs, seen), stored.specs.designs)
        payload = model.encode(specs)
        if specs == stored.specs:
            in_force = f"revision {stored.revision}" if stored.revision else "the built-in default"
            console.print(f"nothing changes: {in_force} is the same document")
            return
        for line in trial(specs, seen):
            console.print(line)
        if dry_run:
            print(to_yaml(specs), end="")
            return
        try:
            revision = await bucket.update(model.KEY, payload, entry.revision if entry else 0)
        except Conflict as error:
            raise InputError(
                "somebody else applied specs just now: look at them, then apply again"
            ) from error
        terminal.stdout().print(f"applied: revision {revision}")


async def _shown(settings: Settings, revision: int | None) -> Stored:
    async with terminal.session(settings) as connection:
        if not await terminal.exists(connection, settings, _stream(settings)):
            stored = Stored(BUILT_IN, 0)
        elif revision is None:
            stored = _decoded(await _bucket(connection, settings).get(model.KEY))
        else:
            kept = {row.seq: row for row in await _revisions(connection, settings)}
            stored = (
                Stored(model.decode(kept[revision].payload), revision)
                if revision in kept
                else Stored(BUILT_IN, 0)
            )
    if revision is not None and stored.revision != revision:
        raise InputError(f"revision {revision} is not kept: see defender specs show --history")
    return stored


async def _history(settings: Settings) -> list[dict[str, Any]]:
    async with terminal.session(settings) as connection:
        if not await terminal.exists(connection, settings, _stream(settings)):
            return []
        return [
            {
                "revision": row.seq,
                "at": wire.to_datetime(row.at_ns).isoformat(timespec="seconds"),
                "entries": len(model.decode(row.payload).charts),
            }
            for row in await _revisions(connection, settings)
        ]


async def _revisions(connection: Connection, settings: Settings) -> list[reading.Record]:
    subject = f"$KV.{settings.nats_kv_chart_specs}.{model.KEY}"
    rows = [row async for row in reading.read(connection, _stream(settings), subject, reading.Start())]
    return [row for row in rows if row.payload]  # a deletion has none


def _stream(settings: Settings) -> str:
    return f"KV_{settings.nats_kv_chart_specs}"


async def _seen_now(settings: Settings) -> list[ChartSeen]:
    async with terminal.session(settings) as connection:
        return await _seen(connection, settings)


async def _seen(connection: Connection, settings: Settings) -> list[ChartSeen]:
    """Every chart of every chamber's last verdict that is not a reset."""
    names = settings.names
    streams = [names.verdicts_stream(names.partitions_of_shard(shard)[0]) for shard in range(names.shards)]
    seen: list[ChartSeen] = []
    async for record in reading.last_of_each(connection, streams, f"{names.root}.verdict.*.*"):
        verdict = wire.decode_verdict(record.payload)
        sigma_z = verdict.sigma_z or [None] * len(verdict.charts)
        if verdict.reset is None:
            seen += [
                ChartSeen(
                    verdict.chamber, chart, verdict.phase[i], verdict.centre[i], verdict.basis[i], sigma_z[i]
                )
                for i, chart in enumerate(verdict.charts)
            ]
    return seen
