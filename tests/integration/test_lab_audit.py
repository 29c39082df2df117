"""The audit sees every kind of fault in a fleet's streams, counts each exactly, and none where none is."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from fleet import connected, settings_for, until

from bench.lab import audit_judging, audit_shard
from bench.lab.audit import Audited, audit
from bench.lab.errors import LabError
from bench.lab.pods import Pod, brisk
from runtime.arena import Arena, Shape
from runtime.bus import Connection, delivery_of
from runtime.cache import Cache
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.resources import ensure
from runtime.specs import Baseline, ChartSpec, Specs
from tests.load import fleet

SPECS = Specs(charts=(ChartSpec(chart="given", baseline=Baseline.GIVEN, centre=0.2),))
REVISION, EPOCH = 3, 70
COUNTS = (
    "lost",
    "doubled",
    "wrong",
    "out_of_order",
    "stale",
    "alarms_lost",
    "alarms_doubled",
    "unknown",
)
CHAMBERS, ROUNDS = 6, 20
EXCURSION, BAD, PARTLY = (7, 0), (9, 1), (11, 2)
"""(round, chamber) of the report with an alarm, of one wholly and of one partly rejected."""
Stored = tuple[str, int, bytes, bytes | None]
"""(subject, sequence, payload, headers)."""


def reported(round_: int, chamber: int) -> bytes:
    """One report. The counts are under control but for the excursion."""
    counts: list[Any] = [5 + (round_ * 7 + chamber) % 3, 1]
    if (round_, chamber) == EXCURSION:
        counts[0] = 40
    if (round_, chamber) == BAD:
        counts = [-1, -1]
    if (round_, chamber) == PARTLY:
        counts[1] = 0.5
    return msgspec.json.encode(
        {"run": f"r{round_}", "charts": ["given", "learnt"], "counts": counts, "units": [30.0, 20.0]}
    )


class Streams:
    """The streams of a fleet of one, without the fleet: written by hand."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection, self.settings, self.names = connection, settings, settings.names

    async def publish(self, rounds: int = ROUNDS, chambers: int = CHAMBERS) -> None:
        for round_ in range(rounds):
            for chamber in range(chambers):
                await self.connection.store(self.names.sample(f"Å-{chamber}"), reported(round_, chamber))

    async def judge(self) -> None:
        """Stores what a defender would of all reports: each verdict, rejection and alarm."""
        shape = Shape(self.settings.partitions, 1024, 1024, self.settings.window, 1, 8, 64)
        depth = self.settings.history_depth
        cache = Cache(Arena(os.memfd_create("test"), shape), self.names, SPECS, REVISION, depth)
        judge = Judge(cache, FlightLog(cache.arena), Limits(1 << 20, 1e9, 1e9), "defender-4")
        for partition in range(self.settings.partitions):
            judge.epochs[partition], judge.positions[partition] = EPOCH, 300
        for shard in range(self.names.shards):
            stream = self.names.samples_stream(shard * 64)
            for subject, seq, payload, time_ns in await self._samples(stream):
                partition, name = int(subject.split(".")[2]), subject.split(".")[3]
                if cache.get(name) is None:
                    cache.loaded([cache.add(name, partition)])
                batch = judge.judge([Sample(name, partition, seq, time_ns, payload)])
                for subject, identity, made in (*batch.verdicts, *batch.alarms):
                    await self.connection.store(subject, made, headers=f"Nats-Msg-Id:{identity}\r\n".encode())
                for one in batch.rejections:
                    await self.connection.store(one.subject, one.payload, headers=one.headers)
                if batch.flight is not None:
                    judge.flights.confirm(batch.flight)

    async def _samples(self, stream: str) -> list[tuple[str, int, bytes, int]]:
        found = []
        for seq in range(1, await self.last_seq(stream) + 1):
            subject, _, payload, _, time_ns = await self._get(stream, seq)
            found.append((subject, seq, payload, time_ns))
        return found

    async def last_seq(self, stream: str) -> int:
        return int((await self.connection.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def _get(self, stream: str, seq: int) -> tuple[str, int, bytes, bytes | None, int]:
        """A message and, of its delivery, the very time that consumers are told."""
        inbox, came = self.connection.inbox().decode(), list[Any]()
        sid = await self.connection.tap(inbox, lambda *message: came.append(message))
        config = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": seq,
            "mem_storage": True,
        }
        made = await self.connection.api(
            f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}
        )
        await until(lambda: bool(came), what=f"message {seq} of {stream}")
        await self.connection.api(f"CONSUMER.DELETE.{stream}.{made['name']}")
        await self.connection.untap(sid)
        subject, reply, payload, headers = came[0]
        return subject.decode(), seq, payload, headers, delivery_of(reply).time_ns

    async def held(self, stream: str) -> list[Stored]:
        return [(await self._get(stream, seq))[:4] for seq in range(1, await self.last_seq(stream) + 1)]

    async def of_chamber(self, chamber: int) -> list[Stored]:
        """Its verdicts."""
        held = await self.held(self.names.verdicts)
        return [one for one in held if one[0].endswith(f".Å-{chamber}")]

    async def delete(self, stream: str, message: Stored) -> None:
        await self.connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": message[1]})

    async def add(self, message: Stored, **changes: Any) -> None:
        """Stores a message again, after all others, with some fields changed and without its ID."""
        subject, _, payload, headers = message
        if changes:
            payload = msgspec.msgpack.encode({**msgspec.msgpack.decode(payload), **changes})
        lines = b"".join(
            line + b"\r\n"
            for line in (headers or b"").strip().split(b"\r\n")[1:]
            if not line.startswith(b"Nats-")
        )
        await self.connection.store(subject, payload, headers=lines)


@asynccontextmanager
async def streams_of(server: NatsServer, **changes: Any) -> AsyncIterator[Streams]:
    settings = settings_for(server, **{"partitions": 4, "window": 32, "history_depth": 64, **changes})
    async with connected(settings) as connection:
        await ensure(connection, settings)
        yield Streams(connection, settings)


async def audited(streams: Streams) -> Audited:
    return await audit(streams.settings, {REVISION: SPECS})


def counts(found: Audited) -> dict[str, int]:
    """Those that are not 0."""
    return {name: getattr(found, name) for name in COUNTS if getattr(found, name)}


async def lost(streams: Streams) -> None:
    """The verdict of a report in the midst of others."""
    await streams.delete(streams.names.verdicts, (await streams.of_chamber(2))[4])


async def lost_first(streams: Streams) -> None:
    """The very first of the stream, so that the stream begins later."""
    await streams.delete(streams.names.verdicts, (await streams.held(streams.names.verdicts))[0])


async def lost_partly(streams: Streams) -> None:
    """Of a report that is rejected in part: the rejection does not stand for the verdict."""
    await streams.delete(streams.names.verdicts, (await streams.of_chamber(PARTLY[1]))[PARTLY[0]])


async def lost_rejection(streams: Streams) -> None:
    await streams.delete(streams.names.rejected, (await streams.held(streams.names.rejected))[0])


async def lacks_rejection(streams: Streams) -> None:
    """Of a report that was judged in part."""
    await streams.delete(streams.names.rejected, (await streams.held(streams.names.rejected))[1])


async def doubled(streams: Streams) -> None:
    await streams.add((await streams.of_chamber(1))[3])


async def doubled_twice(streams: Streams) -> None:
    for _ in range(2):
        await streams.add((await streams.of_chamber(1))[3])


async def doubled_rejection(streams: Streams) -> None:
    await streams.add((await streams.held(streams.names.rejected))[0])


async def _instead_of_last(streams: Streams, **changes: Any) -> None:
    last = (await streams.of_chamber(3))[-1]
    await streams.delete(streams.names.verdicts, last)
    await streams.add(last, **changes)


async def wrong_limit(streams: Streams) -> None:
    await _instead_of_last(streams, ucl=[0.4, None])


async def wrong_revision(streams: Streams) -> None:
    await _instead_of_last(streams, spec=REVISION + 1)


async def wrong_ordinal(streams: Streams) -> None:
    await _instead_of_last(streams, ordinal=ROUNDS + 1)


async def other_owner(streams: Streams) -> None:
    """Which is no fault: another defender judges the same."""
    await _instead_of_last(streams, defender="defender-11", epoch=EPOCH + 400, position=2**40)


async def unreadable(streams: Streams) -> None:
    await streams.add((streams.names.verdict(1, "Å-1"), 0, b"\xc1", None))


async def of_no_report(streams: Streams) -> None:
    await streams.add((await streams.of_chamber(1))[-1], seq=100_000)


async def misplaced(streams: Streams) -> None:
    """At the subject of another chamber."""
    (*_, (subject, seq, payload, headers)) = await streams.of_chamber(3)
    await streams.delete(streams.names.verdicts, (subject, seq, payload, headers))
    await streams.add((subject.replace("Å-3", "Å-77"), seq, payload, headers))


async def judged_though_bad(streams: Streams) -> None:
    report = BAD[0] * CHAMBERS + BAD[1] + 1
    await streams.add((await streams.of_chamber(BAD[1]))[-1], seq=report, chamber="Å-1")


async def swapped(streams: Streams) -> None:
    one, other = (await streams.of_chamber(3))[-2:]
    for message in (one, other):
        await streams.delete(streams.names.verdicts, message)
    await streams.add(other)
    await streams.add(one)


async def stale(streams: Streams) -> None:
    await _instead_of_last(streams, epoch=EPOCH - 1)


async def alarm_lost(streams: Streams) -> None:
    await streams.delete(streams.names.alarms, (await streams.held(streams.names.alarms))[0])


async def alarm_doubled(streams: Streams) -> None:
    await streams.add((await streams.held(streams.names.alarms))[0])


async def alarm_wrong(streams: Streams) -> None:
    first = (await streams.held(streams.names.alarms))[0]
    await streams.delete(streams.names.alarms, first)
    payload = msgspec.json.encode({**msgspec.json.decode(first[2]), "severity": "info"})
    await streams.add((first[0], 0, payload, None))


async def nothing(_: Streams) -> None:
    """The clean run."""


FAULTS: list[tuple[Callable[[Streams], Awaitable[None]], dict[str, int]]] = [
    (nothing, {}),
    (lost, {"lost": 1}),
    (lost_first, {"lost": 1}),
    (lost_partly, {"lost": 1}),
    (lost_rejection, {"lost": 1}),
    (lacks_rejection, {"wrong": 1}),
    (doubled, {"doubled": 1}),
    (doubled_twice, {"doubled": 2}),
    (doubled_rejection, {"doubled": 1}),
    (wrong_limit, {"wrong": 1}),
    (wrong_revision, {"wrong": 1}),
    (wrong_ordinal, {"wrong": 1}),
    (other_owner, {}),
    (unreadable, {"wrong": 1}),
    (of_no_report, {"wrong": 1}),
    (misplaced, {"wrong": 1}),
    (judged_though_bad, {"wrong": 1, "out_of_order": 1}),
    (swapped, {"out_of_order": 1}),
    (stale, {"stale": 1}),
    (alarm_lost, {"alarms_lost": 1}),
    (alarm_doubled, {"alarms_doubled": 1}),
    (alarm_wrong, {"wrong": 1}),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
async def test_each_fault_is_counted_once_and_as_what_it_is(
    fault: Callable[[Streams], Awaitable[None]], expected: dict[str, int], nats_server: NatsServer
) -> None:
    """And is told in words; a clean run counts nothing."""
    async with streams_of(nats_server) as streams:
        await streams.publish()
        await streams.judge()
        await fault(streams)
        found = await audited(streams)
    assert counts(found) == expected, found.problems
    assert found.reports == CHAMBERS * ROUNDS
    assert found.samples == 2 * CHAMBERS * ROUNDS - 3
    assert len(found.problems) >= sum(expected.values())
    assert found.is_clean == (not expected)


async def test_what_a_real_defender_stored_is_clean(nats_server: NatsServer) -> None:
    """Two workers, thousands of reports: resets, bad ones, absent charts, excursions; progress is told."""
    settings = settings_for(nats_server, **brisk())
    told: list[tuple[int, int]] = []
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=5, rate=2500)
            publisher.begin()
            await publisher.more(6000)
            reports = await publisher.finish()
            await outside.settled()
        found = await audit(settings, outside.specs, on_progress=lambda *at: told.append(at))
        verdicts = await outside.messages(settings.stream_verdicts)
        rejected = await outside.messages(settings.stream_rejected)
    assert found.is_clean, found.problems
    assert (found.reports, found.verdicts, found.rejected) == (reports, verdicts, rejected)
    assert rejected > 0
    assert told[-1] == (reports, reports)
    assert len(told) >= 2


async def test_verdicts_that_the_depth_of_the_stream_took_are_unknown_and_not_lost(
    nats_server: NatsServer,
) -> None:
    """Nor is such a run clean."""
    async with streams_of(nats_server, window=16, history_depth=16) as streams:
        await streams.publish()
        await streams.judge()
        found = await audited(streams)
    assert counts(found) == {"unknown": CHAMBERS * (ROUNDS - 16) - 1}, found.problems
    assert "keeps 16 verdicts of a chamber" in found.problems[0]
    assert not found.is_clean


async def test_reports_that_their_stream_no_longer_holds_leave_everything_unknown(
    nats_server: NatsServer,
) -> None:
    """Verdicts cannot be made again, since what the charts remembered is gone; none is held to be right."""
    async with streams_of(nats_server) as streams:
        await streams.publish()
        await streams.judge()
        await streams.connection.api(f"STREAM.PURGE.{streams.names.samples}", {"seq": 11})
        found = await audited(streams)
    total = CHAMBERS * ROUNDS
    assert counts(found) == {"unknown": 10 + (total - 10 - 1)}, found.problems
    assert f"{streams.names.samples} no longer holds 10 of its reports" in found.problems[0]


async def test_verdicts_that_come_later_than_what_is_kept_are_unknown(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded memory is no reason for a report to be lost, nor for it to be right."""
    monkeypatch.setattr(audit_shard, "KEPT_VERDICTS_MAX", 30)
    async with streams_of(nats_server) as streams:
        await streams.publish()
        await streams.judge()
        await lost(streams)
        found = await audited(streams)
    assert counts(found) == {"lost": 1, "unknown": CHAMBERS * ROUNDS - 1 - 1 - 30}, found.problems[:3]


async def test_the_arena_grows_with_the_charts_and_forgets_none(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_judging, "SLOTS_FIRST", audit_judging.SLOTS_SPARE)
    grown = []
    grow = audit_judging.Rejudge._grow
    monkeypatch.setattr(audit_judging.Rejudge, "_grow", lambda self: (grow(self), grown.append(self.charts)))
    async with streams_of(nats_server) as streams:
        await streams.publish()
        await streams.judge()
        found = await audited(streams)
    assert grown == [0] or grown == [2 * CHAMBERS], "once"
    assert found.is_clean, found.problems


async def test_shards_are_audited_each_by_its_own_sequences() -> None:
    """Two streams of each kind, in which the same sequences mean other reports."""
    settings = Settings(partitions=128)
    with NatsServer(names=settings.names) as server:
        settings = msgspec.structs.replace(settings, nats_servers=server.url, window=32, history_depth=64)
        async with connected(settings) as connection:
            await ensure(connection, settings)
            streams = Streams(connection, settings)
            await streams.publish(rounds=12)
            await streams.judge()
            clean = await audited(streams)
            shards = [await streams.held(f"VERDICTS-{shard}") for shard in range(2)]
            await streams.delete("VERDICTS-1", shards[1][2])
            await streams.add(shards[0][3])
            found = await audited(streams)
    assert all(shards), "chambers on both"
    assert clean.is_clean, clean.problems
    assert (clean.reports, clean.rejected) == (12 * CHAMBERS, 2)
    assert counts(found) == {"lost": 1, "doubled": 1}, found.problems


async def test_without_the_streams_or_the_specs_it_says_what_is_missing(nats_server: NatsServer) -> None:
    with pytest.raises(LabError, match="does not exist; audit with the settings that the fleet runs with"):
        await audit(settings_for(nats_server), {REVISION: SPECS})
    async with streams_of(nats_server) as streams:
        await streams.publish(rounds=2)
        empty = await audit(streams.settings, {7: SPECS})
        assert counts(empty) == {"lost": 2 * CHAMBERS}, "without any verdict the newest specs serve"
        await streams.judge()
        with pytest.raises(LabError, match="judged by specs of revision 3, the audit has 7, 9"):
            await audit(streams.settings, {7: SPECS, 9: SPECS})
