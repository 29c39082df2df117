"""What a holder does with each partition: the plan of acquisitions and handoffs. Pure.

    (none) ─Copy─► COPYING ─copied─► WARM ─Ask─► ASKING ─Yielded─┐
       │              │                │ ▲─refused, no answer─┘   ▼
       └──Acquire─────┴──(free)────────┴────────────────────► ACQUIRING ─acquired─► SERVING
                                                                                       │
       (none) ◄────────────────── released ────────────────── YIELDING ◄──asked, late──┘

`Handoffs.plan` compares what the ring wants with what the ownership records say and with what is under way
here, and returns what to do next. It is called on every change and at intervals, and looks at the state of
things only: a lost event, answer or notice costs time and nothing else. What is safe does not rest on it:
a partition is owned by compare-and-set on its record.

An owner serves on until the next one is warm and asks, or until the next one has had its time
(``handoff_s``). Where nobody alive holds the ID that the ring names, the present owner goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, Protocol

from runtime.ownership_record import Owner, Record, State
from runtime.records import Layout

ASKS_MAX: Final = 2
"""Partitions that a pod takes over warm at the same time, from asking until its worker serves them: more
would only lengthen one another's gaps. Counted until they were acquired only, and 4 at a time, a cutover
between 5 and 5 pods on two cores had gaps of 843 ms in the middle, though records changed hands in 34 ms."""
RETRY_S: Final = 0.1
"""Between two attempts at one partition."""
REFRESH_S: Final = 5.0
"""How old a copy may get of a partition that will be ours after a cutover."""
UNSEEN_S: Final = 15.0
"""After this time a view must have shown what we wrote: it is read anew every 10 s."""
UNREACHABLE_S: Final = 2.0
"""How long a pod counts as not listening after it did not."""


class Phase(Enum):
    """Where a partition is in this pod."""

    COPYING = "copying"
    WARM = "warm"
    ASKING = "asking"
    ACQUIRING = "acquiring"
    SERVING = "serving"
    YIELDING = "yielding"


class Standing(NamedTuple):
    """An ownership record as it stands: the record and its revision."""

    record: Record
    revision: int


VACANT: Final = Standing(Record(), 0)


@dataclass(slots=True)
class Part:
    """One partition in this pod."""

    phase: Phase
    worker: int
    warm: bool = False
    """Whether the worker has copied its history ahead."""
    copied_s: float = 0.0
    """When it was last told to."""
    served: bool = False
    """Whether its worker has said that it serves it."""
    assigned: bool = False
    """Whether its worker was told to serve it."""
    revision: int = 0
    """Of the record that we wrote."""
    seen: bool = False
    """Whether our record came back to us, or should have; before that an older one tells nothing."""
    unseen_s: float | None = None
    """Since when it has not."""
    retry_s: float = 0.0
    unwanted_s: float | None = None
    """Since when another, alive, is to have it."""


class Copy(NamedTuple):
    """Let the worker read the partition's history ahead."""

    partition: int
    worker: int


class Forget(NamedTuple):
    """Let the worker drop what it copied."""

    partition: int
    worker: int


class Ask(NamedTuple):
    """Ask the owner to release the partition to us, for we are warm."""

    partition: int
    pod_uid: str


class Acquire(NamedTuple):
    """Write ourselves as owner, if the record is still at *revision*."""

    partition: int
    worker: int
    standing: Standing
    warm: bool


class Yield(NamedTuple):
    """Let the worker finish the partition, then release it: the next owner had its time."""

    partition: int
    worker: int


class Abandon(NamedTuple):
    """Let the worker stop, release nothing: the record has another owner, or a later epoch of ours."""

    partition: int
    worker: int


class Disown(NamedTuple):
    """Release a record that says we own the partition, which we neither serve nor want."""

    partition: int
    standing: Standing


class Restore(NamedTuple):
    """Write again the record of a partition that we serve: the bucket lost it, or somebody wrote nonsense."""

    partition: int
    revision: int


Deed = Copy | Forget | Ask | Acquire | Yield | Abandon | Disown | Restore


class FleetSeen(Protocol):
    """What the plan needs to know of the fleet."""

    @property
    def layout(self) -> Layout | None:
        """The committed ring."""
        ...

    @property
    def prospect(self) -> Layout | None:
        """The ring as it will be when our track is cut over to; None when we are in the ring, or it is not
        known."""
        ...

    def standing(self, partition: int) -> Standing:
        """The partition's record; `VACANT` when there is none."""
        ...

    def holder(self, stable_id: str) -> str | None:
        """UID of the pod that holds the ID; None when nobody does."""
        ...

    def is_gone(self, pod_uid: str) -> bool:
        """Whether a pod holds no claim and gives no sign of life."""
        ...

    def holds_claim(self, pod_uid: str) -> bool:
        """Whether a pod holds any claim."""
        ...


@dataclass
class Handoffs:
    """The partitions of one pod; *me* is the ID that it holds, or held before it passed it on."""

    me: Owner
    workers: int
    handoff_s: float
    holding: bool = True
    """False once the claim is passed on: nothing is ours any more, what we serve waits for its next owner."""
    parts: dict[int, Part] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    """Workers that can be told to copy."""
    _sticky: dict[int, int] = field(default_factory=dict)
    _not_before_s: dict[int, float] = field(default_factory=dict)
    _unreachable_s: dict[str, float] = field(default_factory=dict)

    # --- the plan -------------------------------------------------------------------------------

    def plan(self, fleet: FleetSeen, now_s: float) -> list[Deed]:
        """What to begin now; the phases say afterwards that it was begun."""
        layout = fleet.layout
        if layout is None:
            return []
        deeds: list[Deed] = []
        prospect = fleet.prospect if self.holding else None
        for partition, owner in enumerate(layout.owners):
            deed: Deed | None
            if self.holding and owner == self.me.stable_id:
                deed = self._want(partition, fleet, now_s)
            elif (
                prospect is not None
                and prospect.owners[partition] == self.me.stable_id
                and not self._has(partition, fleet)
            ):
                deed = self._prepare(partition, now_s)
            else:
                deed = self._leave(partition, owner, fleet, now_s)
            if deed is not None:
                deeds.append(deed)
        return deeds

    def _want(self, partition: int, fleet: FleetSeen, now_s: float) -> Deed | None:
        part, standing = self.parts.get(partition), fleet.standing(partition)
        free = self._is_free(standing.record, fleet, now_s)
        if part is None:
            if now_s < self._not_before_s.get(partition, 0.0):
                return None
            worker = self._worker_for(partition)
            if free:
                self.parts[partition] = Part(Phase.ACQUIRING, worker)
                return Acquire(partition, worker, standing, warm=False)
            if worker not in self.ready:
                return None
            self.parts[partition] = Part(Phase.COPYING, worker, copied_s=now_s)
            return Copy(partition, worker)
        part.unwanted_s = None
        if part.phase is Phase.SERVING:
            return self._keep(partition, part, standing, now_s)
        if part.phase in (Phase.COPYING, Phase.WARM):
            if free:
                part.phase = Phase.ACQUIRING
                return Acquire(partition, part.worker, standing, warm=part.warm)
            if part.phase is Phase.WARM and now_s >= part.retry_s and self._asking() < ASKS_MAX:
                part.phase = Phase.ASKING
                return Ask(partition, standing.record.pod_uid)
        return None

    def _has(self, partition: int, fleet: FleetSeen) -> bool:
        """Whether we own the partition, by its record or by what is under way."""
        part, record = self.parts.get(partition), fleet.standing(partition).record
        ours = record.state is State.OWNED and record.pod_uid == self.me.pod_uid
        return ours or (part is not None and part.phase in (Phase.ACQUIRING, Phase.SERVING, Phase.YIELDING))

    def _prepare(self, partition: int, now_s: float) -> Copy | None:
        """Copies a partition that will be ours after a cutover, and keeps the copy fresh."""
        part = self.parts.get(partition)
        if part is None:
            worker = self._worker_for(partition)
            if worker not in self.ready:
                return None
            self.parts[partition] = Part(Phase.COPYING, worker, copied_s=now_s)
            return Copy(partition, worker)
        if part.phase is Phase.WARM and now_s - part.copied_s > REFRESH_S:
            part.copied_s = now_s
            return Copy(partition, part.worker)
        return None

    def _keep(self, partition: int, part: Part, standing: Standing, now_s: float) -> Restore | Abandon | None:
        """Minds the record of a partition that we serve: one that was acquired after us ends our part, also
        when our consumer was not deleted (whoever did it was too quick, or our own making of it too slow);
        one that the bucket lost, or that is nonsense, is mended."""
        if self._is_ours(part, standing):
            part.seen = True
            return None
        if part.unseen_s is None:
            part.unseen_s = now_s
        part.seen = part.seen or now_s - part.unseen_s > UNSEEN_S
        if self._is_anothers(part, standing):
            part.phase = Phase.YIELDING
            return Abandon(partition, part.worker)
        overwritten = standing.revision >= part.revision
        if not (overwritten or part.seen) or now_s < part.retry_s:
            return None
        part.retry_s = now_s + RETRY_S
        return Restore(partition, standing.revision)

    def _is_ours(self, part: Part, standing: Standing) -> bool:
        """Whether the record is what we wrote. Its revision alone does not tell: a bucket that was made anew
        counts from 1 again, and may have reached the same one with another's record or with nonsense."""
        record = standing.record
        same_owner = record.state is State.OWNED and record.pod_uid == self.me.pod_uid
        return standing.revision == part.revision and same_owner

    def _is_anothers(self, part: Part, standing: Standing) -> bool:
        """Whether another has acquired what we serve, or a process of our pod anew."""
        later = standing.revision >= part.revision and not self._is_ours(part, standing)
        return later and standing.record.state is State.OWNED

    def _leave(self, partition: int, owner: str | None, fleet: FleetSeen, now_s: float) -> Deed | None:
        part = self.parts.get(partition)
        if part is None:
            standing = fleet.standing(partition)
            record = standing.record
            if record.state is State.OWNED and record.pod_uid == self.me.pod_uid:
                if now_s < self._not_before_s.get(partition, 0.0):
                    return None
                self._not_before_s[partition] = now_s + RETRY_S
                return Disown(partition, standing)
            return None
        if part.phase in (Phase.COPYING, Phase.WARM, Phase.ASKING):
            del self.parts[partition]
            return Forget(partition, part.worker)
        if part.phase is not Phase.SERVING:
            return None
        standing = fleet.standing(partition)
        if self._is_anothers(part, standing):
            part.phase = Phase.YIELDING
            return Abandon(partition, part.worker)
        heir = fleet.holder(owner) if owner is not None else None
        if heir is None or heir == self.me.pod_uid:
            part.unwanted_s = None
            return None
        if part.unwanted_s is None:
            part.unwanted_s = now_s
        if now_s - part.unwanted_s < self.handoff_s:
            return None
        part.phase = Phase.YIELDING
        return Yield(partition, part.worker)

    def _is_free(self, record: Record, fleet: FleetSeen, now_s: float) -> bool:
        if record.state is not State.OWNED or record.pod_uid == self.me.pod_uid:
            return True
        if fleet.is_gone(record.pod_uid):
            return True
        silent_s = now_s - self._unreachable_s.get(record.pod_uid, -UNREACHABLE_S)
        return silent_s < UNREACHABLE_S and not fleet.holds_claim(record.pod_uid)

    def _worker_for(self, partition: int) -> int:
        """The worker that had it before, else the one with the fewest."""
        worker = self._sticky.get(partition)
        if worker is None:
            loads = [0] * self.workers
            for part in self.parts.values():
                loads[part.worker] += 1
            worker = self._sticky[partition] = loads.index(min(loads))
        return worker

    def _asking(self) -> int:
        return sum(
            part.phase is Phase.ASKING
            or (part.warm and not part.served and part.phase in (Phase.ACQUIRING, Phase.SERVING))
            for part in self.parts.values()
        )

    # --- what came of it ------------------------------------------------------------------------

    def copied(self, partition: int) -> None:
        """The worker has read the history that there was."""
        part = self.parts.get(partition)
        if part is not None and part.phase in (Phase.COPYING, Phase.ACQUIRING):
            part.warm = True
            if part.phase is Phase.COPYING:
                part.phase = Phase.WARM

    def yielded(self, partition: int, standing: Standing) -> Acquire | None:
        """The owner released the partition to us; None when it is not wanted any more."""
        part = self.parts.get(partition)
        if part is None or part.phase is not Phase.ASKING:
            return None
        part.phase = Phase.ACQUIRING
        return Acquire(partition, part.worker, standing, part.warm)

    def refused(self, partition: int, now_s: float) -> None:
        """The owner would not, or did not answer."""
        part = self.parts.get(partition)
        if part is not None and part.phase is Phase.ASKING:
            part.phase, part.retry_s = Phase.WARM, now_s + RETRY_S

    def unreachable(self, partition: int, pod_uid: str, now_s: float) -> None:
        """Nobody listens for the owner: without a claim it is gone."""
        self._unreachable_s[pod_uid] = now_s
        self.refused(partition, now_s)

    def restored(self, partition: int, revision: int) -> None:
        """The record of a partition that we serve is written again."""
        part = self.parts.get(partition)
        if part is not None:
            part.revision, part.seen, part.unseen_s = revision, False, None

    def acquired(self, partition: int, epoch: int) -> int | None:
        """The record is ours; the worker to serve it, None when it is not wanted any more."""
        part = self.parts.get(partition)
        if part is None or part.phase is not Phase.ACQUIRING:
            return None
        part.phase, part.revision, part.seen = Phase.SERVING, epoch, False
        return part.worker

    def served(self, partition: int) -> None:
        """The worker serves it."""
        part = self.parts.get(partition)
        if part is not None:
            part.served = True

    def lost(self, partition: int, now_s: float) -> None:
        """The record is not ours: another wrote it, or nobody answered. To be planned anew."""
        self.parts.pop(partition, None)
        self._not_before_s[partition] = now_s + RETRY_S

    def released(self, partition: int) -> None:
        """The record is released: the partition is another's."""
        self.parts.pop(partition, None)
        self._sticky.pop(partition, None)

    def refuses(self, partition: int, stable_id: str, fleet: FleetSeen) -> str:
        """Why a partition is not released to *stable_id*; empty when it is."""
        layout, part = fleet.layout, self.parts.get(partition)
        if layout is None or not 0 <= partition < layout.partitions:
            return "there is no ring with this partition"
        owner = layout.owners[partition]
        if owner != stable_id or (self.holding and owner == self.me.stable_id):
            return f"ring version {layout.version} gives partition {partition} to {owner}"
        if part is None or part.phase is not Phase.SERVING:
            return f"partition {partition} is {part.phase.value if part else 'not served'} here"
        return ""

    def yielding(self, partition: int) -> int:
        """It was asked for: the worker that is to finish it."""
        part = self.parts[partition]
        part.phase = Phase.YIELDING
        return part.worker

    def worker_ready(self, worker: int) -> list[int]:
        """A worker can work; the partitions that are ours and wait for it."""
        self.ready.add(worker)
        return [
            partition
            for partition, part in self.parts.items()
            if part.worker == worker and part.phase is Phase.SERVING and not part.assigned
        ]

    def worker_lost(self, worker: int) -> list[int]:
        """A worker's session ended: what it served, copied and finished is to be planned anew.

        Returns the partitions that it was finishing; they are to be released as they are.
        """
        self.ready.discard(worker)
        finishing = []
        for partition, part in list(self.parts.items()):
            if part.worker != worker:
                continue
            if part.phase is Phase.YIELDING:
                finishing.append(partition)
            elif part.phase is Phase.ACQUIRING:
                part.warm = False
            elif part.phase is not Phase.SERVING or part.assigned:
                del self.parts[partition]
        return finishing

    def count(self, *phases: Phase) -> int:
        """How many partitions are in these phases."""
        return sum(part.phase in phases for part in self.parts.values())
