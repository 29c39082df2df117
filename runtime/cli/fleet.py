"""Who holds what: records of the buckets and figures of the consumers, turned into rows. Pure.

A `Snapshot` is what was read at one time; `defender_rows` and `partition_rows` make of it what people see,
and name what is wrong: a claim whose holder is silent, a partition that nobody alive owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from runtime.identity import Claim
from runtime.membership import Heartbeat
from runtime.names import parse_consumer
from runtime.ownership import Record, State


class Backlog(Struct, frozen=True):
    """A partition's consumer: reports that wait in the stream, and those that are being judged."""

    waiting: int
    unacked: int

    @property
    def lag(self) -> int:
        return self.waiting + self.unacked


class Owned(Struct, frozen=True):
    """An ownership record with its epoch (the revision that the acquisition got)."""

    record: Record
    epoch: int


class Snapshot(Struct, frozen=True):
    """What was read; claims by stable ID, heartbeats by pod UID, the rest by partition."""

    now: datetime
    partitions: int
    claims: Mapping[str, Claim] = {}
    heartbeats: Mapping[str, Heartbeat] = {}
    owned: Mapping[int, Owned] = {}
    backlogs: Mapping[tuple[int, int], Backlog] = {}


class DefenderRow(Struct, frozen=True):
    """One pod: a holder, a standby, or a claim whose pod is silent."""

    stable_id: str | None
    state: str
    pod: str
    pod_uid: str
    track: str
    revision: str
    heartbeat_age_s: float | None
    workers: int
    partitions: int
    lag: int
    samples: int
    cache_used: float
    remark: str


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


def defender_rows(snapshot: Snapshot) -> list[DefenderRow]:
    """Holders in the order of their IDs, then those without one."""
    lags: dict[str | None, int] = {}
    counts: dict[str | None, int] = {}
    for row in partition_rows(snapshot):
        counts[row.owner] = counts.get(row.owner, 0) + 1
        lags[row.owner] = lags.get(row.owner, 0) + row.waiting + row.unacked
    rows = []
    for stable_id, claim in sorted(snapshot.claims.items(), key=lambda item: _natural(item[0])):
        beat = snapshot.heartbeats.get(claim.pod_uid)
        remark = "" if beat else "no heartbeat: starting, or dead until its claim expires"
        rows.append(_row(snapshot, stable_id, claim, beat, counts, lags, remark))
    holders = {claim.pod_uid for claim in snapshot.claims.values()}
    for beat in sorted(snapshot.heartbeats.values(), key=lambda beat: beat.pod_name):
        if beat.pod_uid not in holders:
            remark = beat.standby or ("says it holds an ID that is not claimed" if beat.stable_id else "")
            rows.append(_row(snapshot, None, beat, beat, counts, lags, remark))
    return rows


def _row(
    snapshot: Snapshot,
    stable_id: str | None,
    pod: Claim | Heartbeat,
    beat: Heartbeat | None,
    counts: Mapping[str | None, int],
    lags: Mapping[str | None, int],
    remark: str,
) -> DefenderRow:
    load = beat.load if beat else None
    return DefenderRow(
        stable_id=stable_id,
        state=beat.state.value if beat else "silent",
        pod=pod.pod_name,
        pod_uid=pod.pod_uid,
        track=pod.track,
        revision=pod.revision,
        heartbeat_age_s=max(0.0, (snapshot.now - beat.at).total_seconds()) if beat else None,
        workers=load.workers if load else 0,
        partitions=counts.get(stable_id, 0) if stable_id else 0,
        lag=lags.get(stable_id, 0) if stable_id else 0,
        samples=load.samples if load else 0,
        cache_used=load.slots_used / load.slots_total if load and load.slots_total else 0.0,
        remark=remark,
    )


def partition_rows(snapshot: Snapshot) -> list[PartitionRow]:
    """Every partition, ascending; those that were never owned too."""
    rows = []
    for partition in range(snapshot.partitions):
        owned = snapshot.owned.get(partition)
        if owned is None:
            rows.append(PartitionRow(partition, None, "", "vacant", 0, 0, 0, 0, "never owned"))
            continue
        record = owned.record
        claim = snapshot.claims.get(record.owner or "")
        backlog = snapshot.backlogs.get((partition, owned.epoch))
        owns = record.state in (State.OWNED, State.RELEASING)
        rows.append(
            PartitionRow(
                partition=partition,
                owner=record.owner if owns else None,
                pod=claim.pod_name if claim and owns else "",
                state=record.state.value,
                epoch=owned.epoch,
                position=record.position,
                waiting=backlog.waiting if backlog else 0,
                unacked=backlog.unacked if backlog else 0,
                remark=_remark(record, claim, backlog, owns=owns),
                worker=record.worker if owns and record.worker >= 0 else None,
            )
        )
    return rows


def _remark(record: Record, claim: Claim | None, backlog: Backlog | None, *, owns: bool) -> str:
    if not owns:
        return "nobody owns it"
    if claim is None:
        return f"its owner {record.owner} holds no ID any more"
    if claim.pod_uid != record.pod_uid:
        return "its owner's ID is held by another pod, which has not acquired it yet"
    return "" if backlog else "its consumer is missing"


def backlogs(consumers: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], Backlog]:
    """By (partition, epoch), from the server's answers about consumers; those that are not ours left out."""
    found: dict[tuple[int, int], Backlog] = {}
    for consumer in consumers:
        key = parse_consumer(str(consumer["name"]))
        if key is not None:
            found[key] = Backlog(int(consumer["num_pending"]), int(consumer["num_ack_pending"]))
    return found


def trouble(snapshot: Snapshot) -> list[str]:
    """What a person should know first."""
    rows = partition_rows(snapshot)
    without = [row for row in rows if row.remark and row.remark != "its consumer is missing"]
    problems = []
    if not snapshot.claims:
        problems.append("no defender holds an ID: nothing is judged")
    if without:
        shown = ", ".join(str(row.partition) for row in without[:8]) + (" …" if len(without) > 8 else "")
        problems.append(f"{len(without)} of {len(rows)} partitions have no live owner: {shown}")
    return problems


def _natural(stable_id: str) -> tuple[str, int]:
    """defender-10 after defender-9."""
    name, _, number = stable_id.rpartition("-")
    return (name, int(number)) if number.isdecimal() else (stable_id, -1)
