"""The claim of a stable ID, and the lease by which its holder keeps it.

    held ──renewed every 2 s──► held ──release──► released
      ├──pass_on──► passed      (the successor's claim stands in the key; the deadline stays what it was)
      └──deadline passed, another holds the key, or it was deleted──► fenced

The lease is held until *start of the last successful request* + ``lease_held_s`` on the monotonic clock,
which is before the server lets the claim expire. Fenced is for ever: the process leaves.

A bucket that lost the key without a trace was made anew: then the claim is written again. A deletion
leaves a marker, which tells that the holder was deposed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from runtime import log
from runtime.bucket import Bucket, Conflict, Repair
from runtime.bus import TRANSIENT
from runtime.errors import DefenderError, Fenced, JetStreamOff
from runtime.records import Weight

if TYPE_CHECKING:
    from runtime.config import Settings

PASS_RETRY_S = 0.05
_LOG = log.get("lease")


class Claim(msgspec.Struct, frozen=True):
    """The value of a stable ID's key. *session* tells a pod's restarted process from the one before."""

    stable_id: str
    pod_uid: str
    pod_name: str
    track: str
    revision: str
    claimed_at: datetime
    session: str
    weight: Weight = 1.0
    joins: bool = True
    """Whether the ID joins the ring by itself (RING_JOIN)."""


class LeaseState(Enum):
    """Where a lease is in its life."""

    HELD = "held"
    PASSED = "passed"
    RELEASED = "released"
    FENCED = "fenced"


class Lease:
    """A claimed ID. `begin` starts the renewal, `release` gives the ID back, `pass_on` to a successor.

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
        repair: Repair | None = None,
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
        self._repair = repair
        self._repaired_s = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._cause = ""
        self._on_fenced: Callable[[Fenced], None] | None = None
        self._on_renewed: Callable[[float], None] = lambda _: None
        self._healthy: Callable[[], bool] = lambda: True

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
        self._on_fenced, self._on_renewed, self._healthy = on_fenced, on_renewed, healthy
        on_renewed(self.deadline_s)
        self._go_on()

    async def release(self) -> None:
        """Give the ID back, if it is still ours. A claim that cannot be deleted now expires by itself."""
        await self._stop_renewing()
        if self.state is not LeaseState.HELD:
            return
        self.state = LeaseState.RELEASED
        try:
            await self._delete()
        except (Conflict, *TRANSIENT) as error:
            _LOG.warning("claim not deleted; it expires", stable_id=self.stable_id, cause=str(error))

    async def _delete(self) -> None:
        try:
            await self._bucket.delete(self.stable_id, self.revision)
        except Conflict:
            # The renewal that was broken off may have been stored.
            entry = await self._bucket.get_from_leader(self.stable_id)
            if entry is None or entry.value != self._value:
                raise
            await self._bucket.delete(self.stable_id, entry.revision)

    async def pass_on(self, successor: Claim) -> bool:
        """Write the successor's claim in place of ours, after one more renewal: that is our last deadline.

        *successor* has the session of the standby's heartbeat; the standby takes the ID as its own. False
        when the server did not answer the renewal: the lease is held and renewed as before. Raises Fenced
        when the lease was lost, or ran out while it was not known who holds the ID.
        """
        await self._stop_renewing()
        if self.state is not LeaseState.HELD:
            raise Fenced(f"{self.stable_id}: the lease is {self.state.value}; there is nothing to pass on")
        try:
            if not await self._renew():
                self._go_on()
                return False
            self._on_renewed(self.deadline_s)
            await self._write_successor(successor)
        except Fenced:
            self.state = LeaseState.FENCED
            raise
        except asyncio.CancelledError:
            self._go_on()
            raise
        self.state = LeaseState.PASSED
        return True

    async def _write_successor(self, successor: Claim) -> None:
        """Until it is known that it stands; a write that was not answered may have happened."""
        value = msgspec.json.encode(successor)
        while self._clock() < self.deadline_s:
            try:
                self.revision = await self._bucket.update(self.stable_id, value, self.revision)
                return
            except Conflict:
                pass
            except TRANSIENT as error:
                _LOG.warning("passing on the claim is unanswered", stable_id=self.stable_id, cause=str(error))
            with contextlib.suppress(*TRANSIENT):
                entry = await self._bucket.get_from_leader(self.stable_id)
                if entry is not None and entry.value == self._value:
                    self.revision = entry.revision
                elif entry is not None and _pod_uid(entry.value) == successor.pod_uid:
                    self.revision = entry.revision
                    return
                else:
                    raise self._lost(entry.value if entry is not None else None)
            await asyncio.sleep(PASS_RETRY_S)
        raise self._ran_out()

    # --- renewal --------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._on_fenced is not None:
            self._task = asyncio.get_running_loop().create_task(self._keep(self._on_fenced))

    async def _stop_renewing(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self, on_fenced: Callable[[Fenced], None]) -> None:
        try:
            while True:
                left_s = self.deadline_s - self._clock()
                await asyncio.sleep(max(0.0, min(self._settings.renew_s, left_s)))
                if self._clock() >= self.deadline_s:
                    raise self._ran_out()
                if self._healthy() and await self._renew():
                    self._on_renewed(self.deadline_s)
        except Exception as error:
            # Whatever ends the renewal ends the lease: better no owner for a while than two.
            self.state = LeaseState.FENCED
            on_fenced(error if isinstance(error, Fenced) else _broken(self.stable_id, error))

    async def _renew(self) -> bool:
        """One renewal; False when the server did not answer. Raises Fenced when another holds the ID."""
        started_s = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self.deadline_s - started_s)):
                self.revision = await self._compare_and_set_repairing()
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

    async def _compare_and_set_repairing(self) -> int:
        try:
            return await self._compare_and_set()
        except JetStreamOff:
            if not await self._repaired():
                raise
        return await self._compare_and_set()

    async def _repaired(self) -> bool:
        """Whether the bucket, which was missing, was made anew; tried every RENEW_S at most."""
        now_s = self._clock()
        if self._repair is None or now_s - self._repaired_s < self._settings.renew_s:
            return False
        self._repaired_s = now_s
        try:
            await self._repair()
        except DefenderError as error:
            _LOG.error("a missing bucket cannot be made anew", bucket=self._bucket.name, cause=str(error))
            return False
        _LOG.error("the bucket of stable IDs was gone; it is made anew", bucket=self._bucket.name)
        return True

    async def _compare_and_set(self) -> int:
        try:
            return await self._bucket.update(self.stable_id, self._value, self.revision)
        except Conflict:
            entry = await self._bucket.get_from_leader(self.stable_id)
        if entry is not None and entry.value != self._value:
            raise self._lost(entry.value)
        # Our own renewal whose answer never came; or a bucket that was made anew and never heard of us.
        try:
            return await self._bucket.update(self.stable_id, self._value, entry.revision if entry else 0)
        except Conflict:
            raise Fenced(f"{self.stable_id}: the claim was lost while it was renewed; start again") from None

    # --- how it ends ----------------------------------------------------------------------------

    def _ran_out(self) -> Fenced:
        return Fenced(
            f"{self.stable_id}: the lease ran out {self._clock() - self.deadline_s:.1f} s ago; "
            "nothing more is published, start again"
        )

    def _lost(self, value: bytes | None) -> Fenced:
        if value is None:
            return Fenced(
                f"{self.stable_id}: the claim was deleted: the leader held this pod for dead, or an operator "
                "gave the ID free; start again"
            )
        lost = f"{self.stable_id}: the claim was lost"
        if _pod_uid(value) == self.claim.pod_uid:
            return Fenced(
                f"{lost} to another process of the same POD_UID ({self.claim.pod_uid}): this container was "
                "started again; if not, give each pod a POD_UID of its own"
            )
        return Fenced(f"{lost}, {_holder(value)} holds it; start again")


def _broken(stable_id: str, error: Exception) -> Fenced:
    fenced = Fenced(f"{stable_id}: the renewal of the claim broke: {error!r}; start again")
    fenced.__cause__ = error
    return fenced


def _field(value: bytes | None, name: str) -> str:
    try:
        found: Any = msgspec.json.decode(value or b"")
        return str(found[name])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, IndexError):
        return ""


def _pod_uid(value: bytes | None) -> str:
    return _field(value, "pod_uid")


def _holder(value: bytes) -> str:
    name = _field(value, "pod_name")
    return f"pod {name}" if name else "somebody unknown"
