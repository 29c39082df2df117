"""A key-value bucket on a real server: compare-and-set, expired keys, the live view."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from fleet import connected, settings_for, until

from runtime.bucket import KEEP, Bucket, Conflict, Entry
from runtime.bus import Connection
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.resources import ensure


async def claims_of(connection: Connection, settings: Settings) -> Bucket:
    await ensure(connection, settings)
    return Bucket(connection, settings.nats_kv_stable_ids, random=Random(1))


async def test_a_key_is_written_read_and_deleted_by_compare_and_set(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        assert await bucket.get("k") is None
        first = await bucket.create("k", b"1")
        second = await bucket.update("k", b"2", first)
        assert await bucket.get("k") == Entry("k", b"2", second)
        gone = await bucket.delete("k", second)
        assert await bucket.get("k") == Entry("k", None, gone)


async def test_a_write_against_an_older_revision_is_refused(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        first = await bucket.create("k", b"1")
        await bucket.update("k", b"2", first)
        with pytest.raises(Conflict, match=f"k is not at revision {first}"):
            await bucket.update("k", b"3", first)
        with pytest.raises(Conflict):
            await bucket.delete("k", first)
        with pytest.raises(Conflict):
            await bucket.create("k", b"3")
        assert (await bucket.entries())["k"].value == b"2"


async def test_a_deleted_key_can_be_created_again(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        gone = await bucket.delete("k", await bucket.create("k", b"1"))
        assert await bucket.create("k", b"2") > gone


async def test_an_expired_key_is_seen_to_go_and_can_be_created_at_once(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, lease_ttl_s=1.0)
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        seen: list[Entry] = []
        view = await bucket.watch(seen.append)
        written = await bucket.create("k", b"1")
        marker = await until(lambda: next((e for e in seen if e.value is None), None), deadline_s=5)
        assert marker.revision > written
        assert await bucket.create("k", b"2") > marker.revision
        await view.stop()


async def test_many_writers_of_one_key_lose_no_change(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)

        async def count() -> None:
            for _ in range(5):
                await bucket.change("n", lambda value: b"%d" % (int(value or b"0") + 1))

        await asyncio.gather(*(count() for _ in range(8)))
        entry = await bucket.get("n")
        assert entry is not None
        assert entry.value == b"40"


async def test_an_update_can_keep_delete_or_write_the_same_again(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        assert await bucket.change("k", lambda _: None) == Entry("k", None, 0)
        written = await bucket.change("k", lambda _: b"1")
        assert await bucket.change("k", lambda _: KEEP) == written
        assert (await bucket.change("k", lambda _: b"1")).revision > written.revision
        assert (await bucket.change("k", lambda _: None)).value is None


async def test_a_snapshot_has_every_key_of_its_pattern(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        assert await bucket.entries() == {}
        revisions = await asyncio.gather(*(bucket.put(f"p.{n}", b"%d" % n) for n in range(1500)))
        await bucket.put("other", b"")
        entries = await bucket.entries("p.*")
        assert entries == {f"p.{n}": Entry(f"p.{n}", b"%d" % n, revisions[n]) for n in range(1500)}


async def test_a_view_is_complete_at_once_and_follows(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        old = await bucket.put("old", b"1")
        seen: list[Entry] = []
        view = await bucket.watch(seen.append)
        assert seen == [Entry("old", b"1", old)]
        new = await bucket.put("new", b"2")
        gone = await bucket.delete("old", old)
        await until(lambda: len(seen) == 3)
        assert seen[1:] == [Entry("new", b"2", new), Entry("old", None, gone)]
        assert view.entries == {"old": Entry("old", None, gone), "new": Entry("new", b"2", new)}
        await view.stop()
        await bucket.put("new", b"3")
        await connection.api("INFO")
        assert len(seen) == 3


async def test_a_view_heals_after_its_server_has_forgotten_it(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    async with connected(settings) as connection, connected(settings) as other:
        bucket = await claims_of(connection, settings)
        first = await bucket.put("k", b"1")
        await bucket.put("forgotten", b"1")
        seen: list[Entry] = []
        view = await bucket.watch(seen.append, reread_s=0.1)
        own_server.kill()
        own_server.start()
        await until(lambda: connection.stats["reconnects"] == 1 and connection.is_connected)
        await until(lambda: other.stats["reconnects"] == 1 and other.is_connected)
        elsewhere = Bucket(other, bucket.name, random=Random(2))
        second = await elsewhere.put("k", b"2")
        await other.api(f"STREAM.PURGE.KV_{bucket.name}", {"filter": f"$KV.{bucket.name}.forgotten"})
        await until(lambda: Entry("k", b"2", second) in seen)
        await until(lambda: "forgotten" not in view.entries)
        assert Entry("forgotten", None, 0) in seen
        assert second > first
        await view.stop()


async def test_rereading_tells_nothing_twice(settings: Settings) -> None:
    async with connected(settings) as connection:
        bucket = await claims_of(connection, settings)
        await bucket.put("k", b"1")
        seen: list[Entry] = []
        view = await bucket.watch(seen.append)
        for _ in range(3):
            await view.reread()
        assert len(seen) == 1

        async def one_consumer_is_left() -> bool:
            consumers = await connection.api(f"CONSUMER.NAMES.KV_{bucket.name}")
            return bool(consumers["total"] == 1)

        await until(one_consumer_is_left)
        await view.stop()
