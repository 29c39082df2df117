"""Reads the fleet's buckets and consumers, as they stand, into a `Snapshot`.

Ages are by the server's clock alone (its time of each entry, its time now), so they do not depend on how
the clocks of pods and of this machine go. A reading leaves nothing behind at the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from runtime.cli import terminal
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import SettingsError
from runtime.fleet_snapshot import Backlog, Owned, Snapshot, leader_seen
from runtime.frames import header
from runtime.identity import Claim
from runtime.jetstream import NotFound, UnexpectedAnswer
from runtime.membership import Heartbeat
from runtime.names import parse_consumer
from runtime.ownership_record import Record, key
from runtime.records import (
    FORGET_PREFIX,
    FROZEN_KEY,
    RING_KEY,
    TRACKS_KEY,
    Frozen,
    Layout,
    RingRecord,
    Tracks,
)

KEYS_A_REQUEST: Final = 500
"""The server answers for 1,024 keys at most."""
T = TypeVar("T")


class Key(NamedTuple):
    """A key that has a value, its revision, and how long ago it was written."""

    value: bytes
    revision: int
    age_s: float


async def read_snapshot(connection: Connection, settings: Settings) -> Snapshot:
    """The fleet as it stands. Raises InputError where a bucket is missing, SettingsError for PARTITIONS."""
    names = settings.names
    fleet_keys = [RING_KEY, TRACKS_KEY, FROZEN_KEY, f"{FORGET_PREFIX}>"]
    records = [key(partition) for partition in range(settings.partitions)]
    claims, beats, assignments, leaders = await asyncio.gather(
        _fleet_entries(connection, settings, "nats_kv_stable_ids"),
        _fleet_entries(connection, settings, "nats_kv_heartbeats"),
        _fleet_entries(connection, settings, "nats_kv_assignments", [*fleet_keys, *records]),
        _fleet_entries(connection, settings, "nats_kv_leader"),
    )
    # Before the streams are looked for: their names too depend on PARTITIONS.
    layout, problem = laid_out(assignments.get(RING_KEY), settings)
    streams = [names.samples_stream(names.partitions_of_shard(shard)[0]) for shard in range(names.shards)]
    consumers = [row for stream in streams for row in await _fleet_consumers(connection, stream)]
    heartbeats = {uid: beat for uid, one in beats.items() if (beat := _decoded(one, Heartbeat))}
    leader = leaders.get("leader")
    return Snapshot(
        now=datetime.now(UTC),
        partitions=settings.partitions,
        claims={stable_id: claim for stable_id, one in claims.items() if (claim := _decoded(one, Claim))},
        heartbeats=heartbeats,
        ages_s={uid: beats[uid].age_s for uid in heartbeats},
        owned=dict(_owned(assignments, settings.partitions)),
        backlogs=backlogs(consumers),
        layout=layout,
        ring_problem=problem,
        tracks=_decoded(assignments.get(TRACKS_KEY), Tracks) or Tracks(),
        frozen=_decoded(assignments.get(FROZEN_KEY), Frozen),
        forget=frozenset(
            name.removeprefix(FORGET_PREFIX) for name in assignments if name.startswith(FORGET_PREFIX)
        ),
        leader=leader_seen(leader.value if leader else None),
        silence_s=settings.silence_s,
    )


def laid_out(stored: Key | None, settings: Settings) -> tuple[Layout | None, str]:
    """(layout, "") of the stored ring, or (None, why it cannot be used). Raises SettingsError."""
    if stored is None:
        return None, ""
    try:
        record = msgspec.json.decode(stored.value, type=RingRecord)
        layout = Layout(record)
    except (msgspec.MsgspecError, ValueError) as error:
        return None, str(error)
    if record.partitions != settings.partitions:
        raise SettingsError(
            "PARTITIONS",
            f"this command was given {settings.partitions}, the fleet's ring has {record.partitions}: run it "
            f"with PARTITIONS={record.partitions}; if the fleet's defenders have "
            f"{settings.partitions} too, the record is wrong: see DefenderRingUnusable in the runbook",
        )
    return layout, ""


async def _fleet_entries(
    connection: Connection, settings: Settings, setting: str, keys: Sequence[str] = (">",)
) -> dict[str, Key]:
    """`entries` of the bucket that a setting names. Raises InputError when there is none."""
    bucket: str = getattr(settings, setting)
    try:
        return await entries(connection, settings, bucket, keys)
    except NotFound as error:
        raise terminal.missing("bucket", bucket, f"NATS_SERVERS or {setting.upper()}") from error


async def _fleet_consumers(connection: Connection, stream: str) -> list[dict[str, Any]]:
    """`consumers_of` a stream of reports. Raises InputError when there is none."""
    try:
        return [row async for row in consumers_of(connection, stream)]
    except NotFound as error:
        settings_named = "NATS_SERVERS, STREAM_SAMPLES or PARTITIONS"
        raise terminal.missing("stream", stream, settings_named) from error


async def entries(
    connection: Connection, settings: Settings, bucket: str, keys: Sequence[str] = (">",)
) -> dict[str, Key]:
    """The keys of a bucket that match and have a value. Raises NotFound when there is no such bucket."""
    stream, prefix, timeout_s = f"KV_{bucket}", f"$KV.{bucket}.", settings.request_timeout_s
    now = datetime.fromisoformat((await connection.api(f"STREAM.INFO.{stream}", timeout_s=timeout_s))["ts"])
    found: dict[str, Key] = {}
    for first in range(0, len(keys), KEYS_A_REQUEST):
        request = {"multi_last": [prefix + one for one in keys[first : first + KEYS_A_REQUEST]]}
        *replies, end = await connection.call_several(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), timeout_s=timeout_s
        )
        if end.status not in (b"204", b"404"):
            raise UnexpectedAnswer(f"{stream}: a get of its keys ended with status {end.status!r}")
        for reply in replies:
            told = {name: header(reply.headers, name) or b"" for name in _TOLD}
            if told[b"KV-Operation"] or told[b"Nats-Marker-Reason"]:
                continue  # deleted, or expired
            age = now - datetime.fromisoformat(told[b"Nats-Time-Stamp"].decode())
            name = told[b"Nats-Subject"].decode().removeprefix(prefix)
            found[name] = Key(reply.payload, int(told[b"Nats-Sequence"]), max(0.0, age.total_seconds()))
    return found


_TOLD: Final = (b"Nats-Subject", b"Nats-Sequence", b"Nats-Time-Stamp", b"KV-Operation", b"Nats-Marker-Reason")


def _decoded(stored: Key | None, kind: type[T]) -> T | None:
    """None also for a value that is none of ours."""
    if stored is not None:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(stored.value, type=kind)
    return None


def _owned(assignments: Mapping[str, Key], partitions: int) -> Iterable[tuple[int, Owned]]:
    for partition in range(partitions):
        stored = assignments.get(key(partition))
        record = _decoded(stored, Record)
        if stored is not None and record is not None:
            yield partition, Owned(record, record.epoch or stored.revision, stored.age_s)


def backlogs(consumers: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], Backlog]:
    """By (partition, epoch), from the server's answers about consumers; those that are not ours left out."""
    found: dict[tuple[int, int], Backlog] = {}
    for consumer in consumers:
        parsed = parse_consumer(str(consumer["name"]))
        if parsed is not None:
            found[parsed] = Backlog(int(consumer["num_pending"]), int(consumer["num_ack_pending"]))
    return found


async def consumers_of(connection: Connection, stream: str) -> AsyncIterator[dict[str, Any]]:
    """What the server says of every consumer of a stream, page by page."""
    offset = 0
    while True:
        page = await connection.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
        consumers = page.get("consumers") or []
        for consumer in consumers:
            yield consumer
        offset += len(consumers)
        if not consumers or offset >= page["total"]:
            return
