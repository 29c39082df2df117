"""Copying into the stream VERDICTS of a real nats-server: the order of each subject, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest
from fleet import connected, settings_for

from runtime.bus import Connection
from runtime.cli.reading import Record, Start, read
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.frames import header
from runtime.history.jetstream import JetStreamHistory
from runtime.history_copy import Copied, IntoVerdicts, Trouble, published
from runtime.names import Names
from runtime.resources import ensure
from runtime.wire import Verdict, decode_verdict
from tests.memory_history import MemoryHistory

DEPTH = 16
REACHED = 1000
"""The last sequence of SAMPLES."""


@pytest.fixture
def settings(nats_server: NatsServer) -> Settings:
    return settings_for(nats_server, history_depth=DEPTH, window=DEPTH, duplicate_window_s=60)


def verdict(seq: int, **fields: object) -> Verdict:
    return Verdict("C", seq, seq, 1, 0, at=seq, **fields)  # type: ignore[arg-type]


class Place(NamedTuple):
    """The stream that is copied into."""

    connection: Connection
    settings: Settings

    @property
    def names(self) -> Names:
        return self.settings.names

    @property
    def subject(self) -> str:
        return self.names.verdict(self.names.partition_of("C"), "C")

    async def publish(self, *verdicts: Verdict) -> None:
        """As a defender does."""
        for one in verdicts:
            headers = f"Nats-Msg-Id:{self.settings.stream_samples}:{one.seq}\r\n".encode()
            await self.connection.store(self.subject, published(one), headers=headers)

    async def stored(self) -> list[Record]:
        stream = self.settings.stream_verdicts
        return [record async for record in read(self.connection, stream, self.subject, Start())]

    async def seqs(self) -> list[int]:
        return [decode_verdict(record.payload).seq for record in await self.stored()]

    async def copy(self, verdicts: list[Verdict], connection: Connection | None = None) -> Copied:
        """From a store that has these."""
        source = MemoryHistory(self.names, 1000)
        for one in verdicts:
            source.stream.store((self.subject, str(one.seq), published(one)))
        connection = connection or self.connection
        history = JetStreamHistory(self.connection, self.names, DEPTH, 5.0)
        target = IntoVerdicts(connection, history, self.names, DEPTH, 5.0)
        return await target.copy(source, self.names.partition_of("C"), "C")


@asynccontextmanager
async def place_of(settings: Settings, reached: int = REACHED) -> AsyncIterator[Place]:
    async with connected(settings) as connection:
        await ensure(connection, settings)
        await connection.api(f"STREAM.PURGE.{settings.stream_samples}", {"seq": reached + 1})
        yield Place(connection, settings)


def those(first: int, last: int) -> list[Verdict]:
    return [verdict(seq) for seq in range(first, last + 1)]


async def test_an_empty_stream_gets_the_last_d_reports_in_order(settings: Settings) -> None:
    """With the message IDs by which it drops repeats, byte for byte; a second copy stores nothing."""
    async with place_of(settings) as place:
        done = await place.copy(those(1, 50))
        assert (done.read, done.stored, done.there, done.last, done.troubles) == (DEPTH, DEPTH, 0, 50, {})
        records = await place.stored()
        assert [record.payload for record in records] == [published(one) for one in those(35, 50)]
        ids = [header(record.headers, b"Nats-Msg-Id") for record in records]
        assert ids == [f"{settings.stream_samples}:{seq}".encode() for seq in range(35, 51)]
        again = await place.copy(those(1, 50))
        assert (again.stored, again.there, again.troubles) == (0, DEPTH, {})
        assert await place.stored() == records


async def test_what_is_newer_than_the_streams_newest_comes_behind_it(settings: Settings) -> None:
    async with place_of(settings) as place:
        await place.publish(*those(1, 5))
        done = await place.copy(those(3, 12))
        assert (done.stored, done.there, done.troubles) == (7, 3, {})
        assert await place.seqs() == list(range(1, 13))


async def test_what_is_older_than_the_streams_newest_is_refused(settings: Settings) -> None:
    """The last verdict of a subject says how far its chamber is judged: it must stay the newest."""
    async with place_of(settings) as place:
        await place.publish(verdict(10))
        done = await place.copy(those(6, 10))
        assert (done.stored, done.there, done.troubles) == (0, 1, {Trouble.OLDER: 4})
        assert await place.seqs() == [10]
        done = await place.copy(those(6, 12))
        assert (done.stored, done.troubles) == (2, {Trouble.OLDER: 4})
        assert await place.seqs() == [10, 11, 12]


async def test_another_verdict_of_the_same_report_stays_and_is_told(settings: Settings) -> None:
    async with place_of(settings) as place:
        await place.publish(*those(1, 4))
        done = await place.copy([verdict(3, run="other"), verdict(4)])
        assert (done.there, done.troubles) == (1, {Trouble.DIFFERENT: 1})
        assert await place.seqs() == [1, 2, 3, 4]


async def test_numbers_that_the_samples_have_not_reached_are_refused(settings: Settings) -> None:
    """SAMPLES was made anew: its next reports would be taken for judged, and skipped."""
    async with place_of(settings, reached=11) as place:
        done = await place.copy(those(1, 12))
        assert (done.stored, done.troubles) == (0, {Trouble.UNNUMBERED: 12})
        assert await place.seqs() == []
        assert (await place.copy(those(1, 11))).stored == 11


async def test_what_the_server_takes_for_a_repeat_is_told(settings: Settings) -> None:
    """It forgets a purged message, not its ID. What follows is not stored either: it would be in its way."""
    async with place_of(settings) as place:
        await place.publish(*those(4, 6))
        await place.connection.api(f"STREAM.PURGE.{settings.stream_verdicts}")
        done = await place.copy(those(1, 8))
        assert (done.stored, done.troubles) == (3, {Trouble.DROPPED: 5})
        assert await place.seqs() == [1, 2, 3]


class Busy:
    """A connection beside which a defender publishes, just before the third message of a copy."""

    def __init__(self, connection: Connection, publish: Callable[[], Awaitable[None]]) -> None:
        self._connection, self._publish = connection, publish
        self.stored = 0

    async def store(
        self, subject: str, payload: bytes, *, headers: bytes = b"", timeout_s: float = 5.0
    ) -> tuple[int, bool]:
        self.stored += 1
        if self.stored == 3:
            await self._publish()
        return await self._connection.store(subject, payload, headers=headers, timeout_s=timeout_s)

    async def api(self, name: str, request: object = None, *, timeout_s: float = 5.0) -> object:
        return await self._connection.api(name, request, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("meanwhile", "stored", "there", "troubles", "left"),
    [
        (those(11, 12), 2, 0, {Trouble.OLDER: 8}, [1, 2, 11, 12]),
        (those(3, 5), 7, 3, {}, list(range(1, 11))),
        (those(3, 12), 2, 8, {}, list(range(1, 13))),
        (those(5, 6), 6, 2, {Trouble.OLDER: 2}, [1, 2, *range(5, 11)]),
    ],
    ids=["newer ones", "some of the same", "the same and newer", "some in the middle"],
)
async def test_a_defender_that_publishes_meanwhile_does_not_find_older_ones_behind_its_own(
    settings: Settings,
    meanwhile: list[Verdict],
    stored: int,
    there: int,
    troubles: dict[Trouble, int],
    left: list[int],
) -> None:
    """Whatever it publishes, the subject stays in order; what has lost its place is refused."""
    async with place_of(settings) as place:
        busy = Busy(place.connection, lambda: place.publish(*meanwhile))
        done = await place.copy(those(1, 10), busy)  # type: ignore[arg-type]
        assert (done.stored, done.there, done.troubles) == (stored, there, troubles)
        assert await place.seqs() == left


async def test_what_newer_reports_push_out_meanwhile_is_no_trouble(settings: Settings) -> None:
    """The source's last D were read, and a fleet went on."""
    async with place_of(settings) as place:
        await place.publish(*those(1, 40))
        done = await place.copy(those(15, 30))
        assert (done.stored, done.there, done.beyond, done.troubles) == (0, 6, 10, {})
        busy = Busy(place.connection, lambda: place.publish(*those(44, 62)))
        done = await place.copy(those(35, 50), busy)  # type: ignore[arg-type]
        assert (done.stored, done.troubles) == (2, {})
        assert done.there + done.beyond == 14
        assert await place.seqs() == list(range(47, 63))


def test_a_copys_summary_is_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Copied("C", 3, troubles={Trouble.LOST: 1})))["read"] == 3
