"""What a defender finds at its start, and does not like: it waits where that helps, and says what to do."""

from __future__ import annotations

import random
import socket

import msgspec
import pytest
from fleet import connected, settings_for, until

from bench.lab.pods import Pod, brisk
from runtime.bucket import Bucket
from runtime.embedded import NatsServer
from runtime.errors import CacheTooSmall, ResourceDiffers, SettingsError
from runtime.resources import ensure
from runtime.specs import ChartSpec, Specs, SpecsError
from tests.load import SPECS, fleet


async def test_without_a_nats_server_it_waits_and_says_so_and_comes_up_with_the_server(
    own_server: NatsServer,
) -> None:
    """/readyz names NATS_SERVERS' address meanwhile; no restart is needed."""
    settings = settings_for(own_server, **brisk())
    own_server.stop()
    with Pod(settings) as pod:
        await until(lambda: pod.get("/readyz")[0] == 503, deadline_s=20.0, what="/readyz says no")
        assert f"no connection to NATS at {own_server.url}" in str(pod.not_ready())
        assert pod.get("/livez")[0] == 200
        await until(lambda: pod.said("correct NATS_SERVERS"), what="the log names the remedy")
        await own_server.start_async()
        await pod.wait_serving()


async def test_told_to_leave_while_it_waits_for_a_server_it_leaves_with_0(own_server: NatsServer) -> None:
    """There is nothing to hand over."""
    settings = settings_for(own_server, **brisk())
    own_server.stop()
    with Pod(settings) as pod:
        await until(lambda: pod.get("/readyz")[0] == 503, deadline_s=20.0, what="/readyz says no")
        pod.sigterm()
        assert await pod.wait_exit(deadline_s=10.0) == 0


async def test_with_wrong_credentials_it_waits_and_names_the_settings() -> None:
    """A secret may be corrected at the server; the password itself is not in the log."""
    with NatsServer(user="defender", password="right") as server:
        settings = settings_for(server, **brisk(nats_user="defender", nats_password="wr0ng"))
        with Pod(settings) as pod:
            await until(lambda: pod.get("/readyz")[0] == 503, deadline_s=20.0, what="/readyz says no")
            await until(lambda: pod.said("NATS_USER and NATS_PASSWORD"), what="the log names the settings")
            assert not pod.said("wr0ng")
            assert pod.exit_code is None


async def test_with_jetstream_off_it_waits_and_says_what_to_switch_on() -> None:
    """A server without a jetstream block."""
    with NatsServer(jetstream=False) as server, Pod(settings_for(server, **brisk())) as pod:
        await until(lambda: pod.get("/readyz")[0] == 503, deadline_s=20.0, what="/readyz says no")
        await until(lambda: pod.said("start nats-server with a jetstream block"), what="the remedy")
        assert pod.exit_code is None


@pytest.mark.parametrize(
    ("stream", "change", "named"),
    [
        ("VERDICTS", {"max_msgs_per_subject": 3}, "HISTORY_DEPTH"),
        ("SAMPLES", {"subject_transform": None}, "PARTITIONS"),
        ("KV_stable-ids", {"max_age": 60 * 10**9}, "LEASE_TTL_S"),
    ],
)
async def test_a_stream_or_bucket_with_other_settings_ends_it_and_the_message_names_the_setting(
    nats_server: NatsServer, stream: str, change: dict[str, object], named: str
) -> None:
    """Exit code 78; nothing is changed at the server."""
    settings = settings_for(nats_server, **brisk())
    own = settings.stream_samples.removesuffix("SAMPLES")
    name = stream.replace("KV_", f"KV_{own}") if stream.startswith("KV_") else own + stream
    async with connected(settings) as connection:
        await ensure(connection, settings)
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        await connection.api(f"STREAM.DELETE.{name}")
        changed = {k: v for k, v in {**config, **change}.items() if v is not None}
        await connection.api(f"STREAM.CREATE.{name}", changed)
        with Pod(settings) as pod:
            assert await pod.wait_exit() == ResourceDiffers.exit_code
            assert pod.said(named)
            assert pod.said(name.removeprefix("KV_"))


async def test_a_port_in_use_ends_it_and_the_message_names_http_port(nats_server: NatsServer) -> None:
    """Exit code 64."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Pod(settings_for(nats_server, **brisk()), HTTP_PORT=str(port)) as pod:
            assert await pod.wait_exit() == SettingsError.exit_code
            assert pod.said(f"HTTP_PORT: {port} is taken")


async def test_chart_specs_that_cannot_be_used_end_it_before_it_judges_anything(
    nats_server: NatsServer,
) -> None:
    """By the built-in specs every frozen chart would begin a new stage."""
    settings = settings_for(nats_server, **brisk(window=32))
    async with fleet(settings, specs=None) as outside:
        await outside.publish([(b"C1", b'{"charts": ["a"], "counts": [1], "units": [1]}')])
        await outside.apply(Specs(default=ChartSpec(phase_one=100)))
        with Pod(settings) as pod:
            assert await pod.wait_exit() == SpecsError.exit_code
            assert pod.said("phase_one 100 is above WINDOW 32")
        assert await outside.messages(settings.stream_verdicts) == 0


async def test_chart_specs_that_cannot_be_used_leave_those_before_in_force(nats_server: NatsServer) -> None:
    """A running defender says so, judges on, and takes the next good ones."""
    settings = settings_for(nats_server, **brisk(window=32))
    report = msgspec.json.encode({"charts": ["given_a"], "counts": [1], "units": [10.0]})
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            bucket = Bucket(outside.connection, settings.nats_kv_chart_specs, random=random.Random())
            await bucket.put("specs", b"{ not specs")
            await until(lambda: pod.lines("chart specs refused"), what="the log says so")
            await outside.publish([(b"C1", report)])
            await outside.settled()
            good = await outside.apply(Specs(default=ChartSpec(phase_one=10, minimum=2)))
            await until(
                lambda: pod.metric("defender_worker_spec_revision") == 2 * good, what="both have them"
            )
            await outside.publish([(b"C1", report)])
            streams = await outside.audit()
            assert [msgspec.msgpack.decode(m.payload)["spec"] for m in streams.verdicts] == [1, good]
            assert pod.exit_code is None


async def test_a_chamber_larger_than_the_whole_cache_ends_it_and_the_message_names_cache_mb(
    nats_server: NatsServer,
) -> None:
    """It fitted into a larger cache before; exit code 64."""
    settings = settings_for(nats_server, **brisk(workers=1, window=16))
    charts = [f"c{number}" for number in range(2000)]
    report = msgspec.json.encode({"charts": charts, "counts": [1] * 2000, "units": [1.0] * 2000})
    async with fleet(settings, specs=None) as outside:
        with Pod(settings) as pod:
            await outside.publish([(b"C1", report)])
            await pod.wait_serving()
            await outside.settled()
            pod.sigterm()
            assert await pod.wait_exit() == 0
        with Pod(msgspec.structs.replace(settings, cache_mb=1)) as pod:
            await pod.wait_serving()
            await outside.publish([(b"C1", report)])
            assert await pod.wait_exit() == CacheTooSmall.exit_code
            assert pod.said("raise CACHE_MB")


async def test_when_the_servers_storage_is_full_nothing_is_lost_once_there_is_room() -> None:
    """Verdicts are refused for a while; the pod says so, waits, and catches up."""
    with NatsServer(store_bytes_max=24_000_000) as server:
        patient = {"lease_ttl_s": 60.0, "lease_held_s": 40.0, "heartbeat_ttl_s": 60.0}
        settings = settings_for(server, **brisk(**patient))
        async with fleet(settings, SPECS) as outside:
            api = outside.connection.api
            await api("STREAM.CREATE.FILL", {"name": "FILL", "subjects": ["fill"], "storage": "file"})
            with Pod(settings) as pod:
                await pod.wait_serving()
                publisher = outside.publisher(seed=1)
                publisher.begin()
                await publisher.more(300)
                full = False
                while not full:
                    reply = await outside.connection.ask("fill", b"x" * 500_000)
                    full = b"error" in reply.payload
                await until(lambda: pod.said("give nats-server more room"), what="the log names the remedy")
                await api("STREAM.DELETE.FILL")
                await publisher.more(300)
                await publisher.finish()
                await outside.audit()
                assert pod.exit_code is None
