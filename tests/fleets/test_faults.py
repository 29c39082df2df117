"""Faults of NATS and of the way to it: whatever happens, each report is judged once, and the fleet heals."""

from __future__ import annotations

import asyncio
import time

from fleet import until

from bench.lab.proxy import proxied
from runtime.bus import NotFound
from runtime.embedded import NatsServer
from tests.fleets.cluster import nats_cluster
from tests.fleets.troubled import REVISION, Troubled, troubled, troubled_settings

BUCKETS = ("nats_kv_stable_ids", "nats_kv_heartbeats", "nats_kv_assignments", "nats_kv_leader")
USUAL_TIMES = {
    "lease_ttl_s": 30.0,
    "lease_held_s": 20.0,
    "renew_s": 1.0,
    "request_timeout_s": 5.0,
    "heartbeat_ttl_s": 30.0,
    "silence_s": 6.0,
    "leader_ttl_s": 10.0,
}


async def test_nats_is_killed_and_starts_on_its_store(own_server: NatsServer) -> None:
    """After a kill -9 of NATS the same pods hold the same IDs and partitions, and judge on."""
    async with troubled(troubled_settings(own_server)) as fleet:
        begin_ns, holders = time.time_ns(), fleet.holders
        async with fleet.fleet.event("NATS killed, started"):
            own_server.kill()
            await own_server.start_async()
            await fleet.more(300)
            await fleet.steady(3)
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)
        assert all(pod.exit_code is None for pod in fleet.pods)


async def test_the_raft_leader_of_the_buckets_is_lost() -> None:
    """Of three NATS servers the one that leads the bucket of claims dies: nothing changes hands."""
    async with nats_cluster() as cluster:
        one = next(iter(cluster.servers.values()))
        settings = troubled_settings(one, **USUAL_TIMES, nats_servers=cluster.url, stream_replicas=3)
        await cluster.prepare(settings)
        claims = f"KV_{settings.nats_kv_stable_ids}"
        async with troubled(settings, members=2, rate=200) as fleet:
            begin_ns, holders, connection = time.time_ns(), fleet.holders, fleet.outside.connection
            async with fleet.fleet.event("RAFT leader of the claims lost"):
                lost = await cluster.leader_of(connection, claims)
                cluster.servers[lost].kill()
                await until(
                    lambda: cluster.is_led_anew(connection, claims, lost),
                    deadline_s=20.0,
                    what="another server leads the bucket",
                )
                await fleet.more(200)
                await fleet.steady(2)
            async with fleet.fleet.event("it comes back"):
                await cluster.servers[lost].start_async()
                await until(lambda: cluster.is_whole(connection, claims), deadline_s=20.0)
                await fleet.more(200)
            assert fleet.holders == holders
            assert not fleet.moved_since(begin_ns)


async def test_a_server_that_leads_consumers_alone_is_lost() -> None:
    """The pulls of some partitions vanish with it, while all else goes on: they are asked for anew."""
    async with nats_cluster() as cluster:
        first, _, lost = cluster.servers
        one, urls = cluster.servers[first], cluster.urls(without=lost)
        settings = troubled_settings(one, **USUAL_TIMES, nats_servers=urls, stream_replicas=3)
        await cluster.prepare(settings)
        async with troubled(settings, members=2, rate=200) as fleet:
            begin_ns, connection, names = time.time_ns(), fleet.outside.connection, settings.names
            samples, kept = names.samples_stream(0), names.verdicts_stream(0)
            buckets = [f"KV_{getattr(settings, bucket)}" for bucket in BUCKETS]
            for stream in (samples, kept, names.alarms, names.rejected, *buckets):
                await cluster.lead(connection, stream, first)
            page = await connection.api(f"CONSUMER.LIST.{samples}")
            led = [one["name"] for one in page["consumers"] if one["cluster"].get("leader") == lost]
            assert led, "the servers' random choice of leaders: try again"
            behind = await _behind(fleet)
            async with fleet.fleet.event(f"a server lost, with {len(led)} consumers"):
                cluster.servers[lost].kill()
                await fleet.more(600)
                await until(lambda: _is_behind(fleet, behind + 40), deadline_s=30.0, what="all is judged")
            await cluster.servers[lost].start_async()
            assert not fleet.moved_since(begin_ns)


async def _behind(fleet: Troubled) -> int:
    """Reports without a verdict, nearly: some have a verdict and are rejected in part."""
    names, messages = fleet.settings.names, fleet.outside.messages
    stored = await messages(names.samples_stream(0))
    return stored - await messages(names.verdicts_stream(0)) - await messages(names.rejected)


async def _is_behind(fleet: Troubled, at_most: int) -> bool:
    await asyncio.sleep(0.1)
    return await _behind(fleet) <= at_most


async def test_a_follower_is_cut_off_from_nats(own_server: NatsServer) -> None:
    """A pod whose packets vanish fences itself; a standby has its ID by then; let back in, it stands by."""
    settings = troubled_settings(own_server, max_defenders=3)
    async with proxied(own_server.port) as proxy, troubled(settings, members=2) as fleet:
        far = fleet.fleet.deployment(replicas=1, revision=REVISION, nats_servers=proxy.url)
        await far.start()
        await fleet.steady(3)
        await fleet.deployment.scale(3)
        (standby,), (cut,) = fleet.standbys, far.pods
        stable_id = fleet.id_of(cut)
        assert await fleet.leader() is not cut
        async with fleet.fleet.event("a follower cut off"):
            proxy.cut()
            await until(lambda: fleet.id_of(standby) == stable_id, what="the standby has the ID")
            await fleet.steady(3)
            await fleet.more()
        cause = await fleet.fenced(cut)
        assert "the lease ran out" in cause
        begin_ns, holders = time.time_ns(), fleet.holders
        proxy.mend()
        await fleet.reborn(cut)
        await fleet.more()
        assert fleet.standbys == [cut]
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)


async def test_a_follower_is_let_back_in_while_it_believes_in_its_lease(own_server: NatsServer) -> None:
    """A pod that was deposed while its packets vanished publishes nothing that counts, and leaves with 76."""
    settings = troubled_settings(own_server, max_defenders=3)
    async with proxied(own_server.port) as proxy, troubled(settings, members=2) as fleet:
        far = fleet.fleet.deployment(replicas=1, revision=REVISION, nats_servers=proxy.url)
        await far.start()
        await fleet.steady(3)
        await fleet.deployment.scale(3)
        (standby,), (cut,) = fleet.standbys, far.pods
        stable_id = fleet.id_of(cut)
        async with fleet.fleet.event("a follower cut off, let in at once"):
            proxy.cut()
            await until(lambda: fleet.id_of(standby) == stable_id, what="the standby has the ID")
            proxy.mend()
            cause = await fleet.fenced(cut)
            await fleet.more()
            await fleet.steady(3)
        assert "the claim was" in cause


async def test_each_bucket_is_deleted_under_the_fleet(own_server: NatsServer) -> None:
    """A bucket is made anew with what belongs into it; IDs, ring and owners stay; the fleet can grow."""
    async with troubled(troubled_settings(own_server)) as fleet:
        begin_ns, holders, ring = time.time_ns(), fleet.holders, fleet.observer.ring
        assert ring is not None
        for bucket in BUCKETS:
            stream = f"KV_{getattr(fleet.settings, bucket)}"
            async with fleet.fleet.event(f"{bucket} deleted"):
                await fleet.outside.connection.api(f"STREAM.DELETE.{stream}")
                await until(lambda stream=stream: _exists(fleet, stream), what=f"{stream} is made anew")
                await fleet.well()
                await fleet.more()
        await fleet.steady(3)
        assert fleet.holders == holders
        assert not fleet.moved_since(begin_ns)
        assert fleet.observer.ring.members == ring.members
        assert all(pod.exit_code is None for pod in fleet.pods)
        await fleet.deployment.scale(4)
        await fleet.steady(4)


async def _exists(fleet: Troubled, stream: str) -> bool:
    try:
        await fleet.outside.connection.api(f"STREAM.INFO.{stream}")
    except NotFound:
        return False
    return True
