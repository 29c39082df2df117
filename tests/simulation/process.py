"""A model of one life of a supervisor: heartbeats, the claim and its lease, succession at SIGTERM.

Decisions are the real ones (`identity.decide`, and through `simulation.duties` and `simulation.leading` the
plan of handoffs and the leader's policy); the loops around them are as thin as they can be.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from runtime.identity import QUEUE_S_MAX, RANK_S, Claim, Decision, Standby, decide
from runtime.identity import Pod as Identity
from runtime.membership import Heartbeat, State
from runtime.ownership_record import Owner
from simulation.duties import Duties
from simulation.leading import Leading
from simulation.link import Lane
from simulation.server import BEATS, CLAIMS, CONFLICT
from simulation.serving import Worker
from simulation.view import View

if TYPE_CHECKING:
    from simulation.world import World

DAWN = datetime(2026, 1, 1, tzinfo=UTC)
BUSY_TICK_S, IDLE_TICK_S = 0.25, 1.0
REREAD_S = 10.0
RESERVED_S = 4.0
CONNECT_S = (0.05, 0.6)
PASS_RETRY_S = 0.05


class Pod(NamedTuple):
    """A pod as its Deployment makes it."""

    uid: str
    track: str
    revision: str
    ids: tuple[str, ...]
    joins: bool = True


class Process:
    """Starts when it is made. *offset_s*: its monotonic clock's lead over the world's time."""

    def __init__(self, world: World, pod: Pod, session: str) -> None:
        self.world, self.pod, self.session = world, pod, session
        self.is_dead = False
        self.frozen_until_s = 0.0
        self.offset_s = world.random.uniform(0, 1e5)
        self.awake_s = world.heap.now_s
        self.deaf_until_s = 0.0
        self.state = State.STARTING
        self.deadline_s = 0.0
        self.claim: Claim | None = None
        self.duties: Duties | None = None
        self.lane = Lane(world.links[pod.uid], self)
        self.view = View(world.server, self.clock, world.limits.silence_s, world.random)
        self.leading = Leading(self)
        self.workers = [Worker(self, index) for index in range(world.limits.workers)]
        self._beat: Heartbeat | None = None
        self._revision = 0
        self._asking = False
        self._seeking = False
        self._decision = Decision()
        self._decided_s = self._begun_s = self.clock()
        self._not_before_s = 0.0
        self._tick_at_s = 0.0
        self._reserved_until_s = 0.0
        self._passed = False
        self._refused: dict[str, float] = {}
        self._drain_by_s = 0.0
        self._seek_until_s = 0.0
        world.heap.after(world.random.uniform(*CONNECT_S), self.run, self._connect)

    def clock(self) -> float:
        return self.world.heap.now_s + self.offset_s

    def run(self, action: Callable[..., None], *args: Any) -> None:
        """If the process lives, when it is not frozen."""
        if self.is_dead:
            return
        if self.world.heap.now_s < self.frozen_until_s:
            self.world.heap.at(self.frozen_until_s, self.run, action, *args)
            return
        action(*args)

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self.world.heap.after(delay_s, self.run, action, *args)

    # --- the loop -------------------------------------------------------------------------------

    def _connect(self) -> None:
        def read(done: int | None) -> None:
            if done is None:
                self.later(0.2, self._connect)
                return
            self._keep_beating()
            self._keep_rereading()
            self._tick()

        self.lane.call(read, self._read)

    def _read(self) -> int:
        self.view.reread()
        return 0

    def _keep_rereading(self) -> None:
        self.later(REREAD_S * (0.9 + 0.2 * self.world.random.random()), self._keep_rereading)
        self.lane.call(lambda _: self.wake(), self._read)

    def _keep_beating(self) -> None:
        self.beat_now()
        self.later(self.world.limits.renew_s, self._keep_beating)

    def beat_now(self) -> None:
        stable_id = self.claim.stable_id if self.claim is not None and not self._passed else None
        told, layout = self._beat, self.view.layout
        version = layout.version if layout is not None else 0
        warm = self.state is State.STANDBY
        if told is None or (told.state, told.stable_id) != (self.state, stable_id):
            pod = self.pod
            self._beat = Heartbeat(
                pod.uid, pod.uid, pod.track, pod.revision, self.state, DAWN, stable_id, "", warm,
                self.session, ring_version=version,
            )  # fmt: skip
        elif told.ring_version != version:
            self._beat = msgspec.structs.replace(told, ring_version=version)
        self.lane.tell(self.world.server.write, BEATS, self.pod.uid, self._beat, None)

    def wake(self) -> None:
        """Something changed: go round now."""
        self.wake_at(self.world.heap.now_s)

    def wake_at(self, at_s: float) -> None:
        if not self.is_dead and at_s < self._tick_at_s - 1e-6:
            self._tick_at_s = at_s
            self.world.heap.at(at_s, self.run, self._ticked, at_s)

    def _ticked(self, at_s: float) -> None:
        if at_s == self._tick_at_s:
            self._tick()

    def _tick(self) -> None:
        world, now_s = self.world, self.world.heap.now_s
        link = world.links[self.pod.uid]
        self._tick_at_s = now_s
        if not link.is_cut and world.server.up():
            deaf = now_s < self.deaf_until_s
            self.view.catch_up(now_s, self.offset_s, self.awake_s, link.lag_s, deaf)
        busy = self.leading.leads
        self.leading.step()
        if self.claim is None:
            busy |= self._claim()
        if self.duties is not None and not self.is_dead:
            busy |= self.duties.act()
        if self._drain_by_s and not self.is_dead:
            busy = True
            self._drain()
        self._tick_at_s = world.heap.now_s + (BUSY_TICK_S if busy else IDLE_TICK_S)
        world.heap.at(self._tick_at_s, self.run, self._ticked, self._tick_at_s)

    # --- the claim ------------------------------------------------------------------------------

    def _claim(self) -> bool:
        """Try for an ID; whether it was worth it."""
        world, view, pod = self.world, self.view, self.pod
        now_s = self.clock()
        if self._asking or self._drain_by_s or now_s < self._not_before_s:
            return True
        claims = {stable_id: seen.value for stable_id, seen in view.claims.items()}
        own = next((c for c in claims.values() if c.pod_uid == pod.uid), None)
        if own is None and now_s < self._reserved_until_s:
            return True
        decision = decide(
            claims,
            Identity(pod.uid, pod.uid, pod.track, pod.revision),
            pod.ids,
            holders_max=world.limits.holders_max,
            waiting=view.waiting(pod.track),
            ring_members=view.ring.value.members if view.ring is not None else (),
            hold=Standby.SUCCESSION if view.has_draining(pod.track) else None,
            kept=view.kept(),
        )
        if decision != self._decision:
            self._decision, self._decided_s = decision, now_s
        if decision.stable_id is None:
            if self.state is not State.STANDBY:
                self.state = State.STANDBY
                self.beat_now()
                self._start_workers()
            return False
        stable_id = decision.stable_id
        wait_s = self._decided_s + decision.rank * RANK_S - now_s
        if own is None and pod.uid not in view.beats:
            wait_s = max(wait_s, self._begun_s + QUEUE_S_MAX - now_s)
        if wait_s > 0:
            self.wake_at(world.heap.now_s + wait_s)
            return True
        claim = Claim(
            stable_id, pod.uid, pod.uid, pod.track, pod.revision, DAWN, self.session, 1.0, pod.joins
        )
        started_s = now_s
        self._asking = True

        def written(revision: int | None) -> None:
            self._asking = False
            if revision is None or revision == CONFLICT:
                self._not_before_s = self.clock() + 0.2 * world.random.random()
                self.lane.call(lambda _: self.wake(), self._read)
                return
            self._hold(claim, revision, started_s)

        self.lane.call(
            written, world.server.write, CLAIMS, stable_id, claim, view.claim_revisions.get(stable_id, 0)
        )
        return True

    def _hold(self, claim: Claim, revision: int, started_s: float) -> None:
        self.world.note(f"{self.pod.uid} holds {claim.stable_id}")
        self.claim, self._revision = claim, revision
        self.deadline_s = started_s + self.world.limits.lease_held_s
        if not self._drain_by_s:
            self.state = State.ACTIVE
        self.duties = Duties(self, Owner(claim.stable_id, self.pod.uid))
        for worker in self.workers:
            if worker.session:
                self.duties.on_ready(worker)
        self._start_workers()
        self.beat_now()
        self.later(self.world.limits.renew_s, self._renew)
        self.wake()

    def _start_workers(self) -> None:
        for worker in self.workers:
            if not worker.sessions:
                worker.sessions = 1
                worker.start()

    def _renew(self) -> None:
        """Every renew_s; past the deadline the process fences itself."""
        if self.claim is None or self._passed:
            return
        started_s = self.clock()
        if started_s >= self.deadline_s and self.world.checks_deadline:
            self.fence("the lease ran out")
            return
        self.later(min(self.world.limits.renew_s, max(0.01, self.deadline_s - started_s)), self._renew)
        if self._asking:
            return
        self._asking = True

        def renewed(revision: int | None) -> None:
            self._asking = False
            if revision == CONFLICT:
                self._look_up(started_s)
            elif revision is not None:
                self._revision = revision
                self.deadline_s = started_s + self.world.limits.lease_held_s

        server = self.world.server
        self.lane.call(renewed, server.write, CLAIMS, self.claim.stable_id, self.claim, self._revision)

    def _look_up(self, started_s: float) -> None:
        """A renewal lost against another write: our own that was not answered, or another's."""
        claim = self.claim
        assert claim is not None
        server = self.world.server

        def found(result: tuple[Any, int] | None) -> None:
            self._asking = False
            if result is None or self._passed:
                return
            value, revision = result
            if revision == 0 or (value == claim and revision > self._revision):
                self._revision = revision  # the bucket was made anew; or it was ours
            elif value is claim and revision == self._revision:
                return
            else:
                self.fence("another holds the claim")

        def look() -> tuple[Any, int]:
            stored = server.get(CLAIMS, claim.stable_id)
            return (stored.value, stored.revision) if stored is not None else (None, 0)

        self._asking = True
        self.lane.call(found, look)

    def fence(self, why: str) -> None:
        self.world.note(f"{self.pod.uid} is fenced: {why}")
        self.exit(76)

    def exit(self, code: int) -> None:
        if self.is_dead:
            return
        if code == 0:
            self.lane.tell(self.world.server.write, BEATS, self.pod.uid, None, None)
        self.is_dead = True
        self.world.on_exit(self, code)

    # --- the way out ----------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM."""
        if self._drain_by_s:
            return
        now_s, limits = self.clock(), self.world.limits
        self.world.note(f"{self.pod.uid} is told to end")
        self._drain_by_s = now_s + limits.drain_s
        self._seek_until_s = now_s + limits.successor_wait_s
        self.leading.resign()
        self.state = State.DRAINING
        self.beat_now()
        self.wake()

    def _drain(self) -> None:
        now_s = self.clock()
        duties, claim = self.duties, self.claim
        if duties is None or claim is None:
            if not self._asking:
                self.exit(0)
            return
        if now_s >= self._drain_by_s and duties.handoffs.holding:
            self._let_go()
        if not duties.handoffs.holding:
            if now_s >= self._drain_by_s:
                duties.release_rest()
            if duties.is_empty() or now_s >= self._drain_by_s + 1.0:
                self._leave(claim)
            return
        if self.state is State.LEAVING:
            layout = self.view.layout
            if layout is not None and claim.stable_id not in layout.members and duties.is_empty():
                self._leave(claim)
            return
        if not self._seeking:
            self._seek_successor(now_s)

    def _seek_successor(self, now_s: float) -> None:
        pod, view, assert_claim = self.pod, self.view, self.claim
        assert assert_claim is not None
        standbys = [
            uid
            for uid, seen in view.beats.items()
            if seen.value.state is State.STANDBY
            and seen.value.track == pod.track
            and view.silent_s(uid) <= self.world.limits.silence_s
            and now_s >= self._refused.get(uid, 0.0)
        ]
        if standbys:
            first = self.world.server.first_beat
            uid = min(standbys, key=lambda one: (view.beats[one].value.revision == pod.revision, first[one]))
            # The lease is renewed while standbys are asked: in `lease.Lease` that is a task of its own.
            self._seeking = True

            def answered(answer: Any) -> None:
                if answer == "accepted" and self._asking:
                    self.later(PASS_RETRY_S, answered, answer)
                    return
                self._seeking = False
                if answer == "accepted":
                    self._pass_on(uid)
                else:
                    self._refused[uid] = self.clock() + 0.5
                self.wake()

            self.world.request(self, uid, answered, "on_succeed", assert_claim.stable_id)
            return
        if now_s < self._seek_until_s:
            return
        if any(s.value.track == pod.track and s.value.revision != pod.revision for s in view.beats.values()):
            self._let_go()
            assert self.duties is not None
            self.duties.release_rest()
        else:
            self.state = State.LEAVING
            self.beat_now()

    def _pass_on(self, uid: str) -> None:
        """The claim becomes the successor's."""
        seen, claim = self.view.beats.get(uid), self.claim
        if seen is None or claim is None:
            return
        beat: Heartbeat = seen.value
        heir = Claim(
            claim.stable_id, uid, uid, beat.track, beat.revision, DAWN, beat.session, 1.0, claim.joins
        )
        self._asking = self._seeking = True
        server = self.world.server

        def write() -> int:
            revision = server.write(CLAIMS, claim.stable_id, heir, self._revision)
            stored = server.get(CLAIMS, claim.stable_id)
            same = stored is not None and stored.value == heir
            return stored.revision if stored is not None and same else revision

        def written(revision: int | None) -> None:
            self._asking = self._seeking = False
            if revision is None:
                self._pass_on(uid)  # unknown: until it is, or the lease ends
            elif revision == CONFLICT:
                self._look_up(self.clock())
            else:
                self.world.note(f"{self.pod.uid} passes {claim.stable_id} to {uid}")
                self._let_go()

        if self.clock() >= self.deadline_s:
            self.fence("the lease ran out")
        else:
            self.lane.call(written, write)

    def _let_go(self) -> None:
        self._passed = True
        assert self.duties is not None
        self.duties.handoffs.holding = False
        self.duties.touched += 1
        self.beat_now()
        self.wake()

    def _leave(self, claim: Claim) -> None:
        """The claim, if it is still ours, is deleted; the process ends."""
        self.lane.tell(self.world.server.write, CLAIMS, claim.stable_id, None, self._revision)
        self.exit(0)

    # --- words from the workers and from other pods ---------------------------------------------

    def duties_on_ready(self, worker: Worker) -> None:
        if self.duties is not None:
            self.duties.on_ready(worker)
            self.wake()

    def duties_on_lost(self, worker: Worker) -> None:
        if self.duties is not None:
            self.duties.on_lost(worker)
            self.wake()

    def on_word(self, worker: Worker, word: str, *args: Any) -> None:
        if self.duties is not None:
            self.duties.on_word(word, *args)
            self.wake()

    def on_yield(self, reply: Callable[[Any], None], partition: int, stable_id: str, version: int) -> None:
        if self.duties is None:
            reply("nobody")  # whatever a record says of this pod, a process before this one did it
        else:
            self.duties.answer(partition, stable_id, version, reply)

    def on_succeed(self, reply: Callable[[Any], None], stable_id: str) -> None:
        now_s = self.clock()
        free = self.state is State.STANDBY and self.claim is None and not self._asking
        if not free or now_s < self._reserved_until_s or self._drain_by_s:
            reply("refused")
            return
        self._reserved_until_s = now_s + RESERVED_S
        reply("accepted")
