"""The leader: the one pod that changes the ring and declares others dead.

    candidate ──compare-and-set on a key that is free──► leading ──renewed every renew_s──► leading
        ▲                                                  │
        └── deadline passed, or another wrote the key ─────┤
                                                           └──resign──► the key is deleted, another takes it

A term lasts until *start of the last successful request* + half of ``leader_ttl_s`` on the monotonic clock.
When that long nothing has been heard of it, another takes the key, which the server would let expire only
later. Two that both believe to lead do no harm: each of their writes is a
compare-and-set on what they saw. The revision of the write that won the key is the term.

What to write is decided by `policy`; here it is carried out, after a look at the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from runtime import log
from runtime.bucket import Bucket, Conflict
from runtime.bus import TRANSIENT, ApiError, Connection
from runtime.fleet_view import LEADER_KEY, FleetView
from runtime.membership import State
from runtime.policy import (
    Commit,
    Depose,
    Forgotten,
    Holder,
    Limits,
    Order,
    OutageWatch,
    Policy,
    Situation,
    problem_of,
)
from runtime.records import FORGET_PREFIX, RING_KEY

if TYPE_CHECKING:
    from runtime.config import Settings

HELD: Final = 1 / 2
"""The share of leader_ttl_s that a term lasts from the start of the request that renewed it."""
MARGIN_S: Final = 0.25
"""Added by those who wait for a term's end: clocks differ a little in their pace."""
LATE_S: Final = 1.0
"""How late a heartbeat may come; past that it is missing."""
STEP_S: Final = 0.25
RETRY_S: Final = 0.2
HESITATE_S_MAX: Final = 0.1
"""Candidates wait for a random time up to this before they try: most see that another was faster."""
SEEN_S_MAX: Final = 1.0
"""How long a commit waits until this pod's own view shows it."""
RESIGN_S_MAX: Final = 1.0
_LOG = log.get("leader")
_EXPECTED: Final = (Conflict, ApiError, *TRANSIENT)


class Lead(Struct, frozen=True):
    """The value of the key ``leader``. *term* is 0 in the write that won it: its revision is the term."""

    pod_uid: str
    pod_name: str
    session: str
    since: datetime
    term: int = 0
    mass_loss: bool = False
    remarks: list[str] = []
    """Why nothing is changed though something should be."""


class Leadership(Struct, frozen=True):
    """A pod's part in leading, for its HTTP page and its metrics. Counters since its start."""

    leading: bool
    term: int
    mass_loss: bool
    remarks: list[str]
    outage: bool
    aftermath_s: float
    elections: int
    commits: int
    deposed: int


def limits_of(settings: Settings) -> Limits:
    return Limits(
        holders_max=settings.holders_max,
        settle_s=settings.settle_s,
        hold_down_s=settings.hold_down_s,
        silence_s=settings.silence_s,
        renew_s=settings.renew_s,
    )


class Leader:
    """One pod's candidature and, when it won, its leading. `begin` and `resign` may alternate.

    *session* tells this process from others; while *eligible* is false the pod does not lead. *clock* is
    monotonic, and must be the view's.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        view: FleetView,
        *,
        session: str,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        eligible: Callable[[], bool] = lambda: True,
    ) -> None:
        self.elections = self.commits = self.deposed = 0
        self._settings, self._view, self._session, self._random = settings, view, session, random
        self._clock, self._eligible = clock, eligible
        timeout_s = settings.request_timeout_s
        self._key = Bucket(connection, settings.nats_kv_leader, random=random, timeout_s=timeout_s)
        self._claims = Bucket(connection, settings.nats_kv_stable_ids, random=random, timeout_s=timeout_s)
        self._records = Bucket(connection, settings.nats_kv_assignments, random=random, timeout_s=timeout_s)
        renew_s = settings.renew_s
        self._watch = OutageWatch(
            missed_s=renew_s + LATE_S, limit_s=2 * renew_s + LATE_S, after_s=settings.lease_ttl_s
        )
        self._lead: Lead | None = None
        self._revision = 0
        self._deadline_s = 0.0
        self._not_before_s = 0.0
        self._policy = Policy(settings.names, limits_of(settings))
        self._told: set[str] = set()
        self._causes: dict[str, str] = {}
        self._news, self._key_news = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] = lambda: None

    @property
    def leading(self) -> bool:
        """Whether this pod leads now. False from its deadline on, whatever it was doing meanwhile."""
        return self._lead is not None and self._clock() < self._deadline_s

    @property
    def term(self) -> int:
        """The term that this pod leads; 0 when it does not."""
        return self._lead.term if self._lead is not None and self.leading else 0

    @property
    def leadership(self) -> Leadership:
        leading = self.leading
        return Leadership(
            leading=leading,
            term=self.term,
            mass_loss=leading and self._policy.mass_loss,
            remarks=list(self._policy.remarks) if leading else [],
            outage=self._watch.outage,
            aftermath_s=self._watch.aftermath_s,
            elections=self.elections,
            commits=self.commits,
            deposed=self.deposed,
        )

    def begin(self) -> None:
        """Stand for election from now on, and lead when it is won. Without effect if it does already."""
        if self._tasks:
            return
        self._unsubscribe = self._view.subscribe(self._notice)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._for_ever("leader's lease", self._stand)),
            loop.create_task(self._for_ever("leader's policy", self._drive)),
        ]

    async def resign(self) -> None:
        """Lead no more, and let another take over at once. Also ends the candidature."""
        self._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        try:
            async with asyncio.timeout(RESIGN_S_MAX):
                await self._give_up_key()
        except TimeoutError:
            _LOG.warning("leader's key not deleted; it expires", cause="the server did not answer")

    # --- the lease ------------------------------------------------------------------------------

    def _notice(self, kind: str) -> None:
        if kind == "leader":
            self._key_news.set()
        elif kind != "records":
            self._news.set()

    async def _for_ever(self, what: str, turn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One turn after the other. What goes wrong is logged once a cause, and ends nothing."""
        while True:
            try:
                await turn()
                self._causes.pop(what, None)
            except _EXPECTED as error:
                self._log_cause(what, error)
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                # A fault of ours: another pod, perhaps of another version, may do better.
                self._log_cause(what, error, broken=True)
                self._not_before_s = self._clock() + self._settings.leader_ttl_s
                self._key_news.set()
                await asyncio.sleep(RETRY_S)

    def _log_cause(self, what: str, error: Exception, *, broken: bool = False) -> None:
        cause = str(error) or repr(error)
        if self._causes.get(what) == cause:
            return
        self._causes[what] = cause
        if broken:
            _LOG.error("leading broke; another pod has its turn", what=what, exc=error)
        else:
            _LOG.warning("not written, tried again", what=what, cause=cause)

    async def _stand(self) -> None:
        """One turn of the candidature, or of the renewal."""
        if self._lead is None:
            await self._wait_for(self._key_news, STEP_S)
            if self._is_free() and self._may_lead():
                await asyncio.sleep(self._random.uniform(0.0, HESITATE_S_MAX))
                if self._is_free() and self._may_lead():
                    await self._elect()
        elif not self.leading:
            self._lose("the deadline passed before the lease was renewed")
        elif not self._may_lead():
            await self._give_up_key()
        else:
            await self._renew(self._lead)
            await self._wait_for(self._key_news, self._settings.renew_s)

    def _may_lead(self) -> bool:
        if not self._eligible() or self._clock() < self._not_before_s:
            return False
        ring = self._view.ring
        problem = problem_of(ring.value, self._settings.names) if ring is not None else ""
        if problem and self._causes.get("candidature") != problem:
            _LOG.error("cannot lead", why=problem)
        self._causes["candidature"] = problem
        return not problem

    def _is_free(self) -> bool:
        """Whether nobody has the key, or we ourselves: an election or a renewal whose answer never came. Or
        its term is over: nothing was heard of it for so long that its leader has stopped leading."""
        standing = self._view.leader
        if standing is None or self._is_ours(standing.value):
            return True
        silent_s = self._clock() - standing.arrived_s
        return silent_s > HELD * self._settings.leader_ttl_s + MARGIN_S and not self._watch.outage

    def _is_ours(self, value: bytes) -> bool:
        try:
            return msgspec.json.decode(value, type=Lead).session == self._session
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False

    async def _elect(self) -> None:
        settings, standing = self._settings, self._view.leader
        lead = Lead(settings.pod_uid, settings.pod_name, self._session, datetime.now(UTC))
        value, started_s = msgspec.json.encode(lead), self._clock()
        # Already ours for `resign`, in case it comes before the answer; not leading yet.
        self._lead, self._deadline_s = lead, -math.inf
        try:
            if standing is None:
                revision = await self._key.create(LEADER_KEY, value)
            else:
                revision = await self._key.update(LEADER_KEY, value, standing.revision)
        except (Conflict, ApiError, *TRANSIENT) as error:
            self._lead = None
            if isinstance(error, Conflict):
                return
            raise
        self._policy = Policy(settings.names, limits_of(settings))
        self._told.clear()
        self._lead, self._revision = msgspec.structs.replace(lead, term=revision), revision
        self._deadline_s = started_s + HELD * settings.leader_ttl_s
        self.elections += 1
        self._news.set()
        _LOG.info("leading", term=revision)

    async def _renew(self, lead: Lead) -> None:
        remarks, mass_loss = list(self._policy.remarks), self._policy.mass_loss
        lead = msgspec.structs.replace(lead, remarks=remarks, mass_loss=mass_loss)
        started_s = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self._deadline_s - started_s)):
                revision = await self._key.update(LEADER_KEY, msgspec.json.encode(lead), self._revision)
        except Conflict:
            self._lose("another wrote the key")
            return
        except TimeoutError:
            return
        self._lead, self._revision = lead, revision
        self._deadline_s = started_s + HELD * self._settings.leader_ttl_s

    def _lose(self, why: str) -> None:
        if self._lead is not None:
            _LOG.warning("leading no more", term=self._lead.term, why=why)
        self._lead = None

    async def _give_up_key(self) -> None:
        """Delete the key if it is ours. One that cannot be deleted expires."""
        lead, self._lead = self._lead, None
        if lead is None:
            return
        _LOG.info("leading no more", term=lead.term, why="resigned")
        try:
            try:
                await self._key.delete(LEADER_KEY, self._revision)
            except Conflict:
                # A renewal of ours may have been under way.
                entry = await self._key.get(LEADER_KEY)
                if entry is not None and entry.value is not None and self._is_ours(entry.value):
                    await self._key.delete(LEADER_KEY, entry.revision)
        except _EXPECTED as error:
            _LOG.warning("leader's key not deleted; it expires", cause=str(error))

    # --- what it does ---------------------------------------------------------------------------

    async def _drive(self) -> None:
        """One turn of the policy."""
        await self._wait_for(self._news, STEP_S)
        now_s = self._clock()
        own = self._view.beats.get(self._settings.pod_uid)
        self._watch.step(now_s, now_s - own.arrived_s if own is not None else math.inf)
        if not self.leading:
            return
        await self._write_again()
        policy = self._policy
        ring_revision = self._view.ring_revision
        orders = policy.step(self._situation(now_s))
        self._tell(policy)
        for order in orders:
            if not self.leading or self._policy is not policy:
                return
            await self._carry_out(order, ring_revision)

    async def _write_again(self) -> None:
        """What operators said, where the bucket has lost it."""
        for key, value in list(self._view.lost.items()):
            with contextlib.suppress(Conflict):
                await self._records.create(key, value)
                _LOG.error("an operator's word was lost with its bucket, and is written again", key=key)

    def _situation(self, now_s: float) -> Situation:
        view, frozen = self._view, self._view.frozen
        members = view.ring.value.members if view.ring is not None else {}
        holders = {}
        for stable_id, seen in view.claims.items():
            claim, beat = seen.value, view.beats.get(seen.value.pod_uid)
            holders[stable_id] = Holder(
                stable_id=stable_id,
                pod_uid=claim.pod_uid,
                track=claim.track,
                weight=claim.weight,
                joins=claim.joins,
                # One that took its heartbeat away has left, though its claim could not be deleted: it does
                # not join. If it is a member, its ID is for a successor, as that of any silent one.
                leaving=claim.pod_uid in view.departed and stable_id not in members
                if beat is None
                else beat.value.state is State.LEAVING,
                silent_s=view.silent_s(claim.pod_uid),
                claim_revision=seen.revision,
            )
        return Situation(
            now_s=now_s,
            holders=holders,
            ring=view.ring.value if view.ring is not None else None,
            is_stored=view.ring is None or view.ring.revision == view.ring_revision,
            tracks=view.tracks,
            frozen=f"{frozen.by}: {frozen.reason}" if frozen is not None else "",
            forget=view.forget,
            outage=self._watch.outage,
            aftermath=self._watch.aftermath,
            version_seen=max((seen.value.ring_version for seen in view.beats.values()), default=0),
            watched_s=view.watched_s,
            steady_s=self._watch.steady_s,
        )

    def _tell(self, policy: Policy) -> None:
        """Logs each remark when it comes up."""
        for remark in policy.remarks:
            if remark not in self._told:
                (_LOG.error if policy.mass_loss else _LOG.warning)("the ring is left as it is", why=remark)
        self._told = set(policy.remarks)

    async def _carry_out(self, order: Order, ring_revision: int) -> None:
        match order:
            case Commit():
                await self._commit(order, ring_revision)
            case Depose():
                await self._depose(order)
            case Forgotten():
                await self._records.change(FORGET_PREFIX + order.stable_id, lambda _: None)

    async def _commit(self, order: Commit, ring_revision: int) -> None:
        record = msgspec.structs.replace(
            order.record, leader=self._settings.pod_name, committed_at=datetime.now(UTC)
        )
        try:
            revision = await self._records.update(RING_KEY, msgspec.json.encode(record), ring_revision)
        except Conflict:
            # Another leader's, or our own whose answer never came.
            await self._view.reread_ring()
            return
        self.commits += 1
        _LOG.info("ring", version=record.version, members=len(record.members), reason=record.reason)
        end_s = self._clock() + SEEN_S_MAX
        while self._view.ring_revision < revision and self._clock() < end_s:
            await self._wait_for(self._news, STEP_S)

    async def _depose(self, order: Depose) -> None:
        try:
            await self._claims.delete(order.stable_id, order.claim_revision)
        except Conflict:
            return  # It lives: its renewal is on the way to us.
        self.deposed += 1
        _LOG.error(
            "a silent defender is declared dead; its ID is free",
            stable_id=order.stable_id,
            pod_uid=order.pod_uid,
            silent_s=round(order.silent_s, 1),
        )

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 can swallow a cancellation.
                await event.wait()
        event.clear()
