"""The show: what happens when.

    STARTING ──► PUBLISHING ── all sent ──► SETTLING ── all accounted for ──► LEAVING ──► OVER
                 half-way: kill -9 of a worker            or SETTLE_S_MAX       SIGTERM

A view looks at the attributes of `Show` whenever it likes; `milestones` grow as things happen.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from runtime.demo.checks import BookCheck
from runtime.demo.ledger import Ledger
from runtime.demo.observer import Observer
from runtime.demo.outcome import Outcome
from runtime.demo.plan import Finished, Plan, Prepared, Refused, Stored
from runtime.demo.processes import ShowBroken, Stage
from runtime.fab import published_set

START_S_MAX: Final = 60.0
"""Without a warm kernel cache the workers compile first, some 20 s."""
SETTLE_S_MAX: Final = 20.0
CATCH_UP_S_MAX: Final = 5.0
SCRAPE_EVERY_S: Final = 1.0
_POLL_S: Final = 0.01


class Phase(StrEnum):
    STARTING = "starting"
    PUBLISHING = "publishing"
    SETTLING = "settling"
    LEAVING = "leaving"
    OVER = "over"


class Milestone(NamedTuple):
    """Something worth telling; *at_s* from the first report, None before it."""

    at_s: float | None
    text: str
    is_trouble: bool = False


class Scrape(NamedTuple):
    """What the defender says of itself on /metrics."""

    partitions: int = 0
    lag: int = 0
    hits: int = 0
    misses: int = 0

    @property
    def hit_rate(self) -> float:
        looked_up = self.hits + self.misses
        return self.hits / looked_up if looked_up else 0.0


class Show:
    """One show. `run` once; *on_milestone* is called with each as it happens."""

    def __init__(self, plan: Plan, on_milestone: Callable[[Milestone], None] = lambda _: None) -> None:
        self.plan = plan
        self.phase = Phase.STARTING
        self.ledger = Ledger()
        self.book = BookCheck(published_set())
        self.stage = Stage(plan, self._on_event)
        self.observer: Observer | None = None
        self.milestones: list[Milestone] = []
        self.scrape = Scrape()
        self.begun_ns = 0
        self._on_milestone = on_milestone
        self._prepared = asyncio.Event()
        self._finished: Finished | None = None
        self._unacknowledged = 0
        self._specs_sent = 0
        self._told: set[str] = set()
        self._ready_s = 0.0
        self._left = (-1, 0.0)

    @property
    def elapsed_s(self) -> float:
        """Since the first report; 0 before it."""
        return (time.monotonic_ns() - self.begun_ns) / 1e9 if self.begun_ns else 0.0

    async def run(self) -> Outcome:
        """Raises DefenderError when the show cannot go on. The stage is closed, its folder stays."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.stage.open()
            self.observer = Observer(self.stage.connection, self.stage.settings.names, self.ledger, self.book)
            await self.observer.begin()
            await self.stage.start_publisher()
            await self._warm()
            await self.stage.start_defender()
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
                tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._keep_watching(http))]
                await self._play(tasks)
                await self._scrape(http)
                tasks.pop().cancel()
                await self._leave(tasks)
            return self._outcome()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stage.close()

    async def _play(self, tasks: list[asyncio.Task[None]]) -> None:
        """From the defender's start until everything published is accounted for."""
        begun_s = time.monotonic()
        await self._until(self._is_ready, START_S_MAX, "the defender was not ready", tasks)
        self._ready_s = time.monotonic() - begun_s
        self._tell(f"the defender is ready, {self._ready_s:.1f} s after its start")
        await self._until(self._prepared.is_set, START_S_MAX, "the publisher was not ready", tasks)
        self.begun_ns, self.phase = time.monotonic_ns(), Phase.PUBLISHING
        self.stage.publish()
        half_s = self.plan.seconds / 2
        await self._until(lambda: self.elapsed_s >= half_s, 2 * half_s + START_S_MAX, "", tasks)
        self._kill()
        late_s = self.plan.seconds + START_S_MAX
        await self._until(lambda: self._finished is not None, late_s, "the publisher did not end", tasks)
        self.phase = Phase.SETTLING
        left, deadline_s = self.ledger.unsettled, time.monotonic() + SETTLE_S_MAX
        if left > self.plan.rate:
            text = f"{left:,} reports wait: more come at this rate than this machine judges"
            self._tell(text, is_trouble=True)
        while left and time.monotonic() < deadline_s:
            self._check(tasks)
            await asyncio.sleep(_POLL_S)
            if self.ledger.unsettled < left:
                left, deadline_s = self.ledger.unsettled, time.monotonic() + SETTLE_S_MAX
        if self.ledger.unsettled:
            left = self.ledger.unsettled
            text = f"{left} reports not accounted for {SETTLE_S_MAX:g} s after the last verdict"
            self._tell(text, is_trouble=True)
        else:
            self._tell(f"all {self.ledger.reports:,} reports are accounted for")

    async def _warm(self) -> None:
        self._tell("looking for the compiled kernels")
        compiled, complaint = await self.stage.warm()
        if compiled:
            self._tell(f"{compiled} kernels were compiled; the next start finds them")
        if complaint:
            self._tell(f"the kernels cannot be cached: {complaint}", is_trouble=True)

    def _kill(self) -> None:
        """The worker is chosen by the seed, so that a show can be repeated."""
        assert self.observer is not None
        index = self.plan.seed % self.plan.workers
        self.observer.outage.kill(time.monotonic_ns())
        pid = self.stage.kill_worker(index)
        self._tell(f"kill -9 of worker {index} (pid {pid})")

    async def _leave(self, tasks: list[asyncio.Task[None]]) -> None:
        """SIGTERM; what comes out until the defender is gone is counted too."""
        assert self.observer is not None
        self.phase = Phase.LEAVING
        self._left = await self.stage.stop_defender()
        self._tell(f"SIGTERM: the defender drained and left in {self._left[1]:.2f} s")
        await self._until(self.observer.caught_up, CATCH_UP_S_MAX, "the streams were not read", tasks)
        self._notice()
        self.phase = Phase.OVER

    # --- watching -------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """Books what the publisher says."""
        async for word in self.stage.words():
            match word:
                case Stored():
                    self.ledger.stored(word)
                case Refused():
                    self._unacknowledged += 1
                    text = f"{word.chamber} {word.run} was not acknowledged: {word.cause}"
                    self._tell(text, once="refused", is_trouble=True)
                case Prepared():
                    self._prepared.set()
                case Finished():
                    self._finished = word
                    self._tell(f"all {word.sent:,} reports are published, in {word.seconds:.1f} s")

    async def _keep_watching(self, http: aiohttp.ClientSession) -> None:
        scraped_s = 0.0
        while True:
            self._notice()
            if self.stage.http_port and time.monotonic() - scraped_s > SCRAPE_EVERY_S / (
                1 if self.begun_ns else 20
            ):
                scraped_s = time.monotonic()
                await self._scrape(http)
            await asyncio.sleep(5 * _POLL_S)

    def _notice(self) -> None:
        """Tells what the subscriber sees for the first time."""
        observer = self.observer
        if observer is None:
            return
        if observer.last_reset is not None:
            text = f"maintenance of {observer.last_reset.chamber}: its charts begin a new stage"
            self._tell(text, once="reset")
        recovery_ms = observer.outage.recovery_ms
        if recovery_ms is not None:
            self._tell(
                f"next verdict of its partitions {recovery_ms:.0f} ms after the kill", once="recovered"
            )
        for alarm in () if "found" in self._told else observer.alarms:
            planted = [
                chart.chart for chart in alarm.charts if self.ledger.is_planted(alarm.seq, chart.chart)
            ]
            if planted:
                self._tell(f"first planted excursion found: {alarm.chamber} {planted[0]}", once="found")
                break
        if self.book.complete:
            book = "the book's limits" if self.book.agrees else "NOT the book's limits"
            text = f"data set {self.book.book.name}: {book}, within {self.book.deviation:.0e}"
            self._tell(text, once="book", is_trouble=not self.book.agrees)

    def _on_event(self, event: dict[str, Any]) -> None:
        """A line of the defender's log; only what a person should know of is told."""
        if event.get("event") == "chart specs":
            self._specs_sent = event["spec_revision"]
        if event.get("level") == "error" and event.get("event") != "worker died":
            text = str(event.get("event")).partition("\n")[0]
            self._tell(f"the defender logs: {text}", once=f"log: {text}", is_trouble=True)

    def _tell(self, text: str, *, once: str = "", is_trouble: bool = False) -> None:
        if once and once in self._told:
            return
        self._told.add(once)
        milestone = Milestone(self.elapsed_s if self.begun_ns else None, text, is_trouble)
        self.milestones.append(milestone)
        self._on_milestone(milestone)

    # --- small change ---------------------------------------------------------------------------

    async def _is_ready(self) -> bool:
        """Every worker serves, and has been sent the show's chart specs."""
        serves = self.scrape.partitions == self.stage.settings.partitions
        return serves and self._specs_sent == self.stage.specs_revision

    async def _scrape(self, http: aiohttp.ClientSession) -> None:
        """An unanswered scrape leaves the figures as they were: the next one comes in a second."""
        try:
            async with http.get(f"http://127.0.0.1:{self.stage.http_port}/metrics") as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return
        values: dict[str, list[float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values.setdefault(sample.name, []).append(sample.value)
        self.scrape = Scrape(
            partitions=int(sum(values.get("defender_partitions_owned", []))),
            lag=int(sum(values.get("defender_partition_lag", []))),
            hits=int(sum(values.get("defender_cache_hits_total", []))),
            misses=int(sum(values.get("defender_cache_misses_total", []))),
        )

    async def _until(
        self,
        condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
        within_s: float,
        otherwise: str,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        """Polls *condition*. Raises ShowBroken after *within_s*, and what broke meanwhile."""
        deadline_s = time.monotonic() + within_s
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            self._check(tasks)
            if time.monotonic() > deadline_s:
                raise ShowBroken(f"{otherwise} within {within_s:g} s; see {self.stage.log_path}")
            await asyncio.sleep(_POLL_S)

    def _check(self, tasks: list[asyncio.Task[None]]) -> None:
        """Raises when the defender, the server, the publisher or the watching has failed."""
        for task in tasks:
            if task.done():
                task.result()
        if self.phase is not Phase.LEAVING:
            self.stage.check()

    def _outcome(self) -> Outcome:
        ledger, observer, finished = self.ledger, self.observer, self._finished
        assert observer is not None
        assert finished is not None
        took_s = max((ledger.last_seen_ns - ledger.first_sent_ns) / 1e9, 1e-9)
        p50, p99, longest = (round(value, 3) for value in ledger.latency_ms(0.5, 0.99, 1.0))
        broken, broken_rejected = ledger.broken
        recovery_ms = observer.outage.recovery_ms
        deviation = self.book.deviation if self.book.complete else math.inf
        code, leave_s = self._left
        return Outcome(
            reports=ledger.reports,
            verdicts=ledger.verdicts,
            alarms=ledger.alarms,
            rejected=ledger.rejected,
            lost=ledger.lost,
            duplicated=ledger.duplicated,
            planted=ledger.planted,
            planted_found=ledger.planted_found,
            chance_alarms=ledger.chance_alarms,
            samples_per_s=round(ledger.samples / took_s, 1),
            latency_ms_p50=p50,
            latency_ms_p99=p99,
            latency_ms_max=longest,
            cache_hit_rate=round(self.scrape.hit_rate, 6),
            samples=ledger.samples,
            resets=ledger.resets,
            broken=broken,
            broken_rejected=broken_rejected,
            unexpected=ledger.unexpected,
            unacknowledged=self._unacknowledged,
            missed=observer.missed,
            recovery_ms=round(recovery_ms, 1) if recovery_ms is not None else None,
            partitions_recovered=len(observer.outage.taken_over),
            book_points=len(self.book.u),
            book_deviation=deviation if math.isfinite(deviation) else None,
            book_agrees=self.book.agrees,
            reports_per_s=round(finished.sent / max(finished.seconds, 1e-9), 1),
            publisher_behind_ms_max=round(finished.behind_ms_max, 1),
            seconds=round(finished.seconds, 2),
            ready_s=round(self._ready_s, 2),
            leave_s=round(leave_s, 2),
            leave_code=code,
            chambers=self.plan.chambers,
            workers=self.plan.workers,
            seed=self.plan.seed,
        )
