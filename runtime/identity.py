"""Who takes which stable ID.

`decide` is the order of the decision, pure; `Claimant` carries it out by compare-and-set on the claim's
key. What comes of it is a `Lease`.

    claiming ──compare-and-set──► held (a lease)
       ▲ │
       │ └──standby: waits for a change of the view
       └────────┘

Claimants in a crowd do not fight for one ID: the k-th of the waiting pods takes the k-th free one, in an
order that all see alike (of their first heartbeats), so a start of hundreds takes one attempt each.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from runtime import log
from runtime.bucket import Bucket, Conflict, Repair
from runtime.bus import TRANSIENT, backoff_s
from runtime.errors import DefenderError, JetStreamOff, SettingsError
from runtime.lease import Claim, Lease, LeaseState

if TYPE_CHECKING:
    from runtime.config import Settings
    from runtime.fleet_view import FleetView

__all__ = [
    "Claim",
    "Claimant",
    "Decision",
    "Lease",
    "LeaseState",
    "Pod",
    "Standby",
    "candidates",
    "decide",
    "stable_id",
]

STANDBY_REREAD_S: Final = 1.0
PACE_S: Final = 0.05
"""Between two decisions: while hundreds claim, each change would be one for every waiting pod."""
RANK_S: Final = 0.25
"""What a pod waits for each time that the pods before it in the queue could have taken all that is free."""
QUEUE_S_MAX: Final = 0.5
"""How long a pod waits to see its own heartbeat, and so its place in the queue."""
_LOG = log.get("identity")


class Pod(msgspec.Struct, frozen=True):
    """Who asks for an ID."""

    uid: str
    name: str
    track: str
    revision: str

    @classmethod
    def of(cls, settings: Settings) -> Pod:
        return cls(settings.pod_uid, settings.pod_name, settings.track, settings.revision)


class Standby(StrEnum):
    """Why a defender waits without an ID."""

    ROLLING_UPDATE = "holders of another revision of this track are still there"
    ENOUGH_HOLDERS = "as many defenders as MAX_DEFENDERS hold an ID"
    NONE_FREE = "no stable ID of ID_RANGE is free"
    DRAINED = "drained by an operator; defender drain --undo lets it take part again"
    SUCCESSION = "a defender of this track leaves, and may pass its ID on"
    RESERVED = "takes over the ID of a defender that leaves"
    RING_UNKNOWN = "the ring cannot be computed by this version, or with this PARTITIONS"


class Decision(msgspec.Struct, frozen=True):
    """Take *stable_id*, or stand by for the reason *standby*.

    *rank* is 0 for the pods whose turn it is; the others wait that many times longer, in case that one
    before them does not come.
    """

    stable_id: str | None = None
    standby: Standby | None = None
    rank: int = 0


def candidates(identity: str, ids: range, pod_name: str) -> list[str]:
    """The stable IDs that a pod may take, by its source of identity. Raises SettingsError."""
    if identity == "pod":
        return [pod_name]
    if identity == "ordinal":
        ordinal = pod_name.rpartition("-")[2]
        if not ordinal.isdecimal():
            problem = f"{pod_name!r} does not end in -<number>, as IDENTITY=ordinal needs; use IDENTITY=claim"
            raise SettingsError("POD_NAME", problem)
        if int(ordinal) not in ids:
            problem = f"has no {int(ordinal)}, the number of the pod {pod_name!r}; widen it"
            raise SettingsError("ID_RANGE", problem)
        return [stable_id(int(ordinal))]
    return [stable_id(number) for number in ids]


def stable_id(number: int) -> str:
    return f"defender-{number}"


def decide(
    claims: Mapping[str, Claim],
    pod: Pod,
    ids: Sequence[str],
    *,
    holders_max: int,
    waiting: Sequence[str] = (),
    ring_members: Collection[str] = (),
    identity: str = "claim",
    hold: Standby | None = None,
    kept: Collection[str] = (),
) -> Decision:
    """What *pod* does, given who holds what. Pure. Raises SettingsError when its UID is another pod's too.

    *claims* are the living claims by stable ID, *ids* the pod's candidates in order, *waiting* the UIDs
    of pods without an ID, in the order that all agree on, *ring_members* the IDs of the committed ring,
    *hold* a reason to take nothing that is not ours already, *kept* IDs that their holders have lost with
    the bucket and will write again.

    A vacancy, an ID of the ring that nobody holds, is taken by a pod of any revision: that changes nothing
    in the ring. Anything else would enlarge it, which a rolling update must not.
    """
    own = own_claim(claims, pod, ids)
    if own is not None:
        return Decision(own)
    if hold is not None:
        return Decision(standby=hold)
    open_ids = [one for one in ids if one not in claims and one not in kept]
    if identity != "claim":
        return Decision(open_ids[0]) if open_ids else Decision(standby=Standby.NONE_FREE)
    track = [claim for claim in claims.values() if claim.track == pod.track]
    mine = set(ids)
    holders = {claim.stable_id for claim in track} | (claims.keys() & mine) | (mine & set(kept))
    room = holders_max - len(holders)
    vacancies = [one for one in open_ids if one in ring_members][: max(0, room)]
    if vacancies:
        return _in_turn(vacancies, pod, waiting)
    if any(claim.revision != pod.revision for claim in track):
        return Decision(standby=Standby.ROLLING_UPDATE)
    if not open_ids:
        return Decision(standby=Standby.NONE_FREE)
    if room <= 0:
        return Decision(standby=Standby.ENOUGH_HOLDERS)
    return _in_turn(open_ids[:room], pod, waiting)


def own_claim(claims: Mapping[str, Claim], pod: Pod, ids: Collection[str]) -> str | None:
    """The ID that the pod's UID holds already. Raises SettingsError when that is another pod's."""
    for claim in claims.values():
        if claim.pod_uid == pod.uid and claim.stable_id in ids:
            if claim.pod_name != pod.name:
                problem = (
                    f"{pod.uid!r} is that of the pod {claim.pod_name!r} too, which holds {claim.stable_id}"
                )
                remedy = "give each pod its own, as metadata.uid of the downward API does"
                raise SettingsError("POD_UID", f"{problem} (this pod is {pod.name!r}): {remedy}")
            return claim.stable_id
    return None


def _in_turn(free: Sequence[str], pod: Pod, waiting: Sequence[str]) -> Decision:
    turn = waiting.index(pod.uid) if pod.uid in waiting else len(waiting)
    return Decision(free[turn % len(free)], rank=turn // len(free))


class Claimant:
    """Gets a stable ID for a pod, however long it takes.

    It decides by *view* alone, and writes to *bucket*. *session* tells this process from the pod's others,
    as in its heartbeats; *clock* is monotonic, in seconds; *repair* makes a missing bucket anew.
    """

    def __init__(
        self,
        bucket: Bucket,
        settings: Settings,
        view: FleetView,
        *,
        random: Random,
        session: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        repair: Repair | None = None,
    ) -> None:
        self.attempts = 0
        """Claims that were tried."""
        self._bucket = bucket
        self._settings = settings
        self._view = view
        self._pod = Pod.of(settings)
        self._ids = candidates(settings.identity, settings.ids, settings.pod_name)
        self._random = random
        self._session = session or f"{random.getrandbits(64):016x}"
        self._clock = clock
        self._now = now
        self._repair = repair
        self._hold: Standby | None = None
        self._changed = asyncio.Event()

    def hold(self, reason: Standby | None) -> None:
        """Take nothing but what is ours already, for this *reason*; None ends that.

        For a pod that is to succeed another (RESERVED), or that an operator drained (DRAINED).
        """
        self._hold = reason
        self._changed.set()

    async def claim(self, on_standby: Callable[[Standby], None] = lambda _: None) -> Lease:
        """The lease of an ID; waits as a standby until there is one. *on_standby* hears each new reason.

        Raises SettingsError when the pod's UID is another's too.
        """
        cancel = self._view.subscribe(lambda _: self._changed.set())
        begun_s = self._clock()
        standby: Standby | None = None
        last, since_s, failures = Decision(), begun_s, 0
        try:
            while True:
                self._changed.clear()
                decision, now_s = self.decision(), self._clock()
                if decision != last:
                    last, since_s = decision, now_s
                wait_s = STANDBY_REREAD_S
                if decision.stable_id is not None:
                    wait_s = since_s + decision.rank * RANK_S - now_s
                    if not self._knows_its_turn():
                        wait_s = max(wait_s, begun_s + QUEUE_S_MAX - now_s)
                    if wait_s <= 0:
                        lease = await self._take(decision.stable_id)
                        if lease is not None:
                            return lease
                        wait_s = backoff_s(failures, 0.005, 0.2, self._random)
                        failures += 1
                elif decision.standby is not standby and decision.standby is not None:
                    standby = decision.standby
                    on_standby(standby)
                await self._pause(wait_s)
        finally:
            cancel()

    def decision(self) -> Decision:
        """What the pod does now. Raises SettingsError as `decide`."""
        view, settings = self._view, self._settings
        if view.layout is None and view.ring is not None and view.ring.revision == view.ring_revision:
            return Decision(standby=Standby.RING_UNKNOWN)
        return decide(
            {key: seen.value for key, seen in view.claims.items()},
            self._pod,
            self._ids,
            holders_max=settings.holders_max,
            waiting=view.waiting(settings.track),
            ring_members=view.ring.value.members if view.ring is not None else (),
            identity=settings.identity,
            hold=self._hold or (Standby.SUCCESSION if view.has_draining(settings.track) else None),
            kept=view.kept(),
        )

    def _knows_its_turn(self) -> bool:
        """Whether nobody else can want the same ID, or our own heartbeat tells our place among them."""
        if len(self._ids) == 1 or self._settings.holders_max == 1 or self._pod.uid in self._view.held:
            return True
        return self._pod.uid in self._view.beats

    async def _pause(self, wait_s: float) -> None:
        """Until something changes, *wait_s* at most and PACE_S at least, or *wait_s* if that is shorter."""
        started_s = self._clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        left_s = min(PACE_S, wait_s) - (self._clock() - started_s)
        if left_s > 0:
            await asyncio.sleep(left_s)

    async def _take(self, chosen: str) -> Lease | None:
        settings, known = self._settings, self._view.claim_entries.get(chosen)
        claim = Claim(
            stable_id=chosen,
            pod_uid=self._pod.uid,
            pod_name=self._pod.name,
            track=self._pod.track,
            revision=self._pod.revision,
            claimed_at=self._now(),
            session=self._session,
            weight=settings.ring_weight,
            joins=settings.ring_join == "auto",
        )
        self.attempts += 1
        started_s = self._clock()
        try:
            value = msgspec.json.encode(claim)
            revision = await self._bucket.update(chosen, value, known.revision if known is not None else 0)
        except Conflict:
            with contextlib.suppress(*TRANSIENT):
                await self._view.reread_claim(chosen)
            return None
        except TRANSIENT as error:
            _LOG.warning("claim unanswered", stable_id=chosen, cause=str(error))
            if isinstance(error, JetStreamOff):
                await self._repaired()
            return None
        return Lease(
            self._bucket, claim, revision, started_s, settings, clock=self._clock, repair=self._repair
        )

    async def _repaired(self) -> None:
        if self._repair is None:
            return
        try:
            await self._repair()
        except DefenderError as error:
            _LOG.error("the bucket cannot be made anew", bucket=self._bucket.name, cause=str(error))
        await asyncio.sleep(self._settings.renew_s)
