"""Claims and leases on a real server: who gets the ID, who keeps it, who is fenced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from runtime.bucket import Bucket
from runtime.bus import Connection
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import Fenced
from runtime.identity import Claim, Claimant, Lease, LeaseState, Standby
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


def claimant(connection: Connection, settings: Settings, seed: int = 1, **more: Any) -> Claimant:
    return Claimant(bucket_of(connection, settings, seed), settings, random=Random(seed), **more)


def pod(settings: Settings, name: str, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, pod_name=name, pod_uid=f"uid-{name}", **changes)


@asynccontextmanager
async def claimed(
    settings: Settings, seed: int = 1, **more: Any
) -> AsyncIterator[tuple[Connection, Lease, list[Fenced]]]:
    """A connection with a lease that renews; what fenced it goes into the list."""
    async with connected(settings) as connection:
        await ensure(connection, settings)
        lease = await claimant(connection, settings, seed, **more).claim()
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
    async with connected(settings) as connection, claimed(pod(settings, "a")) as (_, first, _fenced):
        standby = asyncio.create_task(claimant(connection, pod(settings, "b"), 2).claim(reasons.append))
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
    settings = settings_for(nats_server, **FAST)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        dead = await claimant(connection, pod(settings, "a")).claim()  # never renewed
        alive = await asyncio.wait_for(claimant(connection, pod(settings, "b"), 2).claim(), 6)
        assert alive.stable_id == dead.stable_id
        await alive.release()


async def test_a_renewed_claim_outlives_its_ttl(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, **FAST)
    deadlines: list[float] = []
    async with connected(settings) as connection:
        await ensure(connection, settings)
        lease = await claimant(connection, settings).claim()
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


async def test_a_new_revision_stands_by_until_the_old_one_has_left(settings: Settings) -> None:
    reasons: list[Standby] = []
    roomy = msgspec.structs.replace(settings, max_defenders=5)
    async with connected(settings) as connection, claimed(pod(roomy, "a", revision="r1")) as (_, old, _f):
        newer = pod(roomy, "b", revision="r2")
        standby = asyncio.create_task(claimant(connection, newer, 2).claim(reasons.append))
        await until(lambda: reasons == [Standby.ROLLING_UPDATE])
        await old.release()
        assert (await asyncio.wait_for(standby, 5)).stable_id == old.stable_id


async def test_many_pods_at_once_get_an_id_each(settings: Settings) -> None:
    many = msgspec.structs.replace(settings, max_defenders=30)
    uids = [f"uid-{number}" for number in range(30)]

    async def waiting() -> list[str]:
        return uids

    async with connected(settings) as connection:
        await ensure(connection, settings)
        leases = await asyncio.wait_for(
            asyncio.gather(
                *(
                    claimant(connection, pod(many, str(number)), number, waiting=waiting).claim()
                    for number in range(30)
                )
            ),
            10,
        )
        assert {lease.stable_id for lease in leases} == {f"defender-{number}" for number in range(30)}


async def test_the_second_of_the_waiting_pods_tries_the_second_free_id(settings: Settings) -> None:
    several = msgspec.structs.replace(settings, max_defenders=3)

    async def waiting() -> list[str]:
        return ["uid-a", "uid-b"]

    async with claimed(pod(several, "b"), waiting=waiting) as (_, lease, _fenced):
        assert lease.stable_id == "defender-1"


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
    async with connected(settings) as connection:
        await ensure(connection, settings)
        lease = await claimant(connection, settings).claim()
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
