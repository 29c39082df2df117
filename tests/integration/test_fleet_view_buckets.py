"""The view of the fleet on a real server: what it shows, what it survives, how it heals."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from runtime.bucket import Bucket, Entry
from runtime.bus import Connection
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.fleet_view import FleetView
from runtime.identity import Claim
from runtime.membership import Heart, Heartbeat, State
from runtime.ownership_record import Record
from runtime.ownership_record import State as Owned
from runtime.records import Frozen, Member, RingRecord, Tracks
from runtime.resources import ensure

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Watch:
    """A monotonic clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def viewed(settings: Settings, **options: Any) -> AsyncIterator[tuple[Connection, FleetView]]:
    """A connection with a view that has started."""
    async with connected(settings) as connection:
        await ensure(connection, settings)
        view = FleetView(connection, settings, random=Random(1), **options)
        await view.start()
        try:
            yield connection, view
        finally:
            await view.stop()


def bucket(connection: Connection, name: str) -> Bucket:
    return Bucket(connection, name, random=Random(2))


def claim(number: int, uid: str = "uid-a", **changes: Any) -> Claim:
    one = Claim(f"defender-{number}", uid, uid.removeprefix("uid-"), "stable", "r1", NOW, "s")
    return msgspec.structs.replace(one, **changes)


def beat(uid: str = "uid-a", state: State = State.ACTIVE, **changes: Any) -> Heartbeat:
    one = Heartbeat(uid, uid.removeprefix("uid-"), "stable", "r1", state, NOW)
    return msgspec.structs.replace(one, **changes)


encode = msgspec.json.encode


async def test_a_view_that_starts_late_is_complete_at_once(settings: Settings) -> None:
    async with connected(settings) as other:
        await ensure(other, settings)
        assignments = bucket(other, settings.nats_kv_assignments)
        await bucket(other, settings.nats_kv_stable_ids).put("defender-3", encode(claim(3)))
        await bucket(other, settings.nats_kv_heartbeats).put("uid-a", encode(beat()))
        owned = await assignments.put("partition.7", encode(Record(Owned.OWNED, "defender-3", "uid-a")))
        ring = RingRecord(4, settings.partitions, {"defender-3": Member("stable")})
        committed = await assignments.put("ring", encode(ring))
        await assignments.put("tracks", encode(Tracks(in_ring={"blue": False})))
        await assignments.put("frozen", encode(Frozen("me", NOW)))
        await assignments.put("forget.defender-9", b"{}")
        await bucket(other, settings.nats_kv_leader).put("leader", b"who")
        async with viewed(settings) as (_, view):
            assert {key: seen.value for key, seen in view.claims.items()} == {"defender-3": claim(3)}
            assert view.held == {"uid-a": ["defender-3"]}
            assert view.beats["uid-a"].value == beat()
            assert (view.records[7].value.owner, view.records[7].revision) == ("defender-3", owned)
            assert view.ring is not None
            assert (view.ring.value, view.ring_revision, view.ring_problem) == (ring, committed, "")
            assert view.layout is not None
            assert set(view.layout.owners) == {"defender-3"}
            assert view.tracks.in_ring == {"blue": False}
            assert view.frozen == Frozen("me", NOW)
            assert view.forget == {"defender-9"}
            assert view.leader is not None
            assert view.leader.value == b"who"
            assert view.problems == {}


async def test_a_renewal_is_a_sign_of_life_and_no_change(settings: Settings) -> None:
    watch, told = Watch(), []
    async with viewed(settings, clock=watch) as (connection, view):
        view.subscribe(told.append)
        claims, beats = (
            bucket(connection, name) for name in (settings.nats_kv_stable_ids, settings.nats_kv_heartbeats)
        )
        assert view.silent_s("uid-a") == math.inf
        await claims.put("defender-0", encode(claim(0)))
        await beats.put("uid-b", encode(beat("uid-b")))
        await until(lambda: told == ["claims", "beats"] or told == ["beats", "claims"])
        watch.now_s += 5
        assert view.silent_s("uid-a") == view.silent_s("uid-b") == 5
        renewed = await claims.put("defender-0", encode(claim(0)))
        again = await beats.put("uid-b", encode(beat("uid-b", at=datetime.now(UTC))))
        await until(lambda: view.silent_s("uid-a") == view.silent_s("uid-b") == 0)
        assert (view.claims["defender-0"].revision, view.beats["uid-b"].revision) == (renewed, again)
        assert len(told) == 2
        await claims.delete("defender-0", renewed)
        await until(lambda: not view.claims)
        assert view.held == {}
        assert view.claim_entries["defender-0"].value is None
        assert told[2:] == ["claims"]


async def test_a_pod_is_gone_without_a_claim_and_without_a_sign_of_life(settings: Settings) -> None:
    watch = Watch()
    async with viewed(settings, clock=watch) as (connection, view):
        claims = bucket(connection, settings.nats_kv_stable_ids)
        assert view.is_gone("uid-a", silence_s=6)
        held = await claims.put("defender-0", encode(claim(0)))
        await bucket(connection, settings.nats_kv_heartbeats).put("uid-a", encode(beat()))
        await until(lambda: view.beats and view.claims)
        watch.now_s += 100
        assert not view.is_gone("uid-a", silence_s=6)
        await claims.delete("defender-0", held)
        await until(lambda: not view.claims)
        assert view.is_gone("uid-a", silence_s=6)
        await bucket(connection, settings.nats_kv_heartbeats).put("uid-a", encode(beat()))
        await until(lambda: not view.is_gone("uid-a", silence_s=6))


async def test_the_queue_is_by_the_first_heartbeat_and_stays_so(settings: Settings) -> None:
    watch = Watch()
    async with viewed(settings, clock=watch) as (connection, view):
        beats = bucket(connection, settings.nats_kv_heartbeats)
        pods = {
            "uid-a": State.STANDBY, "uid-b": State.STARTING, "uid-c": State.STANDBY, "uid-d": State.DRAINED,
        }  # fmt: skip
        hearts = [Heart(beats, lambda u=uid, s=state: beat(u, s), every_s=9) for uid, state in pods.items()]
        for heart in (*hearts, *reversed(hearts)):
            last = await heart.beat_now()
        await until(lambda: "uid-a" in view.beats and view.beats["uid-a"].revision == last)
        assert view.waiting("stable") == ["uid-a", "uid-b", "uid-c"]
        assert view.waiting("blue") == []
        await bucket(connection, settings.nats_kv_stable_ids).put("defender-0", encode(claim(0)))
        await until(lambda: view.claims)
        assert view.waiting("stable") == ["uid-b", "uid-c"]
        watch.now_s += settings.silence_s + 1
        await hearts[2].beat_now()
        await until(lambda: view.waiting("stable") == ["uid-c"])


async def test_what_was_written_by_hand_is_left_out_and_named(settings: Settings) -> None:
    async with viewed(settings) as (connection, view):
        assignments = bucket(connection, settings.nats_kv_assignments)
        good = RingRecord(1, settings.partitions, {"defender-0": Member("stable")})
        await assignments.put("ring", encode(good))
        await assignments.put("tracks", encode(Tracks(in_ring={"blue": True})))
        await until(lambda: view.ring and view.tracks.in_ring)
        for key in ("ring", "tracks", "frozen", "partition.1", "partition.x"):
            last = await assignments.put(key, b"\xff\xfe{ by hand")
        await bucket(connection, settings.nats_kv_stable_ids).put("defender-0", encode(claim(5)))
        await bucket(connection, settings.nats_kv_heartbeats).put("uid-z", encode(beat("uid-a")))
        await until(lambda: len(view.problems) == 7)
        assert view.ring is not None
        assert view.ring.value == good
        assert view.ring_revision != view.ring.revision
        assert view.ring_problem
        assert view.tracks.in_ring == {"blue": True}
        assert view.frozen is not None
        assert view.records == {}
        assert view.standing(1)[1] == last - 1
        assert (view.claims, view.beats) == ({}, {})
        assert view.claim_entries["defender-0"].value is not None
        await assignments.put("ring", encode(msgspec.structs.replace(good, version=2)))
        await until(lambda: view.ring_problem == "")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"algorithm": 999}, "999"), ({"partitions": 7}, "PARTITIONS"), ({"pins": {"t": [70]}}, "70")],
)
async def test_a_ring_that_this_version_cannot_compute_is_named(
    settings: Settings, changes: dict[str, Any], problem: str
) -> None:
    async with viewed(settings) as (connection, view):
        ring = RingRecord(1, settings.partitions, {"defender-0": Member("stable")})
        wrong = encode(msgspec.structs.replace(ring, **changes))
        await bucket(connection, settings.nats_kv_assignments).put("ring", wrong)
        await until(lambda: view.ring_problem)
        assert problem in view.ring_problem
        assert view.layout is None


async def test_a_deleted_ring_stands_until_it_is_written_again(settings: Settings) -> None:
    async with viewed(settings) as (connection, view):
        assignments = bucket(connection, settings.nats_kv_assignments)
        ring = RingRecord(1, settings.partitions, {"defender-0": Member("stable")})
        first = await assignments.put("ring", encode(ring))
        gone = await assignments.delete("ring", first)
        await until(lambda: view.ring_revision == gone)
        assert view.ring is not None
        assert "deleted" in view.ring_problem


async def test_a_bucket_deleted_and_made_anew_is_seen_as_it_is_then(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    async with viewed(settings) as (connection, view):
        name = settings.nats_kv_stable_ids
        claims = bucket(connection, name)
        for _ in range(20):
            await claims.put("defender-0", encode(claim(0)))
            await claims.put("defender-1", encode(claim(1, "uid-b")))
        await until(lambda: view.claims.get("defender-1") and view.claims["defender-1"].revision == 40)
        await connection.api(f"STREAM.DELETE.KV_{name}")
        await ensure(connection, settings)
        anew = await claims.put("defender-0", encode(claim(0, "uid-c")))
        assert anew == 1
        await until(lambda: view.held == {"uid-c": ["defender-0"]}, deadline_s=9)
        assert view.claim_entries == {"defender-0": Entry("defender-0", encode(claim(0, "uid-c")), 1)}
        live = await claims.put("defender-1", encode(claim(1, "uid-d")))
        await until(lambda: view.claims.get("defender-1"), deadline_s=1)
        assert view.claims["defender-1"].revision == live


async def test_a_view_heals_at_once_when_it_is_connected_again(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    async with viewed(settings) as (connection, view), connected(settings) as other:
        own_server.kill()
        own_server.start()
        await until(lambda: other.stats["reconnects"] == 1 and other.is_connected)
        await bucket(other, settings.nats_kv_stable_ids).put("defender-0", encode(claim(0)))
        await until(lambda: connection.stats["reconnects"] == 1 and connection.is_connected)
        await until(lambda: view.claims, deadline_s=2)


async def test_a_request_that_names_a_newer_ring_gets_it_read(settings: Settings) -> None:
    async with viewed(settings) as (connection, view):
        ring = RingRecord(1, settings.partitions, {"defender-0": Member("stable")})
        await bucket(connection, settings.nats_kv_assignments).put("ring", encode(ring))
        await view.reread_ring()
        assert view.ring is not None
        assert view.ring.value.version == 1


async def test_a_second_process_under_our_uid_is_logged_once_with_the_remedy(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    mine = msgspec.structs.replace(settings, pod_uid="uid-a")
    async with viewed(mine, session="s-new") as (connection, view):
        beats = bucket(connection, settings.nats_kv_heartbeats)
        for session in ("s-old", "s-new", "s-other", "s-new", "s-other"):
            last = await beats.put("uid-a", encode(beat(session=session)))
        await until(lambda: "uid-a" in view.beats and view.beats["uid-a"].revision == last)
        errors = [record for record in caplog.records if "POD_UID" in record.getMessage()]
        assert len(errors) == 1


async def test_an_id_that_its_active_holder_names_is_kept_while_the_claim_is_missing(
    settings: Settings,
) -> None:
    watch = Watch()
    async with viewed(settings, clock=watch) as (connection, view):
        beats = bucket(connection, settings.nats_kv_heartbeats)
        await beats.put("uid-a", encode(beat(stable_id="defender-0")))
        await beats.put("uid-b", encode(beat("uid-b", State.DRAINING, stable_id="defender-1")))
        await until(lambda: len(view.beats) == 2)
        assert view.kept() == {"defender-0"}
        watch.now_s += settings.silence_s + 1
        assert view.kept() == set()


async def test_after_its_subscription_ended_nobody_is_told(settings: Settings) -> None:
    told: list[str] = []
    async with viewed(settings) as (connection, view):
        cancel = view.subscribe(told.append)
        leader = bucket(connection, settings.nats_kv_leader)
        await leader.put("leader", b"1")
        await until(lambda: told == ["leader"])
        cancel()
        await leader.put("leader", b"2")
        await until(lambda: view.leader is not None and view.leader.value == b"2")
        assert told == ["leader"]
