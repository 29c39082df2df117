"""The stable ID of a defender: who takes which, and the lease by which it is held.

`decide` is the order of the decision, pure; `Claimant` carries it out by compare-and-set on the claim's
key; `Lease` keeps what was claimed.

    claiming ──compare-and-set──► held ──renewed every 2 s──► held
       ▲ │                         │ └──release──► released
       │ └──standby (waits)        └──deadline passed, or another holds the key──► fenced
       └────────┘

The lease is held until *start of the last successful request* + ``lease_held_s`` on the monotonic clock,
which is before the server lets the claim expire. Fenced is for ever: the process leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from runtime import log
from runtime.bucket import Bucket, Conflict, Entry
from runtime.bus import TRANSIENT, backoff_s
from runtime.errors import Fenced, SettingsError

if TYPE_CHECKING:
    from runtime.config import Settings

STANDBY_REREAD_S: Final = 1.0
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


class Claim(msgspec.Struct, frozen=True):
    """The value of a stable ID's key. *session* tells a pod's restarted process from the one before."""

    stable_id: str
    pod_uid: str
    pod_name: str
    track: str
    revision: str
    claimed_at: datetime
    session: str


class Standby(StrEnum):
    """Why a defender waits without an ID."""

    ROLLING_UPDATE = "holders of another revision of this track are still there"
    ENOUGH_HOLDERS = "as many defenders as MAX_DEFENDERS hold an ID"
    NONE_FREE = "no stable ID of ID_RANGE is free"


class Decision(msgspec.Struct, frozen=True):
    """Take *stable_id*, or stand by for the reason *standby*."""

    stable_id: str | None = None
    standby: Standby | None = None


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
) -> Decision:
    """What *pod* does, given who holds what. Pure.

    *claims* are the living claims by stable ID, *ids* the pod's candidates in order, *waiting* the UIDs
    of pods without an ID, in the order that all agree on: the k-th of them tries the k-th free ID, so
    that a thousand do not fight for one.
    """
    for claim in claims.values():
        if claim.pod_uid == pod.uid and claim.stable_id in ids:
            return Decision(claim.stable_id)
    track = [claim for claim in claims.values() if claim.track == pod.track]
    if any(claim.revision != pod.revision for claim in track):
        return Decision(standby=Standby.ROLLING_UPDATE)
    holders = {claim.stable_id for claim in track} | (claims.keys() & set(ids))
    if len(holders) >= holders_max:
        return Decision(standby=Standby.ENOUGH_HOLDERS)
    free = [one for one in ids if one not in claims][: holders_max - len(holders)]
    if not free:
        return Decision(standby=Standby.NONE_FREE)
    turn = waiting.index(pod.uid) if pod.uid in waiting else 0
    return Decision(free[turn % len(free)])


def decode_claims(entries: Mapping[str, Entry]) -> dict[str, Claim]:
    """The living claims of the bucket, by stable ID. A value that is no claim of ours is left out."""
    claims: dict[str, Claim] = {}
    for key, entry in entries.items():
        if entry.value is not None:
            with contextlib.suppress(msgspec.MsgspecError):
                claims[key] = msgspec.json.decode(entry.value, type=Claim)
    return claims


class Claimant:
    """Gets a stable ID for a pod, however long it takes.

    *waiting* reads the UIDs of the pods without an ID (asked only where several IDs are free); *clock*
    is monotonic, in seconds.
    """

    def __init__(
        self,
        bucket: Bucket,
        settings: Settings,
        *,
        random: Random,
        waiting: Callable[[], Awaitable[Sequence[str]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bucket = bucket
        self._settings = settings
        self._pod = Pod.of(settings)
        self._ids = candidates(settings.identity, settings.ids, settings.pod_name)
        self._random = random
        self._waiting = waiting
        self._clock = clock
        self._now = now

    async def claim(self, on_standby: Callable[[Standby], None] = lambda _: None) -> Lease:
        """The lease of an ID; waits as a standby until there is one. *on_standby* hears each new reason.

        Raises the TRANSIENT errors only for the first read; later ones are waited out.
        """
        changed = asyncio.Event()
        view = await self._bucket.watch(lambda _: changed.set(), reread_s=STANDBY_REREAD_S)
        standby: Standby | None = None
        attempt = 0
        try:
            while True:
                changed.clear()
                decision = await self._decide(view.entries)
                if decision.stable_id is not None:
                    lease = await self._take(decision.stable_id, view.entries)
                    if lease is not None:
                        return lease
                    await asyncio.sleep(backoff_s(attempt, 0.005, 0.2, self._random))
                    attempt += 1
                    with contextlib.suppress(*TRANSIENT):
                        await view.reread()
                    continue
                if decision.standby is not None and decision.standby is not standby:
                    standby = decision.standby
                    on_standby(standby)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STANDBY_REREAD_S):
                        await changed.wait()
        finally:
            await view.stop()

    async def _decide(self, entries: Mapping[str, Entry]) -> Decision:
        claims = decode_claims(entries)
        holders_max = self._settings.max_defenders
        decision = decide(claims, self._pod, self._ids, holders_max=holders_max)
        if decision.stable_id is None or self._waiting is None or holders_max == 1:
            return decision
        waiting = await self._waiting()
        return decide(claims, self._pod, self._ids, holders_max=holders_max, waiting=waiting)

    async def _take(self, chosen: str, entries: Mapping[str, Entry]) -> Lease | None:
        claim = Claim(
            stable_id=chosen,
            pod_uid=self._pod.uid,
            pod_name=self._pod.name,
            track=self._pod.track,
            revision=self._pod.revision,
            claimed_at=self._now(),
            session=f"{self._random.getrandbits(64):016x}",
        )
        known = entries.get(chosen)
        started_s = self._clock()
        try:
            value = msgspec.json.encode(claim)
            revision = await self._bucket.update(chosen, value, known.revision if known is not None else 0)
        except Conflict:
            return None
        except TRANSIENT as error:
            _LOG.warning("claim unanswered", stable_id=chosen, cause=str(error))
            return None
        return Lease(self._bucket, claim, revision, started_s, self._settings, clock=self._clock)


class LeaseState(Enum):
    """Where a lease is in its life."""

    HELD = "held"
    RELEASED = "released"
    FENCED = "fenced"


class Lease:
    """A claimed ID. `begin` starts the renewal, `release` gives the ID back.

    `deadline_s` is on the clock that the claimant was given: nothing may be published at or past it.
    """

    def __init__(
        self,
        bucket: Bucket,
        claim: Claim,
        revision: int,
        started_s: float,
        settings: Settings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.claim = claim
        self.revision = revision
        self.state = LeaseState.HELD
        self.renewed_s = started_s
        self.deadline_s = started_s + settings.lease_held_s
        self._value = msgspec.json.encode(claim)
        self._bucket = bucket
        self._settings = settings
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._cause = ""

    @property
    def stable_id(self) -> str:
        return self.claim.stable_id

    @property
    def age_s(self) -> float:
        """Seconds since the start of the last request that renewed it."""
        return self._clock() - self.renewed_s

    def begin(
        self,
        on_fenced: Callable[[Fenced], None],
        *,
        on_renewed: Callable[[float], None] = lambda _: None,
        healthy: Callable[[], bool] = lambda: True,
    ) -> None:
        """Renew from now on. *on_renewed* gets each new deadline, the present one at once.

        While *healthy* is false nothing is renewed: a supervisor whose workers hang loses its ID.
        *on_fenced* is called once, when the lease is lost.
        """
        on_renewed(self.deadline_s)
        self._task = asyncio.get_running_loop().create_task(self._keep(on_fenced, on_renewed, healthy))

    async def release(self) -> None:
        """Give the ID back, if it is still ours. A claim that cannot be deleted now expires by itself."""
        await self._stop_renewing()
        if self.state is not LeaseState.HELD:
            return
        self.state = LeaseState.RELEASED
        try:
            await self._bucket.delete(self.stable_id, self.revision)
        except (Conflict, *TRANSIENT) as error:
            _LOG.warning("claim not deleted; it expires", stable_id=self.stable_id, cause=str(error))

    async def _stop_renewing(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(
        self,
        on_fenced: Callable[[Fenced], None],
        on_renewed: Callable[[float], None],
        healthy: Callable[[], bool],
    ) -> None:
        try:
            while True:
                left_s = self.deadline_s - self._clock()
                await asyncio.sleep(max(0.0, min(self._settings.renew_s, left_s)))
                if self._clock() >= self.deadline_s:
                    raise Fenced(
                        f"{self.stable_id}: the lease ran out {self._clock() - self.deadline_s:.1f} s ago; "
                        "nothing more is published, start again"
                    )
                if healthy() and await self._renew():
                    on_renewed(self.deadline_s)
        except Exception as error:
            # Whatever ends the renewal ends the lease: better no owner for a while than two.
            self.state = LeaseState.FENCED
            on_fenced(error if isinstance(error, Fenced) else _broken(self.stable_id, error))

    async def _renew(self) -> bool:
        """One renewal; False when the server did not answer. Raises Fenced when another holds the ID."""
        started_s = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self.deadline_s - started_s)):
                self.revision = await self._compare_and_set()
        except (TimeoutError, *TRANSIENT) as error:
            if str(error) != self._cause:
                self._cause = str(error)
                left_s = self.deadline_s - self._clock()
                _LOG.warning("claim not renewed", left_s=round(left_s, 1), cause=self._cause)
            return False
        self._cause = ""
        self.renewed_s = started_s
        self.deadline_s = started_s + self._settings.lease_held_s
        return True

    async def _compare_and_set(self) -> int:
        try:
            return await self._bucket.update(self.stable_id, self._value, self.revision)
        except Conflict:
            entry = await self._bucket.get(self.stable_id)
            if entry is not None and entry.value == self._value and entry.revision > self.revision:
                # Our own renewal whose answer never came.
                return await self._update_again(entry)
            holder = "nobody" if entry is None or entry.value is None else _holder(entry.value)
            raise Fenced(f"{self.stable_id}: the claim was lost, {holder} holds it; start again") from None

    async def _update_again(self, entry: Entry) -> int:
        try:
            return await self._bucket.update(self.stable_id, self._value, entry.revision)
        except Conflict:
            raise Fenced(f"{self.stable_id}: the claim was lost while it was renewed; start again") from None


def _broken(stable_id: str, error: Exception) -> Fenced:
    fenced = Fenced(f"{stable_id}: the renewal of the claim broke: {error!r}; start again")
    fenced.__cause__ = error
    return fenced


def _holder(value: bytes) -> str:
    try:
        found: Any = msgspec.json.decode(value)
        return f"pod {found['pod_name']}"
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "somebody unknown"
