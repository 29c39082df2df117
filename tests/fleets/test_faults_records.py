"""Mistakes of people: one POD_UID twice, too few IDs, records written by hand. The fleet heals, or says what
an operator must do; each report is judged once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from fleet import until

from bench.lab.pods import Pod
from runtime.embedded import NatsServer
from runtime.errors import SettingsError
from runtime.identity import Standby
from runtime.membership import Heartbeat, State
from runtime.records import Member, RingRecord
from tests.fleets.troubled import REVISION, Troubled, troubled, troubled_settings

NOW = datetime(2025, 3, 1, tzinfo=UTC)
GARBAGE = (b"", b"\xff\x00garbage", b"[]", b'{"state": 7, "members": "all"}', b"[" * 5000)


async def test_two_processes_of_one_pod(own_server: NatsServer) -> None:
    """A second process with name and UID of the first takes its ID; the first leaves and names POD_UID."""
    async with troubled(troubled_settings(own_server)) as fleet:
        pod, begin_ns, holders = (await fleet.followers())[0], time.time_ns(), fleet.holders
        async with fleet.fleet.event("a second process of one pod"):
            with Pod(pod.settings) as second:
                cause = await fleet.fenced(pod)
                await second.wait_serving()
                await fleet.more()
                second.kill()
                await fleet.reborn(pod)
                await fleet.steady(3)
        assert "POD_UID" in cause
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)


async def test_two_pods_with_one_uid(own_server: NatsServer) -> None:
    """A pod with another's UID is refused with what to do; the other says so too, and keeps its ID."""
    async with troubled(troubled_settings(own_server)) as fleet:
        pod, begin_ns, holders = (await fleet.followers())[0], time.time_ns(), fleet.holders
        async with fleet.fleet.event("another pod with one's UID"):
            with Pod(msgspec.structs.replace(pod.settings, pod_name="another")) as other:
                assert await other.wait_exit() == SettingsError.exit_code
                assert other.said("POD_UID")
                assert other.said("give each pod its own")
            await fleet.more()
            await fleet.steady(3)
        assert pod.said("another process beats under our POD_UID")
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)


async def test_fewer_ids_than_pods(own_server: NatsServer) -> None:
    """The pod without an ID stands by and says why; when another leaves, it takes that one's."""
    async with troubled(troubled_settings(own_server, id_range="0-2")) as fleet:
        before = set(fleet.holders.values())
        await fleet.deployment.scale(4)
        (standby,) = fleet.standbys
        await until(lambda: standby.lines("standby"), what="it says that it stands by")
        assert standby.lines("standby")[-1]["reason"] == Standby.NONE_FREE
        beat = await _beat_of(fleet, standby)
        assert (beat.state, beat.standby) == (State.STANDBY, Standby.NONE_FREE)
        leaving = (await fleet.followers())[0]
        stable_id = fleet.id_of(leaving)
        async with fleet.fleet.event("one leaves, the standby gets in"):
            await fleet.deployment.terminate(leaving)
            await fleet.steady(3)
            await fleet.more()
        assert fleet.id_of(standby) == stable_id
        assert len(before & set(fleet.holders.values())) == 2


async def _beat_of(fleet: Troubled, pod: Pod) -> Heartbeat:
    entry = await fleet.bucket(fleet.settings.nats_kv_heartbeats).get(pod.settings.pod_uid)
    assert entry is not None
    assert entry.value is not None
    return msgspec.json.decode(entry.value, type=Heartbeat)


async def test_claims_and_heartbeats_by_hand(own_server: NatsServer) -> None:
    """Garbage is ignored, ghosts go within the silence; a holder whose claim is overwritten starts anew."""
    async with troubled(troubled_settings(own_server, id_range="0-9")) as fleet:
        claims = fleet.bucket(fleet.settings.nats_kv_stable_ids)
        beats = fleet.bucket(fleet.settings.nats_kv_heartbeats)
        begin_ns, holders = time.time_ns(), fleet.holders
        async with fleet.fleet.event("garbage, ghosts"):
            for number, garbage in enumerate(GARBAGE):
                await claims.put(f"defender-{5 + number}", garbage)
                await beats.put(f"garbage-{number}", garbage)
            await claims.put("no-id-at-all", _claim("no-id-at-all", "ghost-1"))
            await claims.put("defender-3", _claim("defender-3", "ghost-2"))
            await claims.put("defender-4", _claim("defender-0", "ghost-3"))
            await beats.put("ghost-4", _beat("ghost-4", state="active", stable_id="defender-1"))
            await beats.put("ghost-5", _beat("ghost-5", state="standby", warm=True))
            await beats.put("ghost-6", _beat("somebody-else"))
            await until(lambda: "ghost-2" not in fleet.holders.values(), deadline_s=15.0)
            await fleet.steady(3)
            await fleet.more()
        assert not fleet.moved_since(begin_ns)
        assert {one: uid for one, uid in fleet.holders.items() if one in holders} == holders
        stable_id, uid = sorted(holders.items())[-1]
        pod = fleet.pod(uid)
        async with fleet.fleet.event("a living claim overwritten"):
            await claims.put(stable_id, GARBAGE[1])
            cause = await fleet.fenced(pod)
            await fleet.reborn(pod)
            await fleet.steady(3)
            await fleet.more()
        assert "somebody unknown holds it" in cause
        await fleet.well()


def _claim(stable_id: str, uid: str) -> bytes:
    claim = {"stable_id": stable_id, "pod_uid": uid, "pod_name": uid, "track": "stable", "revision": REVISION}
    return msgspec.json.encode({**claim, "claimed_at": NOW, "session": "by hand"})


def _beat(uid: str, **more: Any) -> bytes:
    beat = {"pod_uid": uid, "pod_name": uid, "track": "stable", "revision": REVISION, "state": "starting"}
    return msgspec.json.encode({**beat, "at": NOW, **more})


async def test_owners_by_hand(own_server: NatsServer) -> None:
    """A record that says that a ghost, nobody or the wrong pod owns a partition is written again."""
    async with troubled(troubled_settings(own_server)) as fleet:
        bucket, owners = fleet.assignments, {p: fleet.observer.record(p).pod_uid for p in range(16)}
        stable_id, uid = sorted(fleet.holders.items())[0]
        others = [p for p in range(11, 16) if owners[p] != uid]
        async with fleet.fleet.event("owners by hand"):
            for partition, garbage in enumerate(GARBAGE):
                await bucket.put(f"partition.{partition}", garbage)
            await bucket.put("partition.8", _owned("ghost", "ghost"))
            await bucket.put("partition.9", _owned("ghost", "ghost", epoch=10**9, position=10**9))
            await bucket.put("partition.10", msgspec.json.encode({"state": "released", "next": "ghost"}))
            await bucket.put(f"partition.{others[0]}", _owned(stable_id, uid, epoch=1))
            await bucket.put("partition.99", _owned("ghost", "ghost"))
            await bucket.put("partition.x", _owned("ghost", "ghost"))
            await fleet.steady(3)
            await fleet.more()
        assert {p: fleet.observer.record(p).pod_uid for p in range(16)} == owners
        await fleet.well()


def _owned(owner: str, uid: str, **more: int) -> bytes:
    return msgspec.json.encode({"state": "owned", "owner": owner, "pod_uid": uid, **more})


async def test_the_ring_by_hand(own_server: NatsServer) -> None:
    """A ring that cannot be read, or of ghosts, is written again; other PARTITIONS are told of."""
    async with troubled(troubled_settings(own_server)) as fleet:
        begin_ns, holders, bucket = time.time_ns(), fleet.holders, fleet.assignments
        good = fleet.observer.ring
        assert good is not None
        async with fleet.fleet.event("the ring: garbage"):
            for garbage in GARBAGE:
                revision = await bucket.put("ring", garbage)
                await until(lambda revision=revision: _ring_since(fleet, revision), what="written again")
        assert not fleet.moved_since(begin_ns)
        async with fleet.fleet.event("the ring: of ghosts"):
            ghosts = {f"ghost-{number}": Member("stable") for number in range(2)}
            await bucket.put("ring", msgspec.json.encode(RingRecord(1000, 16, ghosts)))
            await until(lambda: _members(fleet) == good.members.keys(), deadline_s=15.0)
            await fleet.steady(3)
        async with fleet.fleet.event("the ring: of other PARTITIONS, of another version"):
            of_others, newer = RingRecord(1, 8, dict(good.members)), RingRecord(1, 16, {}, algorithm=99)
            for strange, alarm in ((of_others, "PARTITIONS"), (newer, "the ring's record cannot be used")):
                await bucket.put("ring", msgspec.json.encode(strange))
                await fleet.told(alarm)
                await fleet.more()
                await bucket.put("ring", msgspec.json.encode(good))
                await fleet.well()
        async with fleet.fleet.event("the ring: of other PARTITIONS, deleted"):
            revision = await bucket.put("ring", msgspec.json.encode(of_others))
            await fleet.told("PARTITIONS")
            await bucket.delete("ring", revision)
            await fleet.steady(3)
            await fleet.well()
        assert fleet.holders == holders
        assert all(pod.exit_code is None for pod in fleet.pods)


async def _ring_since(fleet: Troubled, revision: int) -> bool:
    entry = await fleet.assignments.get("ring")
    return entry is not None and entry.revision > revision


def _members(fleet: Troubled) -> Any:
    ring = fleet.observer.ring
    return ring.members.keys() if ring is not None else ()


async def test_operators_words_by_hand(own_server: NatsServer) -> None:
    """Unreadable tracks change nothing, an unreadable freeze freezes until `defender unfreeze`."""
    async with troubled(troubled_settings(own_server)) as fleet:
        begin_ns, bucket = time.time_ns(), fleet.assignments
        words: Mapping[str, Any]
        async with fleet.fleet.event("tracks by hand"):
            for garbage in GARBAGE:
                await bucket.put("tracks", garbage)
            for words in ({"in_ring": {"stable": False}}, {"chambers": {"ghost": ["C-01", "C-02"]}}):
                await bucket.put("tracks", msgspec.json.encode(words))
                await fleet.more()
            await bucket.put("tracks", b"{}")
            await bucket.put("forget.ghost", b"")
            await fleet.steady(3)
        assert not fleet.moved_since(begin_ns)
        async with fleet.fleet.event("frozen by hand"):
            await bucket.put("frozen", GARBAGE[1])
            assert "defender unfreeze" in await fleet.fleet.command("status")
            joining = asyncio.create_task(fleet.deployment.scale(4))
            await until(lambda: len(fleet.holders) == 4, deadline_s=15.0, what="another holds an ID")
            await fleet.more(300)
            assert len(_members(fleet)) == 3
            await fleet.fleet.command("unfreeze")
            await joining
            await fleet.steady(4)
            await fleet.more()
        await fleet.well()
