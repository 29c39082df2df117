"""What each fault does to a world. All of them end by themselves; `heal` makes everybody look again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from runtime.ownership_record import Record
from runtime.ownership_record import State as OwnerState
from runtime.records import Frozen, Tracks
from simulation.deployment import Kept
from simulation.process import DAWN, Process
from simulation.schedule import Fault, Kind
from simulation.server import ASSIGNMENTS, BEATS, CLAIMS, LEADER
from simulation.serving import RESPAWN_S

if TYPE_CHECKING:
    from simulation.world import World


def inject(world: World, fault: Fault) -> None:
    world.note(f"--- {fault.kind.name}: {fault.kind.value}")
    INJECT[fault.kind](world, fault)


def heal(world: World) -> None:
    for uid in list(world.links):
        world.kick(uid)


def _pod(world: World, fault: Fault) -> Kept | None:
    pods = [kept for deployment in world.deployments for kept in deployment.pods if not kept.is_gone]
    return pods[fault.target % len(pods)] if pods else None


def _crash(world: World, fault: Fault) -> None:
    """The node dies: nobody tells that nobody listens; the controller makes a new pod after a while."""
    kept = _pod(world, fault)
    if kept is None:
        return
    world.note(f"{kept.pod.uid} dies for good")
    kept.is_gone = True
    for deployment in world.deployments:
        if kept in deployment.pods:
            deployment.not_before_s = world.heap.now_s + fault.length_s
    if kept.process is not None:
        kept.process.exit(137)


def _restart(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is not None and kept.process is not None:
        world.note(f"{kept.pod.uid} is killed")
        kept.process.exit(137)


def _worker_crash(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is not None and kept.process is not None and not kept.process.is_dead:
        workers = kept.process.workers
        workers[int(fault.extra * len(workers))].break_session(RESPAWN_S)


def _pause(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is None or kept.process is None or kept.process.is_dead:
        return
    if world.random.random() < 0.5:
        freeze(world, kept.process, fault)
    else:
        world.freeze_in_hand[kept.pod.uid] = fault


def freeze(world: World, process: Process, fault: Fault) -> None:
    until_s = world.heap.now_s + fault.length_s
    world.note(f"{process.pod.uid} is frozen for {fault.length_s:g} s ({fault.kind.name})")
    if fault.kind is not Kind.PAUSE_WORKER:
        process.frozen_until_s = max(process.frozen_until_s, until_s)
    if fault.kind is not Kind.PAUSE_SUPERVISOR:
        for worker in process.workers:
            if fault.kind is Kind.PAUSE or worker.index == int(fault.extra * len(process.workers)):
                worker.frozen_until_s = max(worker.frozen_until_s, until_s)
                for serve in worker.serves.values():
                    # Frozen between the look at the deadline and the write, or before the look.
                    serve.checked = serve.in_hand and world.random.random() < 0.5
    world.heap.at(until_s, world.kick, process.pod.uid)


def _cut(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is not None:
        world.note(f"{kept.pod.uid} is cut off for {fault.length_s:g} s")
        link = world.links[kept.pod.uid]
        link.cut_until_s = max(link.cut_until_s, world.heap.now_s + fault.length_s)
        world.heap.at(link.cut_until_s + 0.3 * fault.extra, world.kick, kept.pod.uid)


def _slow(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is not None:
        link, before_s = world.links[kept.pod.uid], world.schedule.lag_s
        link.lag_s = 0.05 + 0.8 * fault.extra
        world.heap.after(fault.length_s, setattr, link, "lag_s", before_s)


def _loss(world: World, fault: Fault) -> None:
    for link in world.links.values():
        link.loss = 0.02 + 0.4 * fault.extra
        world.heap.after(fault.length_s, setattr, link, "loss", 0.0)


def _deaf(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is not None and kept.process is not None:
        kept.process.deaf_until_s = world.heap.now_s + fault.length_s


def _outage(world: World, fault: Fault) -> None:
    """The server restarts: consumers that live in its memory are lost in one case of two."""
    server = world.server
    server.down_until_s = max(server.down_until_s, world.heap.now_s + fault.length_s)
    if fault.extra < 0.5:
        server.lose_consumers()
    for uid in list(world.links):
        world.heap.at(server.down_until_s + 0.5 * world.random.random(), world.kick, uid)


def _no_leader(world: World, fault: Fault) -> None:
    server = world.server
    server.writes_refused_until_s = max(server.writes_refused_until_s, world.heap.now_s + fault.length_s)


def _bucket_lost(world: World, fault: Fault) -> None:
    bucket = (CLAIMS, BEATS, ASSIGNMENTS, LEADER)[int(fault.extra * 4)]
    world.note(f"bucket {bucket} is made anew")
    world.server.lose(bucket)
    if bucket == ASSIGNMENTS:
        world.watch.on_lost()


def _commit_crash(world: World, fault: Fault) -> None:
    world.commit_crash = fault.extra


def _term(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is None or kept.is_ending:
        return
    for deployment in world.deployments:
        if kept in deployment.pods:
            deployment.end(kept)


def _rolling(world: World, fault: Fault) -> None:
    deployment = world.deployments[fault.target % len(world.deployments)]
    deployment.revision += 1
    deployment.surge, deployment.unavailable = ((1, 0), (3, 0), (0, 1), (2, 1))[int(fault.extra * 4)]


def _scale(world: World, fault: Fault) -> None:
    deployment = world.deployments[fault.target % len(world.deployments)]
    deployment.replicas = 1 + int(fault.extra * 7)
    world.note(f"{deployment.track} is scaled to {deployment.replicas}")


def _cutover(world: World, fault: Fault) -> None:
    world.server.write(ASSIGNMENTS, "tracks", Tracks({"green": True, "blue": False}), None)


def _freeze(world: World, fault: Fault) -> None:
    server = world.server
    server.write(ASSIGNMENTS, "frozen", Frozen("operator", DAWN), None)

    def unfreeze() -> None:
        server.write(ASSIGNMENTS, "frozen", None, None)

    world.heap.after(fault.length_s, unfreeze)


def _forget(world: World, fault: Fault) -> None:
    world.server.write(ASSIGNMENTS, f"forget.defender-{fault.target % 6}", "forget", None)


def _twins(world: World, fault: Fault) -> None:
    kept = _pod(world, fault)
    if kept is None or kept.process is None or kept.process.is_dead:
        return
    twin = Process(world, kept.pod, f"{kept.pod.uid}/twin")
    world.twins.append(twin)
    world.heap.after(fault.length_s, twin.exit, 137)


def _hand(world: World, fault: Fault) -> None:
    server, partition = world.server, fault.target % world.schedule.partitions
    if fault.extra < 0.25:
        world.note("the ring's record is deleted")
        server.write(ASSIGNMENTS, "ring", None, None)
        return
    record: Record | None = None
    if fault.extra < 0.5:
        record = Record(OwnerState.OWNED, "defender-99", "nobody", position=0)
    elif fault.extra < 0.75:
        record = Record()
    world.note(f"the record of partition {partition} is overwritten: {record}")
    server.write(ASSIGNMENTS, f"partition.{partition}", record, None)


INJECT: Final[dict[Kind, Callable[[World, Fault], None]]] = {
    Kind.CRASH: _crash,
    Kind.RESTART: _restart,
    Kind.WORKER_CRASH: _worker_crash,
    Kind.PAUSE: _pause,
    Kind.PAUSE_SUPERVISOR: _pause,
    Kind.PAUSE_WORKER: _pause,
    Kind.CUT: _cut,
    Kind.SLOW: _slow,
    Kind.LOSS: _loss,
    Kind.DEAF: _deaf,
    Kind.OUTAGE: _outage,
    Kind.NO_LEADER: _no_leader,
    Kind.BUCKET_LOST: _bucket_lost,
    Kind.COMMIT_CRASH: _commit_crash,
    Kind.TERM: _term,
    Kind.ROLLING: _rolling,
    Kind.SCALE: _scale,
    Kind.CUTOVER: _cutover,
    Kind.FREEZE: _freeze,
    Kind.FORGET: _forget,
    Kind.TWINS: _twins,
    Kind.HAND: _hand,
}
