"""One run: a stage, a fleet on it, the load, the scenario's steps, and then what it all cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bench.lab import budget, figures
from bench.lab.audit import Audited, audit
from bench.lab.errors import LabError, NotInTime
from bench.lab.load import SPECS
from bench.lab.result import Result
from bench.lab.scenario import Scenario
from bench.lab.stage import READY_S_MAX, Stage, staged
from bench.lab.steps import DOES
from bench.lab.table import Now
from runtime.config import Identity
from runtime.errors import DefenderError

SETTLED_S_MAX: Final = 60.0
"""For the fleet to judge what waits when the load has ended."""
NOW_S: Final = 0.5
OnNow = Callable[[Now], None]


async def run(
    scenario: Scenario,
    *,
    identity: Identity,
    out: Path,
    broken: str = "",
    keep: bool = False,
    is_cold: bool = False,
    settled_s_max: float = SETTLED_S_MAX,
    promises: budget.Budget | None = None,
    on_now: OnNow | None = None,
) -> Result:
    """Plays *scenario* with a fleet of that identity, and holds it against *promises* (by default the lab's
    own budget); what is written on the way is in *out*.

    A run that breaks off (an error, a cancellation) gives the result of what was seen until then; the error
    is in its notes, and is raised only when nothing was seen. Unless *keep*, the server's store is removed.
    With *is_cold* each pod is a new interpreter, and not forked from a warm image. What is not judged
    *settled_s_max* after the load's end is lost.
    """
    out.mkdir(parents=True, exist_ok=True)
    scenario = _suited(scenario, identity)
    stage: Stage | None = None
    try:
        async with staged(scenario, identity, out, broken, is_cold=is_cold) as stage:
            playing = _Run(stage, on_now, settled_s_max)
            telling = asyncio.create_task(playing.tell())
            try:
                seen = await playing.play()
            finally:
                telling.cancel()
    finally:
        if stage is not None and not keep:
            stage.forget_store()
    return msgspec.structs.replace(seen, promises=budget.held(seen, promises or budget.load()))


def _suited(scenario: Scenario, identity: Identity) -> Scenario:
    """`migrate` begins with a StatefulSet, whatever the identity asked for."""
    if any(step.do == "migrate" for step in scenario.steps) and identity is not Identity.ORDINAL:
        raise LabError(
            "migrate goes from a StatefulSet to a Deployment and back: run it with --identity ordinal"
        )
    return scenario


class _Run:
    def __init__(self, stage: Stage, on_now: OnNow | None, settled_s_max: float) -> None:
        self.stage, self.on_now, self.settled_s_max = stage, on_now, settled_s_max
        self.begun_ns = time.time_ns()
        self.load_begun_ns = self.load_ended_ns = 0
        self.rate_sustained = 0.0
        self.step = "the fleet starts"

    async def play(self) -> Result:
        """The whole run."""
        stage, broke = self.stage, ""
        try:
            async with stage.mark("the fleet starts"):
                await stage.main.start(READY_S_MAX)
                await stage.steady(stage.scenario.fleet.defenders)
            await self._loaded()
        except (DefenderError, asyncio.CancelledError) as error:
            if not self.load_begun_ns:
                raise
            broke = str(error) or "it was told to end"
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        return await self._told(broke)

    async def _loaded(self) -> None:
        stage = self.stage
        self.load_begun_ns = time.time_ns()
        await stage.producers.begin()
        self.step = "load begins"
        await asyncio.sleep(stage.scenario.settle_s)
        for step in stage.scenario.steps:
            self.step = step.do
            self.rate_sustained = await DOES[step.do](stage, step) or self.rate_sustained
        self.step = "load ends"
        await asyncio.sleep(stage.scenario.settle_s)

    async def _told(self, broke: str) -> Result:
        stage = self.stage
        self.step = "what waits is judged"
        try:
            produced = await stage.producers.finish(self.settled_s_max)
        except LabError as error:  # a server without room, above all; what was seen is worth telling
            broke, produced = broke or str(error), stage.producers.seen
        self.load_ended_ns = time.time_ns()
        if broke:
            stage.notes.append(f"the run broke off: {broke}")
        try:
            waits = await stage.following.finish(self.settled_s_max, until_settled=not broke)
        except NotInTime as error:
            stage.notes.append(str(error))
            waits = await stage.following.finish(0.0, until_settled=False)
        self.step = "all is judged again by one process"
        audited: Audited = await audit(stage.settings, {stage.specs_revision: SPECS})
        self.step = "done"
        return figures.result_of(
            stage,
            figures.Ended(
                begun_ns=self.begun_ns,
                load_begun_ns=self.load_begun_ns,
                load_ended_ns=self.load_ended_ns,
                rate_sustained=self.rate_sustained,
                is_whole=not broke,
            ),
            produced=produced,
            waits=waits,
            audited=audited,
        )

    async def tell(self) -> None:
        """Calls *on_now* from time to time."""
        while self.on_now is not None:
            self.on_now(self._now())
            await asyncio.sleep(NOW_S)

    def _now(self) -> Now:
        stage = self.stage
        followed = stage.following.progress()
        running, ready = stage.counts()
        begun_ns = self.load_begun_ns or self.begun_ns
        ring = stage.observer.ring
        marks = [mark.what for mark in stage.marks if not mark.ended_ns]
        return Now(
            elapsed_s=(time.time_ns() - begun_ns) / 1e9,
            step=marks[-1] if marks else self.step,
            reports=followed.reports,
            verdicts=followed.verdicts,
            waiting=followed.waiting,
            latency_ms_p99=followed.latency_ms_p99,
            pods=running,
            ready=ready,
            members=len(ring.members) if ring else 0,
            cores=stage.usage.cores,
        )
