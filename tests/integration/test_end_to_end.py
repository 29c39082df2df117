"""A defender from outside, undisturbed: reports in; verdicts, alarms, rejections out, as the oracle says."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fleet import settings_for, until

from bench.lab.pods import Pod, brisk
from runtime.embedded import NatsServer
from runtime.specs import Baseline, ChartSpec, Specs
from runtime.wire import decode_alarm, decode_verdict
from tests.load import Fleet, fleet
from tests.oracle import Oracle, Stored

SEED = random.SystemRandom().randrange(10**6)
SHALLOW = {"window": 16, "history_depth": 16}


@asynccontextmanager
async def heard(outside: Fleet) -> AsyncIterator[list[Stored]]:
    """Every verdict as it is published: the stream keeps only the last D of a chamber."""
    verdicts: list[Stored] = []

    def deliver(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        verdicts.append(Stored("heard", len(verdicts) + 1, subject.decode(), payload, {}, 0))

    sid = await outside.connection.tap(f"{outside.settings.subject_root}.verdict.>", deliver)
    yield verdicts
    await outside.connection.untap(sid)


async def audit(outside: Fleet, verdicts: list[Stored]) -> None:
    """As `Fleet.audit`, by the verdicts that were heard."""
    await outside.settled()
    streams = await outside.read()
    streams.verdicts = verdicts
    settings = outside.settings
    oracle = Oracle(window=settings.window, depth=settings.history_depth, specs=outside.specs)
    differences = oracle.compare(streams)
    assert not differences, "\n".join(differences[:12])


async def test_one_report_becomes_one_verdict_and_one_alarm_with_the_limits_of_the_u_chart(
    nats_server: NatsServer,
) -> None:
    """u = 9/4, centre 1: limits 1 ± 3·sqrt(1/4) are 0 (clamped) and 2.5; 11/4 signals rule 1."""
    settings = settings_for(nats_server, **brisk())
    specs = Specs(charts=(ChartSpec(chart="a", baseline=Baseline.GIVEN, centre=1.0),))
    async with fleet(settings, specs) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            inside = {"run": "R1", "charts": ["a"], "counts": [9], "units": [4.0]}
            await outside.publish(
                [
                    (b"C1", msgspec.json.encode(inside)),
                    (b"C1", msgspec.msgpack.encode({**inside, "run": "R2", "counts": [11]})),
                ]
            )
            streams = await outside.audit()
            first, second = (decode_verdict(message.payload) for message in streams.verdicts)
            assert (first.run, first.u, first.lcl, first.ucl, first.flags) == (
                "R1",
                [2.25],
                [0.0],
                [2.5],
                [0],
            )
            assert (second.run, second.u, second.flags, second.phase) == ("R2", [2.75], [1], [2])
            assert second.ucl == [1.0 + 3.0 * math.sqrt(0.25)]
            (alarm,) = (decode_alarm(message.payload) for message in streams.alarms)
            assert (alarm.chamber, alarm.run, alarm.seq, alarm.epoch) == ("C1", "R2", 2, second.epoch)
            assert alarm.charts[0].text == "a: u 2.75 is above UCL 2.5"
            assert pod.metric("defender_verdicts_total") == 2
            assert pod.metric("defender_alarms_total") == 1


async def test_specs_that_change_under_load_reach_the_workers_and_every_verdict_says_by_which_it_was_judged(
    nats_server: NatsServer,
) -> None:
    """No restart; charts whose baseline changes begin a new stage, others go on."""
    settings = settings_for(nats_server, **brisk())
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED, rate=2000)
            publisher.begin()
            for centre in (0.1, 0.12):
                await publisher.more(700)
                revision = await outside.apply(
                    Specs(
                        charts=(
                            ChartSpec(
                                chamber="C-0*", chart="given_*", baseline=Baseline.GIVEN, centre=centre
                            ),
                            ChartSpec(chamber="C-1*", chart="given_*", baseline=Baseline.MOVING, minimum=3),
                        ),
                        default=ChartSpec(phase_one=15, minimum=5, rules=(1, 2)),
                    )
                )
                await until(
                    lambda revision=revision: pod.metric("defender_worker_spec_revision") == 2 * revision,
                    what="both workers have the specs",
                )
            await publisher.more(700)
            await publisher.finish()
            streams = await outside.audit()
            revisions = {msgspec.msgpack.decode(message.payload)["spec"] for message in streams.verdicts}
            assert revisions == {1, 2, 3}
            assert pod.metric("defender_worker_restarts_total") == 0


async def test_more_charts_than_the_cache_holds_are_judged_as_if_all_were_in_memory(
    nats_server: NatsServer,
) -> None:
    """Chambers leave the cache and come back from the history, in order with their reports."""
    settings = settings_for(nats_server, **brisk(**SHALLOW, cache_mb=1))
    async with fleet(settings) as outside, heard(outside) as verdicts:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED, rate=3000, chambers=99)
            wide = outside.publisher(seed=SEED + 1, rate=3000, chambers=700)
            publisher.begin()
            wide.begin()
            await wide.more(6000)
            await publisher.finish()
            await wide.finish()
            await audit(outside, verdicts)
            assert pod.metric("defender_cache_evictions_total") > 100
            assert pod.metric("defender_history_reads_total") > 100


async def test_a_restarted_defender_goes_on_from_the_last_d_reports_as_if_it_had_never_left(
    nats_server: NatsServer,
) -> None:
    """Three lives under load; charts absent from the last D reports begin a new stage in all of them."""
    settings = settings_for(nats_server, **brisk(**SHALLOW))
    async with fleet(settings) as outside, heard(outside) as verdicts:
        publisher = outside.publisher(seed=SEED, rate=1000, chambers=12)
        publisher.begin()
        with Pod(settings) as pod:
            for life in range(3):
                if life:
                    pod.start()
                await pod.wait_serving()
                await publisher.more(700)
                if life < 2:
                    pod.sigterm()
                    assert await pod.wait_exit(deadline_s=10.0) == 0
            assert pod.lines("ready")[0]["rebuilt_reports"] > 100
            await publisher.finish()
            await audit(outside, verdicts)


async def test_partitions_over_several_streams_are_served_alike() -> None:
    """128 partitions are two streams of samples and two of verdicts; the account's mapping spreads them."""
    names: dict[str, Any] = {"partitions": 128}
    with NatsServer() as probe:
        settings = settings_for(probe, **brisk(**names))
    with NatsServer(names=settings.names) as server:
        settings = msgspec.structs.replace(settings, nats_servers=server.url)
        async with fleet(settings) as outside:
            with Pod(settings) as pod:
                await pod.wait_serving()
                publisher = outside.publisher(seed=SEED, rate=2000, chambers=90)
                publisher.begin()
                await publisher.more(1500)
                await publisher.finish()
                streams = await outside.audit()
                assert len({message.stream for message in streams.samples}) == 2
