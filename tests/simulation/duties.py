"""A model of the steward: it carries out what `runtime.handoff.Handoffs` plans."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from runtime.errors import Fenced
from runtime.handoff import (
    Abandon,
    Acquire,
    Ask,
    Copy,
    Disown,
    Forget,
    Handoffs,
    Phase,
    Restore,
    Standing,
    Yield,
)
from runtime.ownership_record import Owner, Record, acquire, release, require_new
from runtime.records import Layout, Member
from simulation.server import ASSIGNMENTS, Told
from simulation.view import CachedLayout, View

if TYPE_CHECKING:
    from simulation.process import Process
    from simulation.serving import Worker

RELEASE_RETRY_S = 0.1


class Held(NamedTuple):
    epoch: int
    generation: int
    position: int
    record: Record
    revision: int


class Outlook:
    """`runtime.prospect.Outlook` over the simulated view."""

    def __init__(self, view: View, me: Owner) -> None:
        self._view, self._me = view, me
        self.standing, self.holder = view.standing, view.holder
        self.holds_claim, self.is_gone = view.holds_claim, view.is_gone

    @property
    def layout(self) -> Layout | None:
        return self._view.layout

    @property
    def prospect(self) -> Layout | None:
        layout, claims = self._view.layout, self._view.claims
        mine = claims.get(self._me.stable_id)
        if layout is None or mine is None or mine.value.joins or self._me.stable_id in layout.members:
            return None
        members = {
            stable_id: Member(seen.value.track, seen.value.weight)
            for stable_id, seen in sorted(claims.items())
            if seen.value.track == mine.value.track
        }
        return CachedLayout(msgspec.structs.replace(layout.record, members=members, pins={}))


class Duties:
    """The partitions of one process that holds *me*."""

    def __init__(self, process: Process, me: Owner) -> None:
        world = process.world
        self.handoffs = Handoffs(me, world.limits.workers, world.limits.handoff_s)
        self.held: dict[int, Held] = {}
        self.served: set[int] = set()
        self._process, self._world, self._server = process, world, world.server
        self._outlook = Outlook(process.view, me)
        self._unassigned: set[int] = set()
        self._finishing: dict[int, Callable[[int], None]] = {}
        self._idle: tuple[Any, ...] = ()
        self.touched = 0

    # --- the plan -------------------------------------------------------------------------------

    def act(self) -> bool:
        """Plan and begin; whether something is under way."""
        handoffs, view = self.handoffs, self._process.view
        state = (view.changes, self.touched, view.gone(), handoffs.holding)
        if state == self._idle:
            return False
        now_s = self._process.clock()
        deeds = handoffs.plan(self._outlook, now_s)
        for deed in deeds:
            self._begin(deed)
        at_rest = not deeds and all(
            part.phase is Phase.SERVING and part.unwanted_s is None and part.seen
            for part in handoffs.parts.values()
        )
        # Nothing here depends on time any more: the same would be planned again and again.
        self._idle = state if at_rest and not self._waits() else ()
        return not at_rest

    def _waits(self) -> bool:
        """Whether a partition that is ours is not planned only because an attempt failed a moment ago."""
        layout, me = self._process.view.layout, self.handoffs.me
        if layout is None or not self.handoffs.holding:
            return False
        return any(
            owner == me.stable_id and p not in self.handoffs.parts for p, owner in enumerate(layout.owners)
        )

    def _begin(self, deed: Any) -> None:
        workers = self._process.workers
        match deed:
            case Copy(partition=partition, worker=worker):
                if workers[worker].session:
                    workers[worker].copy(partition)
            case Forget(partition=partition, worker=worker):
                workers[worker].forget(partition)
            case Ask(partition=partition, pod_uid=pod_uid):
                self._ask(partition, pod_uid)
            case Acquire():
                self._acquire(deed)
            case Yield(partition=partition):
                self._hand_over(partition, "", lambda _: None)
            case Abandon(partition=partition):
                self._abandon(partition)
            case Disown(partition=partition, standing=standing):
                record = standing.record
                given_back = release(record, record.epoch or standing.revision, record.position)
                self._call(
                    lambda _: None, self._server.write_record, partition, given_back, standing.revision
                )
            case Restore(partition=partition, revision=revision):
                self._restore(partition, revision)

    def _call(self, then: Callable[[Any], None], operation: Callable[..., Any], *args: Any) -> None:
        def touched(result: Any) -> None:
            self.touched += 1
            then(result)
            self._process.wake()

        self._process.lane.call(touched, operation, *args)

    # --- acquiring ------------------------------------------------------------------------------

    def _ask(self, partition: int, pod_uid: str) -> None:
        handoffs, view = self.handoffs, self._process.view
        version = view.layout.version if view.layout is not None else 0
        clock = self._process.clock

        def answered(answer: Any) -> None:
            self.touched += 1
            if answer == "nobody":
                handoffs.unreachable(partition, pod_uid, clock())
            elif isinstance(answer, Standing):
                deed = handoffs.yielded(partition, answer)
                if deed is not None:
                    self._acquire(deed)
            else:
                handoffs.refused(partition, clock())
            self._process.wake()

        self._world.request(
            self._process, pod_uid, answered, "on_yield", partition, handoffs.me.stable_id, version
        )

    def _acquire(self, deed: Acquire) -> None:
        partition, me = deed.partition, self.handoffs.me
        record = acquire(deed.standing.record, me, deed.worker)
        warm = deed.standing.record.next == me.stable_id

        def written(result: tuple[int, int] | None) -> None:
            if result is None:
                self._lost(partition)
                return
            epoch, generation = result
            if warm:
                self._attach_warm(deed, Held(epoch, generation, record.position, record, epoch))
            else:
                self._call(
                    lambda told: self._attach(deed, told, Held(epoch, generation, 0, record, epoch)),
                    self._server.told,
                    partition,
                )

        self._call(written, self._server.write_owner, partition, record, deed.standing.revision)

    def _attach_warm(self, deed: Acquire, held: Held) -> None:
        partition, before = deed.partition, deed.standing.record.epoch
        if not self._is_new(partition, held.epoch, (before,)):
            self._lost(partition)
            return

        def created(done: int | None) -> None:
            if done != 0:
                self._lost(partition)
                return
            if before:
                self._process.lane.tell(self._server.delete_consumer, partition, before)
            self._require_ours(deed, held)

        self._call(created, self._server.create_consumer, partition, held.epoch, held.position)

    def _attach(self, deed: Acquire, told: Told | None, held: Held) -> None:
        partition = deed.partition
        if told is None:
            self._lost(partition)
            return
        if any(epoch >= held.epoch for epoch in told.floors) and told.revision != held.epoch:
            self._lost(partition)
            return
        if not self._is_new(partition, held.epoch, (deed.standing.record.epoch, *told.floors)):
            self._lost(partition)
            return
        position = max(held.record.position, *told.floors.values(), 0)
        if not told.floors:
            position = max(position, told.position)
        held = held._replace(position=min(position, told.last_seq))
        older = list(told.floors)

        def deleted(done: int | None) -> None:
            if done is None:
                self._lost(partition)
            else:
                self._require_ours(deed, held)

        def created(done: int | None) -> None:
            if done != 0:
                self._lost(partition)
            elif older:
                self._call(deleted, self._server.delete_consumers, partition, older)
            else:
                self._require_ours(deed, held)

        self._call(created, self._server.create_consumer, partition, held.epoch, held.position)

    def _is_new(self, partition: int, epoch: int, given: Collection[int]) -> bool:
        try:
            require_new(partition, epoch, given)
        except Fenced as error:
            self._world.note(str(error))
            return False
        return True

    def _require_ours(self, deed: Acquire, held: Held) -> None:
        """Whoever acquired after us may have looked for our consumer before we made it."""
        partition = deed.partition

        def read(stored: Any) -> None:
            if stored is not None and stored.revision == held.epoch:
                self._acquired(deed, held)
            else:
                self._process.lane.tell(self._server.delete_consumer, partition, held.epoch)
                self._lost(partition)

        self._call(read, self._server.get, ASSIGNMENTS, f"partition.{partition}")

    def _lost(self, partition: int) -> None:
        self.handoffs.lost(partition, self._process.clock())

    def _acquired(self, deed: Acquire, held: Held) -> None:
        partition = deed.partition
        self.held[partition] = held
        if self.handoffs.acquired(partition, held.epoch) is None:
            self._release(partition, held.position, "", lambda _: None)
            return
        if deed.worker in self.handoffs.ready:
            self._assign(deed.worker, partition)
        else:
            self._unassigned.add(partition)

    def _assign(self, index: int, partition: int) -> None:
        self.handoffs.parts[partition].assigned = True
        held, worker = self.held[partition], self._process.workers[index]
        if worker.session:
            worker.assign(partition, held.epoch, held.generation, held.position)

    # --- giving back ----------------------------------------------------------------------------

    def answer(self, partition: int, stable_id: str, version: int, reply: Callable[[Any], None]) -> None:
        """To another pod that is warm and asks for a partition."""
        view = self._process.view
        if view.layout is None or version > view.layout.version:
            self._call(lambda _: self._answer(partition, stable_id, reply), view.reread_ring)
        else:
            self._answer(partition, stable_id, reply)

    def _answer(self, partition: int, stable_id: str, reply: Callable[[Any], None]) -> None:
        if self.handoffs.refuses(partition, stable_id, self._outlook):
            reply("refused")
            return
        self.handoffs.yielding(partition)
        self.touched += 1
        self._hand_over(partition, stable_id, reply)

    def _abandon(self, partition: int) -> None:
        """Another acquired it: the worker stops, nothing is released."""
        part = self.handoffs.parts[partition]

        def finished(_: int) -> None:
            if self._finishing.pop(partition, None) is not None:
                self.held.pop(partition, None)
                self.handoffs.released(partition)

        self._finishing[partition] = finished
        serve = self._process.workers[part.worker].serves.get(partition) if part.assigned else None
        if serve is not None:
            self._world.heap.after(0.001, serve.run, serve.finish, finished)
        else:
            self._unassigned.discard(partition)
            finished(0)

    def _hand_over(self, partition: int, heir: str, reply: Callable[[Any], None]) -> None:
        part, held = self.handoffs.parts[partition], self.held[partition]

        def finished(position: int) -> None:
            if self._finishing.pop(partition, None) is not None:
                self._release(partition, max(position, held.position), heir, reply)

        if not part.assigned:
            self._unassigned.discard(partition)
            self._release(partition, held.position, heir, reply)
            return
        self._finishing[partition] = finished
        serve = self._process.workers[part.worker].serves.get(partition)
        if serve is not None:
            self._world.heap.after(0.001, serve.run, serve.finish, finished)

    def _release(self, partition: int, position: int, heir: str, reply: Callable[[Any], None]) -> None:
        held = self.held[partition]
        released = release(held.record, held.epoch, position, heir)

        def written(answer: tuple[int | None] | None) -> None:
            if answer is not None and answer[0] is not None:
                reply(Standing(released, answer[0]))
            elif answer is None:
                self._process.later(RELEASE_RETRY_S, self._release, partition, position, heir, reply)
                return
            else:
                reply("fenced")
            self.held.pop(partition, None)
            self.served.discard(partition)
            self.handoffs.released(partition)

        def write() -> tuple[int | None]:
            return (self._server.write_record(partition, released, held.revision),)

        self._call(written, write)

    def _restore(self, partition: int, revision: int) -> None:
        held = self.held.get(partition)
        if held is None:
            return
        record = msgspec.structs.replace(held.record, epoch=held.epoch, position=held.position)

        def written(revision: int | None) -> None:
            if revision is not None and self.held.get(partition) is held:
                self.held[partition] = held._replace(record=record, revision=revision)
                self.handoffs.restored(partition, revision)

        self._call(written, self._server.write_record, partition, record, revision)

    def release_rest(self) -> None:
        """The time of a drain is over: everything is given back as it is."""
        for partition, part in list(self.handoffs.parts.items()):
            if part.phase is Phase.SERVING:
                self.handoffs.yielding(partition)
                self._hand_over(partition, "", lambda _: None)

    # --- the workers' words ---------------------------------------------------------------------

    def on_ready(self, worker: Worker) -> None:
        self.touched += 1
        for partition in self.handoffs.worker_ready(worker.index):
            if partition in self._unassigned:
                self._unassigned.discard(partition)
                self._assign(worker.index, partition)

    def on_lost(self, worker: Worker) -> None:
        self.touched += 1
        for partition, part in self.handoffs.parts.items():
            if part.worker == worker.index:
                self.served.discard(partition)
        for partition in self.handoffs.worker_lost(worker.index):
            finished = self._finishing.get(partition)
            if finished is not None:
                finished(0)

    def on_word(self, word: str, partition: int) -> None:
        self.touched += 1
        if word == "copied":
            self.handoffs.copied(partition)
        elif word == "serves":
            self.served.add(partition)
            self.handoffs.served(partition)

    def serves_all(self) -> bool:
        """Whether everything that is ours is served."""
        parts = self.handoffs.parts.items()
        return all(p in self.served for p, part in parts if part.phase in (Phase.ACQUIRING, Phase.SERVING))

    def is_empty(self) -> bool:
        return not self.handoffs.count(Phase.SERVING, Phase.YIELDING, Phase.ACQUIRING)
