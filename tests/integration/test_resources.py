"""Streams and buckets on a real server: made, checked, and named when they differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from runtime import resources
from runtime.bus import Connection, frame_pub
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import JetStreamOff, ResourceDiffers, ServerStorageFull, SettingsError
from runtime.names import Names
from runtime.resources import ensure, made_at, wanted


async def change(connection: Connection, stream: str, edit: Callable[[dict[str, Any]], object]) -> None:
    config = (await connection.api(f"STREAM.INFO.{stream}"))["config"]
    edit(config)
    await connection.api(f"STREAM.UPDATE.{stream}", config)


async def test_everything_is_made_once_and_found_again(settings: Settings) -> None:
    async with connected(settings) as connection:
        for _ in range(2):
            await ensure(connection, settings)
        for want in wanted(settings):
            assert (await connection.api(f"STREAM.INFO.{want.name}"))["config"]["name"] == want.name


async def test_only_the_assignments_are_numbered_from_the_time_on(settings: Settings) -> None:
    """Their revisions are epochs, which must not come again."""
    numbered = {want.name: made_at(want, 1_700_000_000.25).get("first_seq") for want in wanted(settings)}
    assert numbered.pop(f"KV_{settings.nats_kv_assignments}") == 1_700_000_000_250
    assert not any(numbered.values())


async def test_two_defenders_can_make_everything_at_the_same_time(settings: Settings) -> None:
    async with connected(settings) as one, connected(settings) as other:
        await asyncio.gather(ensure(one, settings), ensure(other, settings))


async def test_a_stream_that_another_makes_in_between_is_taken_as_it_is(settings: Settings) -> None:
    async with connected(settings) as connection:
        want = wanted(settings)[0]
        await connection.api(f"STREAM.CREATE.{want.name}", {**want.config, "max_age": 7 * 86_400 * 10**9})
        answer = await resources._create(connection, want, 5.0)
        assert answer["config"]["max_age"] == 7 * 86_400 * 10**9


@pytest.mark.parametrize("partitions", [1, 7, 64])
async def test_a_sample_is_stored_under_the_partition_that_we_compute(
    nats_server: NatsServer, partitions: int
) -> None:
    settings = settings_for(nats_server, partitions=partitions)
    names = settings.names
    async with connected(settings) as connection:
        await ensure(connection, settings)
        for chamber in ("ETCH-01-A", "CVD_7", "Kammer-ß", "x"):
            seq, _ = await connection.store(names.sample(chamber), b"r")
            got = await connection.api(f"STREAM.MSG.GET.{names.samples}", {"seq": seq})
            assert got["message"]["subject"] == names.incoming(names.partition_of(chamber), chamber)


async def test_a_sharded_fleet_stores_each_partition_in_its_stream() -> None:
    with NatsServer(names=Names(partitions=130)) as server:
        settings = msgspec.structs.replace(Settings(nats_servers=server.url), partitions=130)
        names = settings.names
        async with connected(settings) as connection:
            await ensure(connection, settings)
            for number in range(20):
                chamber = f"chamber-{number}"
                await connection.store(names.sample(chamber), b"r")
                partition = names.partition_of(chamber)
                got = await connection.api(
                    f"STREAM.MSG.GET.{names.samples_stream(partition)}",
                    {"last_by_subj": names.incoming(partition, chamber)},
                )
                assert got["message"]["seq"] > 0
            stored = [
                (await connection.api(f"STREAM.INFO.SAMPLES-{shard}"))["state"]["messages"]
                for shard in range(3)
            ]
            assert sum(stored) == 20  # the probes of the mapping were not kept


@pytest.mark.parametrize("mapped", [0, 256])
async def test_a_missing_or_other_account_mapping_is_an_error_that_shows_the_right_one(mapped: int) -> None:
    with NatsServer(names=Names(partitions=mapped) if mapped else None) as server:
        settings = msgspec.structs.replace(Settings(nats_servers=server.url), partitions=128)
        async with connected(settings) as connection:
            with pytest.raises(ResourceDiffers, match=r"mappings \{ .*partition\(128,1\)"):
                await ensure(connection, settings)


@pytest.mark.parametrize(
    ("stream", "edit", "named"),
    [
        ("stream_verdicts", {"max_msgs_per_subject": 100}, "HISTORY_DEPTH"),
        ("stream_verdicts", {"allow_direct": False}, "allow_direct"),
        ("stream_verdicts", {"discard": "new"}, "discard"),
        ("stream_samples", {"duplicate_window": 60 * 10**9}, "DUPLICATE_WINDOW_S"),
        ("stream_samples", {"subjects": ["other.>"], "subject_transform": None}, "PARTITIONS"),
        ("stream_alarms", {"discard": "new"}, "discard"),
        ("nats_kv_stable_ids", {"max_age": 300 * 10**9}, "LEASE_TTL_S"),
        ("nats_kv_assignments", {"max_age": 3600 * 10**9}, "NATS_KV_ASSIGNMENTS"),
    ],
)
async def test_a_setting_that_would_break_a_promise_is_an_error_that_names_stream_and_remedy(
    own_server: NatsServer, stream: str, edit: dict[str, Any], named: str
) -> None:
    settings = settings_for(own_server)
    name = getattr(settings, stream)
    full = f"KV_{name}" if stream.startswith("nats_kv") else name
    async with connected(settings) as connection:
        await ensure(connection, settings)
        await change(connection, full, lambda config: config.update(edit))
        with pytest.raises(ResourceDiffers, match=named) as differs:
            await ensure(connection, settings)
        assert name in str(differs.value)


async def test_all_differences_are_told_at_once(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        other = msgspec.structs.replace(settings, partitions=32, history_depth=999, lease_ttl_s=60.0)
        with pytest.raises(ResourceDiffers) as differs:
            await ensure(connection, other)
        assert all(name in str(differs.value) for name in ("PARTITIONS", "HISTORY_DEPTH", "LEASE_TTL_S"))


async def test_what_an_operator_may_tune_is_logged_and_left_alone(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        age_ns = 7 * 86_400 * 10**9
        await change(connection, settings.stream_samples, lambda config: config.update(max_age=age_ns))
        with caplog.at_level(logging.INFO, logger="defender"):
            await ensure(connection, settings)
        assert "stream is tuned by its operator" in caplog.text
        info = await connection.api(f"STREAM.INFO.{settings.stream_samples}")
        assert info["config"]["max_age"] == age_ns


async def test_a_stream_of_others_on_our_subjects_is_named_as_such(settings: Settings) -> None:
    async with connected(settings) as connection:
        theirs = {
            "name": f"{settings.subject_root}-THEIRS",
            "subjects": [f"{settings.subject_root}.sample.*"],
        }
        await connection.api(f"STREAM.CREATE.{theirs['name']}", theirs)
        with pytest.raises(ResourceDiffers, match="SUBJECT_ROOT"):
            await ensure(connection, settings)


async def test_more_replicas_than_servers_is_an_error_that_names_the_setting(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, stream_replicas=3)
    async with connected(settings) as connection:
        with pytest.raises(SettingsError, match="STREAM_REPLICAS"):
            await ensure(connection, settings)


async def test_a_full_server_is_an_error_that_says_so() -> None:
    with NatsServer(store_bytes_max=1_000_000) as server:
        settings = settings_for(server)
        async with connected(settings) as connection:
            await ensure(connection, settings)

            async def fill() -> None:
                for _ in range(100):
                    await connection.store(settings.names.sample("A"), bytes(100_000))

            with pytest.raises(ServerStorageFull, match="max_file_store") as full:
                await fill()
            assert full.value.temporary


async def test_a_publish_that_no_stream_takes_is_told_apart(settings: Settings) -> None:
    async with connected(settings) as connection:
        with pytest.raises(JetStreamOff, match="no stream"):
            await connection.store("nobody.takes.this", b"")


async def test_ordinary_publishers_need_no_client_of_ours(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        connection.write(frame_pub(settings.names.sample("B").encode(), b"r"))

        async def stored() -> bool:
            info = await connection.api(f"STREAM.INFO.{settings.stream_samples}")
            return bool(info["state"]["messages"] == 1)

        await until(stored)
