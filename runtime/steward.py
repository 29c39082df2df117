"""The steward: carries out what `runtime.handoff` plans, between the records, the other pods and our workers.

It has no state of its own that matters: after a failure the plan is made anew from what is so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, Final

from runtime import control, log, pipes
from runtime.bus import TRANSIENT, Connection, backoff_s
from runtime.control import Absent, NobodyListens, Refused, Yielded
from runtime.errors import DefenderError, Fenced
from runtime.handoff import (
    Abandon,
    Acquire,
    Ask,
    Copy,
    Disown,
    Forget,
    Handoffs,
    Part,
    Phase,
    Restore,
    Standing,
    Yield,
)
from runtime.ownership import Acquired, Ownership, Want
from runtime.ownership_record import Owner, State
from runtime.prospect import Outlook
from runtime.tally import Tally

if TYPE_CHECKING:
    from runtime.config import Settings
    from runtime.fleet_view import FleetView
    from runtime.pool import Pool, WorkerHandle

PLAN_EVERY_S: Final = 0.25
SPECS_S_MAX: Final = 2.0
"""How long a partition's next owner waits for the chart specs that the last one had."""
_LOG = log.get("steward")


class Steward:
    """Keeps the partitions of one pod as the ring and the records want it. *clock* is monotonic, in s."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        view: FleetView,
        pool: Pool,
        me: Owner,
        tally: Tally,
        *,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handoffs = Handoffs(me, settings.workers, settings.handoff_s)
        self.ownership = Ownership(connection, settings, me, random=random)
        self._settings, self._connection, self._view, self._pool = settings, connection, view, pool
        self._outlook = Outlook(view, me, settings.silence_s)
        self._tally, self._random, self._clock = tally, random, clock
        self._unassigned: dict[int, Acquired] = {}
        self._finishing: dict[int, asyncio.Future[int]] = {}
        self._stopped_s: dict[int, float] = {}
        """When the former owner of a partition on its way to us had stopped."""
        self._begun_s: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cause = ""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- what the supervisor asks ---------------------------------------------------------------

    async def run(self) -> None:
        """Plans and acts until it is cancelled; raises what ends the pod."""
        cancel = self._view.subscribe(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                self._act()
                if self._failed.done():
                    self._failed.result()
                try:
                    async with asyncio.timeout(PLAN_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def let_go(self) -> None:
        """The claim is passed on: nothing is ours any more, what we serve waits to be asked for."""
        self.handoffs.holding = False
        self._wake.set()

    async def empty(self) -> None:
        """Returns when nothing is served, or on its way out."""
        while self.handoffs.count(Phase.SERVING, Phase.YIELDING, Phase.ACQUIRING):
            self._changed.clear()
            await self._changed.wait()

    @property
    def serving(self) -> int:
        return self.handoffs.count(Phase.SERVING)

    def not_served(self) -> list[int]:
        """The partitions that are ours, or should be with nobody else alive to have them, and not served."""
        handles = self._pool.handles
        return [
            partition
            for partition, part in self.handoffs.parts.items()
            if part.phase is Phase.ACQUIRING
            or (part.phase is Phase.SERVING and partition not in handles[part.worker].serving)
        ]

    def not_copied(self) -> int:
        """How many of the partitions that will be ours after a cutover are not copied yet."""
        prospect = self._outlook.prospect
        if prospect is None:
            return 0
        parts = self.handoffs.parts
        wanted = prospect.partitions_of(self.handoffs.me.stable_id)
        copied = sum(p in parts and parts[p].warm for p in wanted)
        return len(wanted) - copied

    async def answer(self, request: control.Yield) -> control.Answer:
        """To another pod that is warm and asks for a partition."""
        layout = self._view.layout
        if layout is None or request.ring_version > layout.version:
            await self._view.reread_ring()
        why = self.handoffs.refuses(request.partition, request.stable_id, self._outlook)
        if why:
            return Refused(why)
        self.handoffs.yielding(request.partition)
        standing, stopped_s = await self._hand_over(request.partition, request.stable_id)
        self._tally.handoffs["handed"] += 1
        stopped_ms = (self._clock() - stopped_s) * 1e3
        return Yielded(
            request.partition, standing.record, standing.revision, stopped_ms, self._pool.spec_revision
        )

    # --- the workers' words ---------------------------------------------------------------------

    def on_ready(self, handle: WorkerHandle) -> None:
        """A worker's session begins."""
        waiting = [self._unassigned.pop(p) for p in self.handoffs.worker_ready(handle.index)]
        self._assign(handle, waiting)
        self._wake.set()

    def on_lost(self, handle: WorkerHandle) -> None:
        """A worker's session ended, or its process: what it had is planned anew."""
        for partition, part in self.handoffs.parts.items():
            if part.worker == handle.index and part.assigned and part.phase is Phase.SERVING:
                self.ownership.held.pop(partition, None)
        for partition in self.handoffs.worker_lost(handle.index):
            finishing = self._finishing.get(partition)
            if finishing is not None and not finishing.done():
                finishing.set_result(0)
        self._wake.set()

    def on_word(self, handle: WorkerHandle, word: pipes.OfSession) -> None:
        match word:
            case pipes.Copied(partition=partition):
                self.handoffs.copied(partition)
            case pipes.Serving(partitions=partitions):
                for partition in partitions:
                    self._serves(partition)
            case pipes.Yielded(positions=positions):
                for partition, position in positions.items():
                    finishing = self._finishing.get(partition)
                    if finishing is not None and not finishing.done():
                        finishing.set_result(position)
            case pipes.Ended():
                self.on_lost(handle)
        self._wake.set()

    def _serves(self, partition: int) -> None:
        self.handoffs.served(partition)
        now_s = self._clock()
        stopped_s = self._stopped_s.pop(partition, None)
        if stopped_s is not None:
            self._tally.unattended.observe(now_s - stopped_s)
        begun_s = self._begun_s.pop(partition, None)
        if begun_s is not None:
            self._tally.handoff.observe(now_s - begun_s)

    # --- the plan -------------------------------------------------------------------------------

    def _act(self) -> None:
        now_s = self._clock()
        cold: dict[int, list[Acquire]] = {}
        for deed in self.handoffs.plan(self._outlook, now_s):
            match deed:
                case Copy(partition=partition, worker=worker):
                    self._pool.handles[worker].copy([partition], self._sources(partition))
                case Forget(partition=partition, worker=worker):
                    self._begun_s.pop(partition, None)
                    self._pool.handles[worker].forget([partition])
                case Ask(partition=partition, pod_uid=pod_uid):
                    self._begun_s.setdefault(partition, now_s)
                    self._start(self._ask(partition, pod_uid))
                case Acquire(warm=True):
                    self._start(self._acquire(deed.worker, [deed]))
                case Acquire(worker=worker):
                    cold.setdefault(worker, []).append(deed)
                case Yield(partition=partition):
                    self._start(self._give_up(partition))
                case Abandon(partition=partition):
                    self._start(self._abandon(partition))
                case Disown(partition=partition, standing=standing):
                    self._start(self._disown(partition, standing))
                case Restore(partition=partition, revision=revision):
                    self._start(self._restore(partition, revision))
        for worker, acquires in cold.items():
            self._start(self._acquire(worker, acquires))
        self._changed.set()

    def _sources(self, partition: int) -> dict[int, pipes.Source]:
        """Who has the partition in memory."""
        record, revision = self._outlook.standing(partition)
        if record.state is not State.OWNED or record.worker < 0:
            return {}
        return {partition: pipes.Source(record.pod_uid, record.worker, record.epoch or revision)}

    async def _ask(self, partition: int, pod_uid: str) -> None:
        layout, me = self._view.layout, self.handoffs.me
        version = layout.version if layout is not None else 0
        request = control.Yield(partition, me.stable_id, me.pod_uid, version)
        subject = self._settings.names.pod(pod_uid)
        try:
            answer = await control.ask(
                self._connection, subject, request, timeout_s=self._settings.request_timeout_s
            )
        except NobodyListens:
            self._tally.refused += 1
            self.handoffs.unreachable(partition, pod_uid, self._clock())
            return
        except TRANSIENT as error:
            self._unanswered(error)
            self.handoffs.refused(partition, self._clock())
            return
        if isinstance(answer, Absent):
            self.handoffs.unreachable(partition, pod_uid, self._clock())
            return
        if not isinstance(answer, Yielded):
            self._tally.refused += 1
            why = answer.why if isinstance(answer, Refused) else str(answer)
            _LOG.debug("refused", partition=partition, why=why)
            self.handoffs.refused(partition, self._clock())
            return
        acquire = self.handoffs.yielded(partition, Standing(answer.record, answer.revision))
        if acquire is not None:
            self._stopped_s[partition] = self._clock() - answer.stopped_ms / 1e3
            await self._catch_up(answer.spec_revision)
            await self._acquire(acquire.worker, [acquire])

    async def _catch_up(self, spec_revision: int) -> None:
        """Waits for chart specs that the former owner had already; those that do not come hold nothing up."""
        end_s = self._clock() + SPECS_S_MAX
        while self._pool.spec_revision < spec_revision:
            if self._clock() >= end_s:
                _LOG.error(
                    "goes on with older chart specs than the owner before", spec_revision=spec_revision
                )
                return
            await asyncio.sleep(0.005)

    async def _acquire(self, worker: int, deeds: list[Acquire]) -> None:
        me = self.handoffs.me
        wants = [
            # Warm only where the record says all: released, not left behind by somebody who is gone.
            Want(d.partition, d.standing.record, d.standing.revision, d.standing.record.next == me.stable_id)
            for d in deeds
        ]
        acquired: dict[int, Acquired] = {}
        try:
            acquired = await self.ownership.acquire(wants, worker=worker)
        except (Fenced, *TRANSIENT) as error:
            self._unanswered(error)
        assigned = []
        for deed in deeds:
            one = acquired.get(deed.partition)
            if one is None:
                self._stopped_s.pop(deed.partition, None)
                self.handoffs.lost(deed.partition, self._clock())
                continue
            self._count(deed)
            if self.handoffs.acquired(deed.partition, one.epoch) is None:
                self._start(self._release(deed.partition, one.position, ""))
            else:
                assigned.append(one)
        self._assign(self._pool.handles[worker], assigned)
        self._wake.set()

    def _count(self, deed: Acquire) -> None:
        tally, before, me = self._tally, deed.standing.record, self.handoffs.me
        tally.acquired += 1
        tally.handoffs["warm" if deed.warm else "cold"] += 1
        if before.owner and before.owner != me.stable_id:
            tally.reassigned += 1
        elif before.owner and before.pod_uid != me.pod_uid:
            tally.taken_over += 1

    def _assign(self, handle: WorkerHandle, acquired: list[Acquired]) -> None:
        """Tells the worker what to serve; one without a session is told when it has the next."""
        if not acquired:
            return
        assignments = [
            pipes.Assignment(a.partition, a.epoch, a.consumer, a.position, a.before) for a in acquired
        ]
        told = handle.assign(assignments)
        for one in acquired:
            self.handoffs.parts[one.partition].assigned = told
            if not told:
                self._unassigned[one.partition] = one

    # --- on the way out -------------------------------------------------------------------------

    async def _hand_over(self, partition: int, heir: str) -> tuple[Standing, float]:
        """Lets the worker finish, releases; the record and when the worker was told to stop."""
        part = self.handoffs.parts[partition]
        stopped_s = self._clock()
        held = self.ownership.held[partition].acquired
        position = max(held.position, await self._finish(partition, part))
        standing = await self._release(partition, position, heir)
        return standing, stopped_s

    async def _finish(self, partition: int, part: Part) -> int:
        """Lets the worker stop; its position, 0 when it does not tell one."""
        if not part.assigned:
            self._unassigned.pop(partition, None)
            return 0
        finishing = self._finishing[partition] = asyncio.get_running_loop().create_future()
        try:
            if not self._pool.handles[part.worker].take_back([partition]):
                return 0  # its session is over
            position: int = await finishing
            return position
        finally:
            del self._finishing[partition]

    async def _abandon(self, partition: int) -> None:
        _LOG.warning("another acquired a partition that we serve; it is left to it", partition=partition)
        await self._finish(partition, self.handoffs.parts[partition])
        self.ownership.held.pop(partition, None)
        self.handoffs.released(partition)
        self._wake.set()

    async def _release(self, partition: int, position: int, heir: str) -> Standing:
        """Releases the record, however long the server does not answer. Raises Fenced."""
        attempt = 0
        while True:
            try:
                standing = Standing(*await self.ownership.release(partition, position, heir))
                break
            except TRANSIENT as error:
                self._unanswered(error)
            except Fenced:
                self.ownership.held.pop(partition, None)
                self.handoffs.released(partition)
                self._wake.set()
                raise
            await asyncio.sleep(backoff_s(attempt, 0.02, 1.0, self._random))
            attempt += 1
        self.handoffs.released(partition)
        self._wake.set()
        return standing

    async def _give_up(self, partition: int) -> None:
        try:
            await self._hand_over(partition, "")
        except Fenced as error:
            _LOG.warning("not released: it is another's already", partition=partition, cause=str(error))
            return
        self._tally.handoffs["released"] += 1
        _LOG.warning("released: its next owner did not ask in time", partition=partition)

    async def _disown(self, partition: int, standing: Standing) -> None:
        try:
            await self.ownership.disown(partition, standing.record, standing.revision)
        except TRANSIENT as error:
            self._unanswered(error)

    async def _restore(self, partition: int, revision: int) -> None:
        if partition not in self.ownership.held:
            return
        try:
            written = await self.ownership.restore(partition, revision)
        except TRANSIENT as error:
            self._unanswered(error)
            return
        if written is not None:
            _LOG.error(
                "record of a partition that we serve was lost or overwritten: restored", partition=partition
            )
            self.handoffs.restored(partition, written)

    # --- small change ---------------------------------------------------------------------------

    def _unanswered(self, error: DefenderError) -> None:
        if str(error) != self._cause:
            self._cause = str(error)
            _LOG.warning("trying again", cause=self._cause)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Fenced):
            _LOG.warning("a partition was acquired by another", cause=str(error))
        elif error is not None and not self._failed.done():
            self._failed.set_exception(error)
        self._wake.set()
