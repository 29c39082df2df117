"""A stand-in for the controller of a Deployment: it makes pods, ends pods, and rolls to a new revision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.membership import State
from simulation.process import Pod, Process

if TYPE_CHECKING:
    from simulation.world import World

RECONCILE_S = 0.3
GRACE_S = 15.0


class Kept:
    """One pod of the Deployment, and its container's process at present."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.process: Process | None = None
        self.incarnation = 0
        self.is_ending = False
        self.is_gone = False

    @property
    def is_ready(self) -> bool:
        process = self.process
        if process is None or process.is_dead or self.is_ending:
            return False
        if process.state is State.ACTIVE:
            duties = process.duties
            return duties is not None and duties.serves_all()
        return process.state is State.STANDBY


class Deployment:
    """*surge* pods more, *unavailable* fewer than *replicas* while it rolls."""

    def __init__(self, world: World, track: str, replicas: int, first_id: int, joins: bool) -> None:
        self.world, self.track, self.replicas, self.joins = world, track, replicas, joins
        self.revision = 1
        self.surge, self.unavailable = 1, 0
        self.pods: list[Kept] = []
        self.not_before_s = 0.0
        self._ids = tuple(f"defender-{number}" for number in range(first_id, first_id + 20))
        self._made = 0

    def begin(self) -> None:
        for _ in range(self.replicas):
            self._make()
        self.world.heap.after(RECONCILE_S, self._reconcile)

    @property
    def alive(self) -> list[Kept]:
        return [kept for kept in self.pods if not kept.is_gone and not kept.is_ending]

    @property
    def is_settled(self) -> bool:
        pods = [kept for kept in self.pods if not kept.is_gone]
        return len(pods) == self.replicas and all(
            kept.is_ready and kept.pod.revision == str(self.revision) for kept in pods
        )

    def _make(self) -> None:
        self._made += 1
        uid = f"{self.track}-r{self.revision}-{self._made}"
        kept = Kept(Pod(uid, self.track, str(self.revision), self._ids, self.joins))
        self.pods.append(kept)
        self.world.add_link(uid)
        self.start(kept)

    def start(self, kept: Kept) -> None:
        if kept.is_gone:
            return
        if kept.is_ending:
            kept.is_gone = True
            return
        kept.incarnation += 1
        kept.process = Process(self.world, kept.pod, f"{kept.pod.uid}/{kept.incarnation}")
        self.world.processes[kept.pod.uid] = kept.process

    def end(self, kept: Kept) -> None:
        """SIGTERM, and SIGKILL when the grace period is over."""
        kept.is_ending = True
        process = kept.process
        if process is None or process.is_dead:
            kept.is_gone = True
            return
        process.run(process.terminate)

        def kill() -> None:
            if process is not None and not process.is_dead:
                self.world.note(f"{kept.pod.uid} is killed: its grace period is over")
                process.exit(137)

        self.world.heap.after(GRACE_S, kill)

    def _reconcile(self) -> None:
        self.world.heap.after(RECONCILE_S, self._reconcile)
        if self.world.heap.now_s < self.not_before_s:
            return
        alive = self.alive
        old = [kept for kept in alive if kept.pod.revision != str(self.revision)]
        new = len(alive) - len(old)
        room = self.replicas + (self.surge if old else 0) - len(alive)
        for _ in range(max(0, min(room, self.replicas - new))):
            self._make()
        ready = sum(kept.is_ready for kept in alive)
        if old:
            spare = ready - (self.replicas - self.unavailable)
            for kept in sorted(old, key=lambda one: one.is_ready):
                if not kept.is_ready or spare > 0:
                    spare -= kept.is_ready
                    self.end(kept)
        elif len(alive) > self.replicas:
            # As Kubernetes does: those that are not ready first, then the youngest.
            order = sorted(range(len(alive)), key=lambda i: (alive[i].is_ready, -i))
            for i in order[: len(alive) - self.replicas]:
                self.end(alive[i])
