"""Rows of partitions, for tables: who owns each, what waits, and what is to be said of it. Pure."""

from __future__ import annotations

from msgspec import Struct

from runtime.fleet_snapshot import Snapshot
from runtime.ownership_record import State


class PartitionRow(Struct, frozen=True):
    """One partition and its owner."""

    partition: int
    owner: str | None
    pod: str
    state: str
    epoch: int
    position: int
    waiting: int
    unacked: int
    remark: str
    worker: int | None = None
    """The owner's worker that serves it."""
    ring: str | None = None
    """The stable ID that the ring names."""
    is_trouble: bool = False


def partition_rows(snapshot: Snapshot) -> list[PartitionRow]:
    """Every partition, ascending; those that were never owned too."""
    return [partition_row(snapshot, partition) for partition in range(snapshot.partitions)]


def partition_row(snapshot: Snapshot, partition: int) -> PartitionRow:
    """The row of one partition."""
    ring = snapshot.layout.owner(partition) if snapshot.layout else None
    owned = snapshot.owned.get(partition)
    if owned is None:
        return PartitionRow(
            partition, None, "", State.VACANT.value, 0, 0, 0, 0, "never owned", ring=ring, is_trouble=True
        )
    record = owned.record
    owns = record.state is State.OWNED
    backlog = (snapshot.backlogs or {}).get((partition, owned.epoch))
    trouble = _trouble(snapshot, partition)
    return PartitionRow(
        partition=partition,
        owner=record.owner if owns else None,
        pod=pod_name(snapshot, record.pod_uid) if owns else "",
        state=record.state.value,
        epoch=owned.epoch,
        position=record.position,
        waiting=backlog.waiting if backlog else 0,
        unacked=backlog.unacked if backlog else 0,
        remark=trouble or _handoff(snapshot, partition) or ("" if backlog else "its consumer is missing"),
        worker=record.worker if owns and record.worker >= 0 else None,
        ring=ring,
        is_trouble=bool(trouble),
    )


def _trouble(snapshot: Snapshot, partition: int) -> str:
    record = snapshot.owned[partition].record
    if record.state is not State.OWNED:
        return "nobody owns it"
    if snapshot.owner(partition) is None:
        known = record.pod_uid in snapshot.heartbeats or record.pod_uid in snapshot.holders
        return f"its owner {pod_name(snapshot, record.pod_uid)} is {'silent' if known else 'gone'}"
    if partition in snapshot.doubly_owned:
        pods = (pod_name(snapshot, uid) for uid in snapshot.serving[partition])
        return f"served by {' and by '.join(pods)}"
    return "its owner does not serve it" if partition in snapshot.unserved else ""


def _handoff(snapshot: Snapshot, partition: int) -> str:
    """What is under way, if the partition is on its way to another pod."""
    if partition not in snapshot.moving:
        return ""
    assert snapshot.layout is not None
    target = snapshot.layout.owner(partition)
    claim = snapshot.claims.get(target or "")
    if claim is None:
        return f"the ring gives it to {target}, which nobody holds: its owner goes on"
    return f"moves to {target} at {claim.pod_name}"


def pod_name(snapshot: Snapshot, pod_uid: str) -> str:
    """The pod's name as its claim or its heartbeat has it; its UID where there is neither."""
    beat = snapshot.heartbeats.get(pod_uid)
    if beat is not None:
        return beat.pod_name
    names = (claim.pod_name for claim in snapshot.claims.values() if claim.pod_uid == pod_uid)
    return next(names, pod_uid)
