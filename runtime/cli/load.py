"""``defender load``: reports at a rate, as a fab would send them, into the cluster that the settings name."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from runtime.cli import terminal
from runtime.config import Settings
from runtime.errors import InputError

if TYPE_CHECKING:
    from bench.lab.load import Produced, Producers
    from bench.lab.scenario import LoadOf

TELL_S: Final = 1.0
FINISH_S_MAX: Final = 30.0
"""For what was published to be stored, after the load's end or Ctrl-C."""
LATE_MS_TOLD: Final = 250.0
"""Beyond it the producers were the limit, not the cluster, and the summary says so."""
INTERRUPTED: Final = 130


class Encoding(StrEnum):
    """How reports are written; mixed: by chamber, the one or the other."""

    MSGPACK = "msgpack"
    JSON = "json"
    MIXED = "mixed"


def load(
    rate: Annotated[float, typer.Option(min=0.0, help="Reports a second, of all producers together.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long; 0: until Ctrl-C.")] = 0,
    chambers: Annotated[int, typer.Option(min=1, help="Chambers that report.")] = 256,
    samples: Annotated[int, typer.Option(min=1, help="Charts a report.")] = 10,
    encoding: Annotated[Encoding, typer.Option(help="Of the reports.")] = Encoding.MIXED,
    skew: Annotated[
        float, typer.Option(min=0.0, help="s: the k-th chamber's rate goes with k^-s; 0: all alike.")
    ] = 0,
    burst: Annotated[int, typer.Option(min=1, help="Reports that come at one time.")] = 1,
    excursion_every: Annotated[
        int, typer.Option(min=0, help="One report in so many has a chart far beyond its limits; 0: none.")
    ] = 200,
    producers: Annotated[int, typer.Option(min=1, help="Processes that publish.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other reports.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Publish simulated reports at a steady rate, whatever the cluster makes of it.

    Each report carries the time at which it was due, so that a stall shows as latency of its verdict. What is
    not acknowledged is sent again until it is stored. The chambers are LAB-00000, LAB-00001, …; for a test
    cluster, or a SUBJECT_ROOT of its own.
    """
    try:
        from bench.lab.load_reports import checked
        from bench.lab.scenario import LoadOf
    except ImportError as error:
        raise InputError(f"the lab cannot be imported ({error}): install the package as a whole") from error
    wanted = checked(
        LoadOf(
            reports_per_s=rate,
            chambers=chambers,
            samples=samples,
            encoding=encoding.value,
            producers=producers,
            skew=skew,
            burst=burst,
            excursion_every=excursion_every,
            seed=seed,
        )
    )
    produced, was_interrupted = terminal.run(_load(terminal.settings(), wanted, seconds))
    if json:
        terminal.print_json(
            {"reports_per_s": rate, "interrupted": was_interrupted, **msgspec.to_builtins(produced)}
        )
    else:
        for line in _summary(produced):
            terminal.stdout().print(line)
    if was_interrupted:
        raise typer.Exit(INTERRUPTED)


def _summary(produced: Produced) -> list[str]:
    per_s = produced.stored / produced.seconds if produced.seconds else 0.0
    lines = [
        f"{produced.stored:,} of {produced.due:,} reports stored in {produced.seconds:.1f} s, {per_s:,.0f} a "
        f"second; {produced.again:,} sent again, {produced.refused:,} refusals"
    ]
    if produced.due > produced.published:
        left = produced.due - produced.published
        lines.append(f"{left:,} fell due and were never sent: the server took no more by then")
    if produced.late_ms_max > LATE_MS_TOLD:
        lines.append(
            f"the producers fell {produced.late_ms_max:,.0f} ms behind by themselves: "
            "this machine was the limit, give --producers or less --rate"
        )
    return lines


async def _load(settings: Settings, wanted: LoadOf, seconds: float) -> tuple[Produced, bool]:
    """What became of the reports, and whether somebody ended it early."""
    from bench.lab.load import Producers

    await _check(settings)
    stop, loop, this = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None

    def interrupt() -> None:
        """Once: end in order. Twice: at once."""
        this.cancel() if stop.is_set() else stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, interrupt)
    try:
        async with Producers(settings, wanted) as running:
            await _told(running, wanted, seconds, stop)
            return await running.finish(FINISH_S_MAX), stop.is_set()
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)


async def _check(settings: Settings) -> None:
    """Raises what a person can put right before any load: no server, no streams."""
    names = settings.names
    async with terminal.session(settings) as connection:
        for shard in range(names.shards):
            stream = names.samples_stream(names.partitions_of_shard(shard)[0])
            if not await terminal.exists(connection, settings, stream):
                raise InputError(
                    f"the stream {stream} does not exist: run defender init, "
                    "or correct NATS_SERVERS, STREAM_SAMPLES or PARTITIONS"
                )


async def _told(running: Producers, wanted: LoadOf, seconds: float, stop: asyncio.Event) -> None:
    """One line a second until the load's time is over; on a terminal it is always the same line."""
    console = terminal.stderr()
    begun_s, before = time.monotonic(), running.progress()
    shown: Any = console.status("load") if console.is_terminal else nullcontext()
    with shown as status:
        while not stop.is_set():
            left_s = begun_s + seconds - time.monotonic() if seconds else math.inf
            try:
                async with asyncio.timeout(max(0.0, min(TELL_S, left_s))):
                    await stop.wait()
            except TimeoutError:
                if left_s < TELL_S:
                    return
                now = running.progress()
                line = _line(wanted.reports_per_s, before, now, running.problem)
                before = now
                console.print(line) if status is None else status.update(line)


def _line(reports_per_s: float, before: Produced, now: Produced, problem: str) -> str:
    took_s = now.seconds - before.seconds
    per_s = (now.stored - before.stored) / took_s if took_s > 0 else 0.0
    line = (
        f"{now.seconds:5.0f} s: {reports_per_s:,.0f} reports/s wanted, {per_s:,.0f} stored, "
        f"{now.due - now.stored:,} behind"
    )
    return f"{line}; refused: {terminal.clean(problem)}" if problem and now.refused > before.refused else line
