"""Claims and leases on a real server: who gets the ID, who keeps it, who is fenced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from runtime.bucket import Bucket
from runtime.bus import Connection, NoAnswer
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import Fenced, ResourceDiffers, SettingsError
from runtime.fleet_view import FleetView
from runtime.identity import Claim, Claimant, Lease, LeaseState, Standby
from runtime.membership import Heart, Heartbeat, State
from runtime.records import Member, RingRecord
from runtime.resources import ensure

FAST: dict[str, Any] = {"lease_ttl_s": 2.0, "lease_held_s": 1.0, "renew_s": 0.1, "request_timeout_s": 0.5}


class Watch:
    """A monotonic clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def bucket_of(connection: Connection, settings: Settings, seed: int = 1) -> Bucket:
    return Bucket(
        connection, settings.nats_kv_stable_ids, random=Random(seed), timeout_s=settings.request_timeout_s
    )


def pod(settings: Settings, name: str, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, pod_name=name, pod_uid=f"uid-{name}", **changes)


@asynccontextmanager
async def claiming(
    settings: Settings, seed: int = 1, *, state: State = State.STARTING, **more: Any
) -> AsyncIterator[tuple[Connection, Claimant]]:
    """A pod that may claim: its connection, its view, its heartbeat."""
    async with connected(settings) as connection:
        await ensure(connection, settings)
        view = FleetView(connection, settings, random=Random(seed))
        await view.start()
        uid, name = settings.pod_uid, settings.pod_name
        beat = Heartbeat(uid, name, settings.track, settings.revision, state, datetime.now(UTC))
        hearts = Bucket(connection, settings.nats_kv_heartbeats, random=Random(seed))
        heart = Heart(hearts, lambda: beat, every_s=settings.renew_s)
        heart.begin()
        try:
            yield (
                connection,
                Claimant(bucket_of(connection, settings, seed), settings, view, random=Random(seed), **more),
            )
        finally:
            await heart.stop()
            await view.stop()


@asynccontextmanager
async def claimed(
    settings: Settings, seed: int = 1, **more: Any
) -> AsyncIterator[tuple[Connection, Lease, list[Fenced]]]:
    """A connection with a lease that renews; what fenced it goes into the list."""
    async with claiming(settings, seed, **more) as (connection, claimant):
        lease = await claimant.claim()
        fenced: list[Fenced] = []
        lease.begin(fenced.append)
        try:
            yield connection, lease, fenced
        finally:
            await lease.release()


async def stored_claim(connection: Connection, settings: Settings, stable_id: str) -> Claim | None:
    entry = await bucket_of(connection, settings).get(stable_id)
    return None if entry is None or entry.value is None else msgspec.json.decode(entry.value, type=Claim)


async def test_the_first_defender_gets_the_lowest_id_and_says_who_it_is(settings: Settings) -> None:
    me = pod(settings, "a", track="blue", revision="r7", id_range="3-5")
    async with claimed(me) as (connection, lease, _):
        claim = await stored_claim(connection, me, "defender-3")
        assert claim == lease.claim
        assert claim is not None
        assert (claim.pod_uid, claim.pod_name, claim.track, claim.revision) == ("uid-a", "a", "blue", "r7")


async def test_a_second_defender_stands_by_and_takes_over_when_the_first_releases(settings: Settings) -> None:
    reasons: list[Standby] = []
    one = msgspec.structs.replace(settings, max_defenders=1)
    async with (
        claimed(pod(one, "a")) as (_, first, _fenced),
        claiming(pod(one, "b"), 2) as (_, claimant),
    ):
        standby = asyncio.create_task(claimant.claim(reasons.append))
        await until(lambda: reasons)
        assert reasons == [Standby.ENOUGH_HOLDERS]
        assert not standby.done()
        started = asyncio.get_running_loop().time()
        await first.release()
        second = await asyncio.wait_for(standby, 5)
        assert asyncio.get_running_loop().time() - started < 0.5
        assert second.stable_id == first.stable_id
        assert second.revision > first.revision
        await second.release()


async def test_a_standby_takes_over_when_the_holders_claim_expires(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, max_defenders=1, **FAST)
    async with claiming(pod(settings, "b"), 2) as (_, standby):
        async with claiming(pod(settings, "a")) as (_, first):
            dead = await first.claim()  # never renewed
        alive = await asyncio.wait_for(standby.claim(), 6)
        assert alive.stable_id == dead.stable_id
        await alive.release()


async def test_a_renewed_claim_outlives_its_ttl(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    deadlines: list[float] = []
    async with claiming(settings) as (connection, claimant):
        lease = await claimant.claim()
        first = lease.revision
        lease.begin(pytest.fail, on_renewed=deadlines.append)
        start_s = lease.renewed_s
        await until(lambda: lease.renewed_s - start_s > 2.5)
        assert deadlines == sorted(deadlines)
        assert lease.revision > first
        assert lease.deadline_s - lease.renewed_s == settings.lease_held_s
        assert await stored_claim(connection, settings, lease.stable_id) == lease.claim
        await lease.release()


async def test_a_restarted_container_takes_its_id_back_and_fences_the_process_before_it(
    nats_server: NatsServer,
) -> None:
    settings = pod(settings_for(nats_server, **FAST), "a")
    same = {"now": lambda: datetime(2026, 1, 1, tzinfo=UTC)}
    async with (
        claimed(settings, **same) as (_, old, fenced),
        claimed(settings, 2, **same) as (_, new, _fenced),
    ):
        assert new.stable_id == old.stable_id
        await until(lambda: fenced)
        assert old.state is LeaseState.FENCED
        assert new.state is LeaseState.HELD


async def test_of_two_processes_with_one_uid_the_earlier_is_fenced_and_told_the_remedy(
    nats_server: NatsServer,
) -> None:
    settings = pod(settings_for(nats_server, **FAST), "a")
    async with claimed(settings) as (_, _old, fenced), claimed(settings, 2):
        await until(lambda: fenced)
        assert "POD_UID (uid-a)" in str(fenced[0])


async def test_a_new_revision_stands_by_until_the_old_one_has_left(settings: Settings) -> None:
    reasons: list[Standby] = []
    roomy = msgspec.structs.replace(settings, max_defenders=5)
    newer = pod(roomy, "b", revision="r2")
    async with (
        claimed(pod(roomy, "a", revision="r1"), state=State.ACTIVE) as (_, old, _f),
        claiming(newer, 2) as (_, claimant),
    ):
        standby = asyncio.create_task(claimant.claim(reasons.append))
        await until(lambda: reasons == [Standby.ROLLING_UPDATE])
        await old.release()
        assert (await asyncio.wait_for(standby, 5)).stable_id == old.stable_id


async def test_thirty_pods_at_once_get_the_lowest_ids_with_hardly_an_attempt_too_many(
    settings: Settings,
) -> None:
    async with AsyncExitStack() as stack:
        claimants = [
            (await stack.enter_async_context(claiming(pod(settings, str(number)), number)))[1]
            for number in range(30)
        ]
        leases = await asyncio.wait_for(asyncio.gather(*(one.claim() for one in claimants)), 10)
        assert {lease.stable_id for lease in leases} == {f"defender-{number}" for number in range(30)}
        assert sum(one.attempts for one in claimants) <= 45


async def test_a_vacancy_of_the_ring_is_taken_by_a_pod_of_any_revision(settings: Settings) -> None:
    ring = RingRecord(1, settings.partitions, {f"defender-{n}": Member("stable") for n in (0, 3)})
    async with claimed(pod(settings, "a", revision="r1")) as (connection, _, _fenced):
        assignments = Bucket(connection, settings.nats_kv_assignments, random=Random(1))
        await assignments.put("ring", msgspec.json.encode(ring))
        async with claimed(pod(settings, "b", revision="r2"), 2) as (_, lease, _f):
            assert lease.stable_id == "defender-3"


async def test_an_id_of_the_queues_first_is_taken_by_the_next_when_the_first_does_not_come(
    settings: Settings,
) -> None:
    two = msgspec.structs.replace(settings, max_defenders=2)
    async with claiming(pod(two, "a")), claiming(pod(two, "b"), 2), claimed(pod(two, "c"), 3) as (_, c, _f):
        assert c.stable_id == "defender-0"


async def test_a_pod_that_is_held_back_takes_only_what_is_its_own(settings: Settings) -> None:
    reasons: list[Standby] = []
    async with claiming(pod(settings, "b"), 2) as (connection, claimant):
        claimant.hold(Standby.RESERVED)
        waiting = asyncio.create_task(claimant.claim(reasons.append))
        await until(lambda: reasons == [Standby.RESERVED])
        passed = Claim("defender-4", "uid-b", "b", "stable", "dev", datetime.now(UTC), "s")
        await bucket_of(connection, settings).put("defender-4", msgspec.json.encode(passed))
        assert (await asyncio.wait_for(waiting, 5)).stable_id == "defender-4"
        waiting = asyncio.create_task(claimant.claim())
    async with claiming(pod(settings, "c"), 3) as (_, claimant):
        claimant.hold(Standby.DRAINED)
        waiting = asyncio.create_task(claimant.claim(reasons.append))
        await until(lambda: reasons[-1] is Standby.DRAINED)
        claimant.hold(None)
        assert (await asyncio.wait_for(waiting, 5)).stable_id == "defender-0"


async def test_a_claim_of_our_uid_and_another_name_is_an_error_that_names_both(settings: Settings) -> None:
    twin = msgspec.structs.replace(pod(settings, "twin"), pod_uid="uid-a")
    async with claimed(pod(settings, "a")), claiming(twin, 2) as (_, claimant):
        with pytest.raises(SettingsError, match=r"POD_UID.*'a'.*'twin'"):
            await asyncio.wait_for(claimant.claim(), 5)


async def test_nobody_joins_a_ring_that_he_cannot_compute(settings: Settings) -> None:
    reasons: list[Standby] = []
    async with claiming(settings) as (connection, claimant):
        assignments = Bucket(connection, settings.nats_kv_assignments, random=Random(1))
        ring = RingRecord(1, settings.partitions, {"defender-0": Member("stable")}, algorithm=999)
        first = await assignments.put("ring", msgspec.json.encode(ring))
        await until(lambda: claimant.decision().standby is Standby.RING_UNKNOWN)
        waiting = asyncio.create_task(claimant.claim(reasons.append))
        await until(lambda: reasons == [Standby.RING_UNKNOWN])
        await assignments.delete("ring", first)
        assert (await asyncio.wait_for(waiting, 5)).stable_id == "defender-0"


async def test_a_lease_whose_deadline_has_passed_is_fenced_without_asking(settings: Settings) -> None:
    watch = Watch()
    fast = msgspec.structs.replace(settings, renew_s=0.02)
    async with claimed(fast, clock=watch) as (connection, lease, fenced):
        await until(lambda: lease.revision > 3)
        watch.now_s += settings.lease_held_s
        revision = lease.revision
        await until(lambda: fenced)
        assert "ran out" in str(fenced[0])
        assert lease.revision == revision
        entry = await bucket_of(connection, settings).get(lease.stable_id)
        assert entry is not None
        await lease.release()
        assert (await bucket_of(connection, settings).get(lease.stable_id)) == entry


async def test_a_lease_that_another_took_is_fenced_at_the_next_renewal(settings: Settings) -> None:
    fast = msgspec.structs.replace(settings, renew_s=0.05)
    async with connected(settings) as other, claimed(fast) as (_, lease, fenced):
        thief = msgspec.structs.replace(lease.claim, pod_name="thief", pod_uid="uid-thief", session="x")
        await bucket_of(other, settings).put(lease.stable_id, msgspec.json.encode(thief))
        await until(lambda: fenced)
        assert "thief" in str(fenced[0])
        await lease.release()
        assert await stored_claim(other, settings, lease.stable_id) == thief


async def test_a_renewal_whose_answer_was_lost_is_recognised_as_our_own(settings: Settings) -> None:
    fast = msgspec.structs.replace(settings, renew_s=0.05)
    async with connected(settings) as other, claimed(fast) as (_, lease, fenced):
        behind = await bucket_of(other, settings).put(lease.stable_id, msgspec.json.encode(lease.claim))
        await until(lambda: lease.revision > behind)
        assert fenced == []


async def test_a_holder_cut_off_from_the_server_fences_itself_before_its_claim_can_expire(
    own_server: NatsServer,
) -> None:
    settings = settings_for(own_server, **FAST)
    async with claimed(settings) as (_, lease, fenced):
        own_server.pause()
        await until(lambda: fenced, deadline_s=5)
        assert "ran out" in str(fenced[0])
        assert settings.lease_held_s <= lease.age_s < settings.lease_ttl_s
        own_server.resume()


async def test_a_short_outage_of_the_server_does_not_cost_the_id(own_server: NatsServer) -> None:
    settings = settings_for(own_server, **{**FAST, "lease_held_s": 5.0, "lease_ttl_s": 8.0})
    async with claimed(settings) as (_, lease, fenced):
        own_server.kill()
        own_server.start()
        revision = lease.revision
        await until(lambda: lease.revision > revision, deadline_s=6)
        assert fenced == []


async def test_an_unhealthy_supervisor_lets_its_lease_run_out(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    async with claiming(settings) as (_, claimant):
        lease = await claimant.claim()
        fenced: list[Fenced] = []
        lease.begin(fenced.append, healthy=lambda: False)
        revision = lease.revision
        await until(lambda: fenced, deadline_s=5)
        assert lease.revision == revision


async def test_a_released_claim_is_gone_and_released_once(settings: Settings) -> None:
    async with claimed(settings) as (connection, lease, fenced):
        await lease.release()
        await lease.release()
        assert lease.state is LeaseState.RELEASED
        assert await stored_claim(connection, settings, lease.stable_id) is None
        assert fenced == []


async def test_a_lease_passed_on_is_the_standbys_and_its_last_holder_is_not_fenced(
    nats_server: NatsServer,
) -> None:
    settings = settings_for(nats_server, max_defenders=1, **FAST)
    async with (
        claimed(pod(settings, "a")) as (_, old, fenced),
        claiming(pod(settings, "b"), 2, session="s-b") as (connection, standby),
    ):
        waiting = asyncio.create_task(standby.claim())
        heir = msgspec.structs.replace(old.claim, pod_uid="uid-b", pod_name="b", session="s-b")
        before_s = old.deadline_s
        assert await old.pass_on(heir)
        assert old.state is LeaseState.PASSED
        assert old.deadline_s > before_s
        new = await asyncio.wait_for(waiting, 5)
        lost: list[Fenced] = []
        new.begin(lost.append)
        assert new.stable_id == old.stable_id
        deadline_s, revision = old.deadline_s, new.revision
        await until(lambda: new.revision > revision + 2)
        await old.release()
        assert (old.state, old.deadline_s) == (LeaseState.PASSED, deadline_s)
        claim = await stored_claim(connection, settings, new.stable_id)
        assert claim is not None
        assert (claim.pod_name, claim.session) == ("b", "s-b")
        assert fenced == lost == []
        await new.release()


async def test_a_lease_that_was_lost_cannot_be_passed_on(settings: Settings) -> None:
    async with claimed(settings) as (connection, lease, _):
        heir = msgspec.structs.replace(lease.claim, pod_uid="uid-b", pod_name="b")
        thief = msgspec.structs.replace(heir, pod_uid="uid-thief", pod_name="thief")
        await bucket_of(connection, settings).put(lease.stable_id, msgspec.json.encode(thief))
        with pytest.raises(Fenced, match="thief"):
            await lease.pass_on(heir)
        assert lease.state is LeaseState.FENCED


async def test_a_lease_is_renewed_on_when_nobody_answers_its_passing_on(own_server: NatsServer) -> None:
    settings = settings_for(own_server, **{**FAST, "lease_held_s": 5.0, "lease_ttl_s": 8.0})
    async with claimed(settings) as (_, lease, fenced):
        own_server.pause()
        heir = msgspec.structs.replace(lease.claim, pod_uid="uid-b", pod_name="b")
        assert not await lease.pass_on(heir)
        own_server.resume()
        revision = lease.revision
        await until(lambda: lease.revision > revision)
        assert (lease.state, fenced) == (LeaseState.HELD, [])


async def test_a_deposed_holder_is_fenced_and_does_not_write_its_claim_again(settings: Settings) -> None:
    fast = msgspec.structs.replace(settings, renew_s=0.05)
    async with connected(settings) as other, claimed(fast) as (_, lease, fenced):
        await bucket_of(other, settings).change(lease.stable_id, lambda _: None)
        await until(lambda: fenced)
        assert "deleted" in str(fenced[0])
        assert await stored_claim(other, settings, lease.stable_id) is None


async def test_a_claim_in_a_bucket_that_was_deleted_is_written_again_and_nobody_else_takes_it(
    own_server: NatsServer,
) -> None:
    settings = settings_for(own_server, max_defenders=1, renew_s=0.1)
    repairs: list[float] = []
    mended = asyncio.Event()

    async def repair() -> None:
        repairs.append(asyncio.get_running_loop().time())
        if len(repairs) > 3:
            await ensure(connection, settings)
            mended.set()

    def beat(lease: Lease) -> Heartbeat:
        me = pod(settings, "a")
        return Heartbeat(
            me.pod_uid, me.pod_name, me.track, me.revision, State.ACTIVE, datetime.now(UTC), lease.stable_id
        )

    async with (
        claimed(pod(settings, "a"), repair=repair, state=State.ACTIVE) as (connection, lease, fenced),
        claiming(pod(settings, "b"), 2) as (_, standby),
    ):
        hearts = Bucket(connection, settings.nats_kv_heartbeats, random=Random(3))
        heart = Heart(hearts, lambda: beat(lease), every_s=0.03)
        heart.begin()
        waiting = asyncio.create_task(standby.claim())
        await connection.api(f"STREAM.DELETE.KV_{settings.nats_kv_stable_ids}")
        await mended.wait()
        assert repairs[3] - repairs[0] >= 3 * settings.renew_s * 0.9
        await until(lambda: stored_claim(connection, settings, lease.stable_id))
        assert await stored_claim(connection, settings, lease.stable_id) == lease.claim
        assert fenced == []
        assert not waiting.done()
        waiting.cancel()
        await heart.stop()


async def test_a_release_in_the_midst_of_a_renewal_gives_the_id_back_all_the_same(settings: Settings) -> None:
    async with claimed(settings) as (connection, lease, _):
        await bucket_of(connection, settings).put(lease.stable_id, msgspec.json.encode(lease.claim))
        await lease.release()
        assert await stored_claim(connection, settings, lease.stable_id) is None


class Racing(Bucket):
    """A bucket in which something happens right before or after the *nth* update."""

    before: Callable[[], Awaitable[object]] | None = None
    after: Callable[[], object] | None = None
    nth = 1
    updates = 0

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self.updates += 1
        if self.before is not None and self.updates == self.nth:
            await self.before()
        stored = await super().update(key, value, revision)
        if self.after is not None and self.updates == self.nth:
            self.after()
        return stored


@asynccontextmanager
async def racing(settings: Settings, **more: Any) -> AsyncIterator[tuple[Racing, Lease, Claim]]:
    """A lease on a bucket of one's own making, and the claim of its successor."""
    async with connected(settings) as connection:
        await ensure(connection, settings)
        bucket = Racing(connection, settings.nats_kv_stable_ids, random=Random(1), timeout_s=0.5)
        mine = Claim("defender-0", "uid-a", "a", "stable", "r1", datetime.now(UTC), "s-a")
        revision = await bucket.put("defender-0", msgspec.json.encode(mine))
        lease = Lease(bucket, mine, revision, time.monotonic(), settings, clock=time.monotonic, **more)
        yield bucket, lease, msgspec.structs.replace(mine, pod_uid="uid-b", pod_name="b", session="s-b")


async def test_a_lease_that_another_takes_while_it_is_passed_on_is_fenced(settings: Settings) -> None:
    async with racing(settings) as (bucket, lease, heir):
        thief = msgspec.json.encode(msgspec.structs.replace(heir, pod_uid="uid-x", pod_name="thief"))
        bucket.nth, bucket.before = 2, lambda: bucket.put("defender-0", thief)
        with pytest.raises(Fenced, match="thief"):
            await lease.pass_on(heir)
        assert lease.state is LeaseState.FENCED


async def test_a_lease_deposed_while_it_is_passed_on_is_fenced(settings: Settings) -> None:
    async with racing(settings) as (bucket, lease, heir):
        bucket.nth, bucket.before = 2, lambda: bucket.change("defender-0", lambda _: None)
        with pytest.raises(Fenced, match="deleted"):
            await lease.pass_on(heir)


async def test_a_passing_on_whose_answer_was_lost_is_found_to_have_happened(settings: Settings) -> None:
    def lose() -> None:
        raise NoAnswer("lost")

    async with racing(settings) as (bucket, lease, heir):
        bucket.nth, bucket.after = 2, lose
        assert await lease.pass_on(heir)
        assert lease.state is LeaseState.PASSED
        entry = await bucket.get("defender-0")
        assert entry is not None
        assert entry.value == msgspec.json.encode(heir)
        assert entry.revision == lease.revision


async def test_a_missing_bucket_is_repaired_once_in_the_time_between_two_renewals(settings: Settings) -> None:
    repairs: list[int] = []

    async def repair() -> None:
        repairs.append(1)

    async with racing(settings, repair=repair) as (bucket, lease, heir):
        await bucket._connection.api(f"STREAM.DELETE.KV_{bucket.name}")
        assert not await lease.pass_on(heir)
        assert not await lease.pass_on(heir)
        assert len(repairs) == 1
        assert lease.state is LeaseState.HELD


async def test_a_repair_that_fails_costs_the_lease_only_at_its_deadline(settings: Settings) -> None:
    async def repair() -> None:
        raise ResourceDiffers("the bucket cannot be made")

    async with racing(settings, repair=repair) as (bucket, lease, heir):
        await bucket._connection.api(f"STREAM.DELETE.KV_{bucket.name}")
        assert not await lease.pass_on(heir)
        assert lease.state is LeaseState.HELD
