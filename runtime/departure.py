"""How a holder leaves: whom its partitions go to, and when it has waited long enough.

    SIGTERM, drain ──► DRAINING ─┬─ a standby accepts: the claim is passed on, it asks for each partition ─┐
                                 ├─ LEAVING: the ring goes on without us, the new owners ask ──────────────┤
                                 └─ nobody to hand to ─────────────────────────────────────────────────────┤
                                                                                                           ▼
                                                             what is left is drained and released ──► gone

Until somebody asks, and while time is left, everything is served as before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from runtime import control, log
from runtime.bus import TRANSIENT, Connection
from runtime.config import Identity
from runtime.control import NobodyListens
from runtime.errors import Fenced
from runtime.identity import Claim, Lease
from runtime.membership import Heartbeat, State
from runtime.pool import Pool
from runtime.steward import Steward

if TYPE_CHECKING:
    from runtime.config import Settings
    from runtime.fleet_view import FleetView

RELEASE_S: Final = 1.5
"""Of the time to leave, what is kept for draining and releasing what nobody asked for."""
MARGIN_S: Final = 0.5
"""Before the end of a lease that is passed on, when everything must be released."""
STARTING_S: Final = 1.5
"""Of the time to leave, what must be left for a successor that is still starting to be waited for."""
STAYING: Final = (State.STARTING, State.STANDBY, State.ACTIVE)
_LOG = log.get("departure")


class Departure:
    """One departure of a holder. *enter* tells the fleet of a new state."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        view: FleetView,
        lease: Lease,
        steward: Steward,
        stop_steward: Callable[[], Awaitable[None]],
        pool: Pool,
        enter: Callable[[State], Awaitable[None]],
    ) -> None:
        self._settings, self._connection, self._view = settings, connection, view
        self._lease, self._steward, self._stop_steward, self._pool = lease, steward, stop_steward, pool
        self._enter = enter
        self.passed_on = False

    async def leave(self, deadline_s: float, wait_s: float) -> None:
        """Hands over what there is time for, releases the rest, gives the ID back. *deadline_s* is monotonic;
        for *wait_s* a standby may appear.

        It may be cancelled, and begun again with another deadline (SIGTERM in an operator's drain), or ended
        by `finish` (a second SIGTERM).
        """
        hand_over_s = deadline_s - RELEASE_S
        if self._hands_over():
            passes = self._settings.identity is Identity.CLAIM
            if self.passed_on or (passes and await self._pass_on(hand_over_s, wait_s)):
                # The lease that we have is the last one.
                deadline_s = min(deadline_s, self._lease.deadline_s - MARGIN_S)
                await self._wait_empty(deadline_s - RELEASE_S)
            elif self._settings.identity is Identity.POD or not self._is_updating():
                await self._enter(State.LEAVING)
                await self._wait_empty(hand_over_s)
        await self.finish(deadline_s)

    async def finish(self, deadline_s: float) -> None:
        """Drains what is still served, releases it, ends the workers, gives the ID back."""
        await self._stop_steward()
        positions = await self._pool.drain(deadline_s)
        ownership = self._steward.ownership
        try:
            async with asyncio.timeout(max(0.5, deadline_s - time.monotonic())):
                if ownership.held:
                    _LOG.info("releasing", partitions=len(ownership.held))
                await ownership.release_all(positions)
                await ownership.close()
        except (TimeoutError, Fenced, *TRANSIENT) as error:
            _LOG.warning("partitions not released; the next owner takes them", cause=str(error))
        await self._lease.release()

    # --- to whom --------------------------------------------------------------------------------

    def _hands_over(self) -> bool:
        """Whether there is anything to hand over and anybody to take it."""
        if self._settings.identity is Identity.ORDINAL:
            return False  # the successor has our name, and starts when we are gone
        return self._anybody_stays() and bool(self._steward.serving)

    def _anybody_stays(self) -> bool:
        """Whether there are pods that do not leave, too."""
        return any(
            uid != self._settings.pod_uid and seen.value.state in STAYING
            for uid, seen in self._view.beats.items()
        )

    def _is_updating(self) -> bool:
        """Whether pods of another revision of our track are around: our replacement comes."""
        return any(
            seen.value.track == self._settings.track and seen.value.revision != self._settings.revision
            for seen in self._view.beats.values()
        )

    async def _pass_on(self, hand_over_s: float, wait_s: float) -> bool:
        """Passes the claim to a standby; waits for one to appear as long as that makes sense."""
        patience_s = min(hand_over_s, time.monotonic() + wait_s)
        refused: set[str] = set()
        while True:
            for beat in self._standbys():
                if beat.pod_uid not in refused:
                    if await self._pass_to(beat):
                        return True
                    refused.add(beat.pod_uid)
            now_s = time.monotonic()
            starting = self._is_starting() and now_s < hand_over_s - STARTING_S
            if now_s >= patience_s and not starting:
                return False
            if not self._anybody_stays():
                return False
            await asyncio.sleep(0.05)
            if now_s >= patience_s:
                refused.clear()

    def _standbys(self) -> list[Heartbeat]:
        """Standbys of our track, the replacements of a rolling update first, then who has waited longest."""
        settings = self._settings
        found = [
            seen.value
            for uid, seen in self._view.beats.items()
            if seen.value.state is State.STANDBY
            and seen.value.warm
            and seen.value.track == settings.track
            and self._is_fresh(uid)
        ]
        return sorted(found, key=lambda beat: (beat.revision == settings.revision, beat.joined))

    def _is_starting(self) -> bool:
        """Whether a pod of our track is on its way to become a standby."""
        return any(
            seen.value.state is State.STARTING or (seen.value.state is State.STANDBY and not seen.value.warm)
            for uid, seen in self._view.beats.items()
            if seen.value.track == self._settings.track and self._is_fresh(uid)
        )

    def _is_fresh(self, pod_uid: str) -> bool:
        """Whether at most one heartbeat of the pod is missing."""
        return self._view.silent_s(pod_uid) < 2 * self._settings.renew_s + 0.5

    async def _pass_to(self, beat: Heartbeat) -> bool:
        """Whether the standby accepts, and the claim is its own now."""
        settings, claim = self._settings, self._lease.claim
        request = control.Succeed(claim.stable_id, settings.pod_uid)
        subject = settings.names.pod(beat.pod_uid)
        try:
            answer = await control.ask(
                self._connection, subject, request, timeout_s=min(1.0, settings.request_timeout_s)
            )
        except (NobodyListens, *TRANSIENT) as error:
            _LOG.info("a standby did not answer", pod=beat.pod_name, cause=str(error))
            return False
        if not isinstance(answer, control.Accepted):
            return False
        successor = Claim(
            stable_id=claim.stable_id,
            pod_uid=beat.pod_uid,
            pod_name=beat.pod_name,
            track=beat.track,
            revision=beat.revision,
            claimed_at=beat.at,
            session=beat.session,
            weight=claim.weight,
            joins=claim.joins,
        )
        if not await self._lease.pass_on(successor):
            return False
        self.passed_on = True
        self._steward.let_go()
        _LOG.info("passed on", stable_id=claim.stable_id, pod=beat.pod_name)
        return True

    async def _wait_empty(self, hand_over_s: float) -> None:
        """Until everything is taken, or the time is over."""
        emptied = asyncio.create_task(self._steward.empty())
        try:
            while not emptied.done() and time.monotonic() < hand_over_s and self._anybody_stays():
                await asyncio.wait([emptied], timeout=0.1)
        finally:
            emptied.cancel()
        if self._steward.serving:
            _LOG.warning("not everything was asked for in time", partitions=self._steward.serving)
