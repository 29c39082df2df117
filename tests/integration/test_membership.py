"""Heartbeats on a real server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import msgspec
from fleet import connected, settings_for, until

from runtime.bucket import Bucket, Entry
from runtime.bus import Connection
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.membership import Heart, Heartbeat, Load, State, versions
from runtime.resources import ensure


@dataclass
class Beating:
    """A defender's state as its heartbeat tells it; the reports rise with each beat."""

    state: State = State.STARTING
    beats: int = 0

    def __call__(self) -> Heartbeat:
        self.beats += 1
        return Heartbeat(
            "uid-1",
            "pod-1",
            "stable",
            "r1",
            self.state,
            datetime.now(UTC),
            load=Load(reports=self.beats),
            versions=versions(),
        )


def decode_heartbeats(entries: Mapping[str, Entry]) -> dict[str, Heartbeat]:
    """The living heartbeats by pod UID."""
    return {
        uid: msgspec.json.decode(entry.value, type=Heartbeat)
        for uid, entry in entries.items()
        if entry.value is not None
    }


def heartbeats_of(connection: Connection, settings: Settings) -> Bucket:
    return Bucket(connection, settings.nats_kv_heartbeats, random=Random(1), timeout_s=1.0)


async def test_a_heart_beats_and_tells_a_change_at_once(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        bucket, beating = heartbeats_of(connection, settings), Beating()
        heart = Heart(bucket, beating, every_s=0.02)
        heart.begin()

        async def several() -> bool:
            found = decode_heartbeats(await bucket.entries())
            return "uid-1" in found and found["uid-1"].load.reports > 3

        await until(several)
        beating.state = State.DRAINING
        await heart.beat_now()
        found = decode_heartbeats(await bucket.entries())["uid-1"]
        assert found.state is State.DRAINING
        assert found.versions["python"] == versions()["python"]
        await heart.stop()
        assert decode_heartbeats(await bucket.entries()) == {}


async def test_a_heart_that_stops_without_a_word_is_forgotten(nats_server: NatsServer) -> None:
    settings = settings_for(nats_server, heartbeat_ttl_s=1.0)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        bucket = heartbeats_of(connection, settings)
        await Heart(bucket, Beating(), every_s=60).beat_now()
        assert decode_heartbeats(await bucket.entries())

        async def forgotten() -> bool:
            return not decode_heartbeats(await bucket.entries())

        await until(forgotten, deadline_s=5)


async def test_a_heart_beats_on_after_an_outage_of_the_server(own_server: NatsServer) -> None:
    settings = settings_for(own_server)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        beating = Beating()
        heart = Heart(heartbeats_of(connection, settings), beating, every_s=0.05)
        heart.begin()
        await until(lambda: beating.beats > 1)
        own_server.kill()
        before = beating.beats
        await until(lambda: beating.beats > before + 2)
        own_server.start()

        async def back() -> bool:
            if not connection.is_connected:
                return False
            found = decode_heartbeats(await heartbeats_of(connection, settings).entries())
            return "uid-1" in found and found["uid-1"].load.reports > before + 2

        await until(back)
        await heart.stop()


async def test_a_heartbeat_of_a_newer_version_is_read(settings: Settings) -> None:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        bucket = heartbeats_of(connection, settings)
        newer = {**msgspec.to_builtins(Beating()()), "mood": "fine"}
        await bucket.put("newer", msgspec.json.encode(newer))
        assert list(decode_heartbeats(await bucket.entries())) == ["newer"]
