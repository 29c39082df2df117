"""What must hold: all the time (`Watch`), when the faults are over (`unsettled`), and at the end.

That one valid epoch has one publisher, and that no verdict is stored before its predecessor, the fake server
looks at itself (`Server.publish`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.handoff import Phase
from runtime.ownership_record import Record, State
from runtime.records import RingRecord
from simulation.heap import Violation
from simulation.schedule import FIRST_S, HOLDERS_MAX, Kind
from simulation.server import ASSIGNMENTS, CLAIMS, Change, record_key
from simulation.view import owners_of

if TYPE_CHECKING:
    from simulation.serving import Serve
    from simulation.world import World

GRACEFUL_GAP_S: Final = 0.9
"""The longest that a sample waits in a graceful event: judging takes up to 0.3 s, reading what came since a
copy 10 ms; and the ways to and fro."""
GRACEFUL_WAYS: Final = 25
LONE_GAP_S: Final = {
    Kind.WORKER_CRASH: 1.5,
    Kind.RESTART: 3.5,
    Kind.NO_LEADER: 3.0,
    Kind.TWINS: 4.0,
    **dict.fromkeys(
        (Kind.DEAF, Kind.BUCKET_LOST, Kind.COMMIT_CRASH, Kind.FREEZE, Kind.FORGET, Kind.HAND), 1.5
    ),
}
"""The same for a fault that comes alone to a fleet at rest. A container needs 1.6 s to start again; what
breaks no process ends at most a worker's session."""


class Watch:
    """Looks at every write."""

    def __init__(self, world: World) -> None:
        self.version = 0
        self.moved = 0
        """Partitions whose stable ID changed after the fleet had started."""
        self._world = world
        self.must_move = 0
        """Partitions that the rings' changes move."""
        self.versions_again = 0
        """Ring versions that were given a second time."""
        self._stored: int | None = None
        self._last: list[str | None] = []
        self._owners: dict[int, str] = {}

    def on_change(self, change: Change) -> None:
        if change.bucket != ASSIGNMENTS:
            return
        partition = record_key(change)
        if partition is not None:
            self._on_record(partition, change.value)
        elif change.key == "ring" and change.value is not None:
            self._on_ring(change.value)
        elif change.key == "ring":
            self._stored = None

    def _on_ring(self, ring: RingRecord) -> None:
        if self._stored is not None and ring.version != self._stored + 1:
            raise Violation(f"ring version {ring.version} after {self._stored}")
        if ring.version <= self.version:
            # Its record was lost, and nobody who leads had seen it.
            self.versions_again += 1
        if not ring.members:
            raise Violation(f"ring version {ring.version} is empty")
        self._stored = ring.version
        owners = owners_of(ring)
        self.must_move += sum(a != b for a, b in zip(self._last, owners, strict=False))
        self._last = owners
        self.version = max(self.version, ring.version)
        self._world.note(f"ring {ring.version}: {', '.join(sorted(ring.members))} ({ring.reason})")

    def _on_record(self, partition: int, record: Record | None) -> None:
        if record is None or record.state is not State.OWNED:
            return
        before = self._owners.get(partition)
        if before is not None and before != record.owner and self._world.heap.now_s > FIRST_S:
            self.moved += 1
        self._owners[partition] = record.owner

    def on_lost(self) -> None:
        """The bucket of assignments is made anew."""
        self._stored = None

    def on_take(self, serve: Serve) -> None:
        """A worker takes reports: nobody may whose successor has published already."""
        newest = self._world.server.last_epoch[serve.partition]
        if (serve.generation, serve.epoch) < newest:
            session = serve.worker.process.session
            raise Violation(
                f"partition {serve.partition}: {session} still takes reports with epoch {serve.epoch}, "
                f"epoch {newest[1]} has published"
            )

    def on_write(self, serve: Serve) -> None:
        """A worker writes verdicts: its claim must not have expired, unless it was frozen after its look."""
        world, uid = self._world, serve.worker.process.pod.uid
        age_s = world.heap.now_s - world.server.renewed_s[uid]
        if age_s > world.limits.lease_ttl_s and not serve.checked:
            raise Violation(f"partition {serve.partition}: {uid} writes {age_s:.1f} s after its last renewal")

    def longest_gap_s(self) -> float:
        """The longest time from a sample to its verdict, of those that came after the start."""
        server = self._world.server
        gaps = (
            stored[seq][1] - at_s
            for times, stored in zip(server.samples, server.verdicts, strict=True)
            for seq, at_s in enumerate(times, 1)
            if at_s > FIRST_S and seq in stored
        )
        return max(gaps, default=0.0)

    def _bound_s(self) -> float | None:
        """The longest that a sample may wait in this schedule; None where only the end is promised."""
        schedule, fault = self._world.schedule, self._world.schedule.faults[0]
        ways_s = GRACEFUL_WAYS * schedule.lag_s
        if schedule.is_graceful:
            # Where no pod can succeed at once, an ID may be vacant until a replacement has started.
            rolls_down = any(deployment.unavailable for deployment in self._world.deployments)
            return GRACEFUL_GAP_S + ways_s + rolls_down * self._world.limits.hold_down_s
        if len(schedule.faults) == 1 and fault.at_s > FIRST_S and fault.kind in LONE_GAP_S:
            return LONE_GAP_S[fault.kind] + ways_s
        return None

    def at_the_end(self) -> None:
        server, schedule = self._world.server, self._world.schedule
        for partition, times in enumerate(server.samples):
            missing = [seq for seq in range(1, len(times) + 1) if seq not in server.verdicts[partition]]
            if missing:
                raise Violation(f"partition {partition}: samples {missing[:5]} of {len(times)} are lost")
        gap_s, bound_s = self.longest_gap_s(), self._bound_s()
        if bound_s is not None and gap_s > bound_s:
            raise Violation(
                f"a sample waited {gap_s:.2f} s though there was only {schedule.faults[0].kind.value}"
            )
        if not schedule.is_graceful:
            return
        if self.moved > self.must_move:
            raise Violation(f"{self.moved} partitions moved, the ring moves {self.must_move}")
        # An update that comes while the fleet still starts finds fewer IDs than pods: when it is over the
        # rest join, and the partitions move that the ring moves.
        fault = schedule.faults[0]
        if fault.kind is Kind.ROLLING and fault.at_s > FIRST_S and self.moved:
            raise Violation(f"a rolling update moved {self.moved} partitions to other stable IDs")


def unsettled(world: World) -> list[str]:
    """Why the fleet has not settled; empty when it has."""
    server = world.server
    claims = {key: one.value for key, one in server.buckets[CLAIMS].stored.items() if one.value is not None}
    why = [f"{one.track} has not its pods ready" for one in world.deployments if not one.is_settled]
    stored = server.get(ASSIGNMENTS, "ring")
    if stored is None or stored.value is None:
        return [*why, "there is no ring"]
    tracks = server.get(ASSIGNMENTS, "tracks")
    in_ring = tracks.value.in_ring if tracks is not None and tracks.value is not None else {}
    admitted = {key for key, claim in claims.items() if in_ring.get(claim.track, claim.joins)}
    ring: RingRecord = stored.value
    if admitted and ring.members.keys() != admitted:
        why.append(f"the ring has {sorted(ring.members)}, holders are {sorted(admitted)}")
    most = world.limits.holders_max
    expected = sum(min(most, deployment.replicas) for deployment in world.deployments)
    # Fewer may be allowed than hold an ID already: nobody is expelled.
    if len(claims) < expected or (len(claims) > expected and most >= HOLDERS_MAX):
        why.append(f"{len(claims)} hold an ID, {expected} should")
    serving: dict[int, list[str]] = {}
    for uid, process in world.processes.items():
        if process.is_dead:
            continue
        for worker in process.workers:
            for partition, serve in worker.serves.items():
                if serve.loaded:
                    serving.setdefault(partition, []).append(uid)
        if process.duties is not None:
            odd = [p for p, part in process.duties.handoffs.parts.items() if part.phase is not Phase.SERVING]
            if odd and process.claim is not None and process.claim.stable_id in admitted:
                why.append(f"{uid} is still handing over {odd[:4]}")
    for partition, owner in enumerate(owners_of(ring)):
        claim = claims.get(owner or "")
        record = server.owner(partition)
        if claim is None:
            why.append(f"partition {partition} belongs to {owner}, which nobody holds")
        elif record is None or record[0].state is not State.OWNED or record[0].pod_uid != claim.pod_uid:
            has = (
                f"{record[0].state.value} by {record[0].pod_uid}"
                if record is not None
                else "without a record"
            )
            why.append(f"partition {partition} belongs to {owner} of {claim.pod_uid}, but is {has}")
        elif serving.get(partition) != [claim.pod_uid]:
            why.append(f"partition {partition} of {claim.pod_uid} is served by {serving.get(partition)}")
        if server.last_verdict[partition] < server.last_seq(partition):
            why.append(f"partition {partition} lags")
    return why
