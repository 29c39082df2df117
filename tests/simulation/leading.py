"""A model of the leader: election by compare-and-set, and the writes that `runtime.policy.Policy` orders."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from runtime.leader import HELD, LATE_S, MARGIN_S
from runtime.membership import State
from runtime.policy import Commit, Depose, Forgotten, Holder, OutageWatch, Policy, Situation
from simulation.server import ASSIGNMENTS, CLAIMS, CONFLICT, LEADER

if TYPE_CHECKING:
    from simulation.process import Process


class Leading:
    """One process' part in the election; *policy* while it leads."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        limits = process.world.limits
        self.policy: Policy | None = None
        self.resigned = False
        renew_s = limits.renew_s
        self._watch = OutageWatch(
            missed_s=renew_s + LATE_S, limit_s=2 * renew_s + LATE_S, after_s=limits.lease_ttl_s
        )
        self._revision = 0
        self._deadline_s = 0.0
        self._renew_at_s = 0.0
        self._try_at_s = 0.0
        self._asking = False
        self._writing = 0
        self._moment = 0

    @property
    def leads(self) -> bool:
        return self.policy is not None

    def step(self) -> None:
        process, world = self._process, self._world
        now_s, view = process.clock(), process.view
        if self.resigned:
            return
        own = view.beats.get(process.pod.uid)
        self._watch.step(now_s, now_s - own.arrived_s if own is not None else inf)
        if self.policy is not None and now_s >= self._deadline_s:
            self.policy = None
        if self.policy is None:
            self._stand(now_s)
            return
        if now_s >= self._renew_at_s and not self._asking:
            self._campaign(self._revision)
        if self.policy is not None and not self._writing:
            if view.lost_tracks:
                process.lane.call(lambda _: None, world.server.write, ASSIGNMENTS, "tracks", view.tracks, 0)
            for order in self.policy.step(self._situation(now_s)):
                if process.clock() < self._deadline_s or not world.checks_deadline:
                    self._carry_out(order)

    def _stand(self, now_s: float) -> None:
        view, process = self._process.view, self._process
        standing = view.leader
        free = (
            standing is None
            or standing.value[1] == process.session
            or (
                now_s - standing.arrived_s > HELD * self._world.limits.leader_ttl_s + MARGIN_S
                and not self._watch.outage
            )
        )
        if self._asking or not free or process.state is State.DRAINING:
            self._try_at_s = 0.0
            return
        if not self._try_at_s:
            self._try_at_s = now_s + 0.2 * self._world.random.random()
        if now_s >= self._try_at_s:
            self._campaign(view.leader_revision)

    def _campaign(self, revision: int) -> None:
        process, limits = self._process, self._world.limits
        started_s = process.clock()
        self._asking = True
        self._renew_at_s = started_s + limits.renew_s
        self._moment += 1

        def answered(written: int | None) -> None:
            self._asking = False
            if written is None:
                return
            if written == CONFLICT:
                self.policy = None
                process.lane.call(lambda _: None, process.view.reread)
                return
            self._revision = written
            self._deadline_s = started_s + HELD * limits.leader_ttl_s
            if self.policy is None and process.clock() < self._deadline_s:
                self.policy = Policy(self._world.names, limits.policy)
                self._world.note(f"{process.pod.uid} leads")

        value = (process.pod.uid, process.session, self._moment)
        process.lane.call(answered, self._world.server.write, LEADER, "leader", value, revision)

    def _situation(self, now_s: float) -> Situation:
        view = self._process.view
        members = view.ring.value.members if view.ring is not None else {}
        holders = {}
        for stable_id, seen in view.claims.items():
            claim = seen.value
            beat = view.beats.get(claim.pod_uid)
            holders[stable_id] = Holder(
                stable_id,
                claim.pod_uid,
                claim.track,
                claim.weight,
                claim.joins,
                claim.pod_uid in view.departed and stable_id not in members
                if beat is None
                else beat.value.state is State.LEAVING,
                view.silent_s(claim.pod_uid),
                view.claim_revisions[stable_id],
            )
        ring = view.ring
        return Situation(
            now_s,
            holders,
            ring.value if ring is not None else None,
            ring is None or ring.revision == view.ring_revision,
            view.tracks,
            "operator" if view.frozen is not None else "",
            view.forget,
            self._watch.outage,
            self._watch.aftermath,
            max((seen.value.ring_version for seen in view.beats.values()), default=0),
            view.watched_s,
            self._watch.steady_s,
        )

    def _carry_out(self, order: Commit | Depose | Forgotten) -> None:
        process, world = self._process, self._world
        view, server = process.view, world.server
        self._writing += 1

        def done(result: Any) -> None:
            self._writing -= 1
            if result == CONFLICT:
                process.lane.call(lambda _: None, view.reread)

        match order:
            case Commit(record=record):
                world.about_to_commit(process)
                if not process.is_dead:
                    process.lane.call(done, server.write, ASSIGNMENTS, "ring", record, view.ring_revision)
            case Depose(stable_id=stable_id, claim_revision=revision):
                world.note(f"{process.pod.uid} deposes {order.pod_uid} of {stable_id}")
                process.lane.call(done, server.write, CLAIMS, stable_id, None, revision)
            case Forgotten(stable_id=stable_id):
                process.lane.call(done, server.write, ASSIGNMENTS, f"forget.{stable_id}", None, None)

    def resign(self) -> None:
        """At SIGTERM the lease is given back."""
        self.resigned = True
        if self.policy is not None:
            self.policy = None
            self._process.lane.tell(self._world.server.write, LEADER, "leader", None, self._revision)
