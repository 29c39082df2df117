"""Cassandra as the history is killed, frozen or late: nothing is lost, nothing judged twice, and afterwards
the table has every verdict.

The node dies with kill -9 wherever what it was sent must be lost, too: one that is only frozen applies what
the kernel kept for it when it wakes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cassandra_server import CassandraServer
from fleet import settings_for, until
from on_cassandra import running, with_cassandra

from bench.lab.pods import Pod, another, brisk
from runtime.config import Settings
from runtime.embedded import NatsServer
from tests.cassandra_audit import HEALS_S, audit_table, comes_back, is_ready, is_told, left, rebuilt
from tests.load import Fleet, Publisher, fleet
from tests.oracle import Streams

SEED = random.SystemRandom().randrange(10**6)
AWAY_S = 14.0
"""With the 6 s of its start, and more on a busy machine, the node is away for 20 s."""
FROZEN_S = 6.0
LEAVES_S = 10.0


@pytest.fixture(scope="module")
def node() -> Iterator[CassandraServer]:
    """One Cassandra for the tests of this module."""
    with running() as server:
        yield server


@pytest.fixture
def mortal(node: CassandraServer) -> Iterator[CassandraServer]:
    """It, for a test that kills and freezes it."""
    yield node
    if node.running:
        node.thaw()
    else:
        node.start()


def settings_on(nats: NatsServer, cassandra: CassandraServer, **changes: Any) -> Settings:
    return with_cassandra(settings_for(nats, **brisk(cassandra_timeout_s=1.0, **changes)), cassandra)


async def loaded(outside: Fleet, reports: int = 300) -> Publisher:
    """A load that goes on, after some reports of it."""
    publisher = outside.publisher(seed=SEED, rate=200)
    publisher.begin()
    await publisher.more(reports + random.Random(SEED).randrange(100))
    return publisher


async def end(outside: Fleet, publisher: Publisher) -> Streams:
    """Some more load; then the streams are right. What they hold."""
    await publisher.more(200)
    stored = await publisher.finish()
    streams = await outside.audit(deadline_s=HEALS_S)
    assert len(streams.samples) == stored
    return streams


@pytest.mark.limit_s(150)
async def test_after_kill_9_of_cassandra_under_load_reports_wait_and_all_are_judged_when_it_is_back(
    own_server: NatsServer, mortal: CassandraServer
) -> None:
    """Away for 20 s: /readyz says why all the time, the reports wait in NATS, and it goes on by itself. What
    was published meanwhile is stored, too, also by the successor of a worker that dies."""
    settings = settings_on(own_server, mortal)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = await loaded(outside)
            killed_ns = time.time_ns()
            mortal.kill()
            await is_told(pod, mortal)
            pod.kill_worker(0)
            back_s = time.monotonic() + AWAY_S
            while time.monotonic() < back_s:
                assert pod.not_ready(), "ready while nothing can be stored"
                await asyncio.sleep(0.25)
            assert await outside.unsettled() > 100
            assert len(pod.lines("the history takes nothing; reports wait in NATS")) <= settings.workers + 1
            await comes_back(mortal)
            await is_ready(pod)
            assert len(pod.lines("worker died")) == 1
            streams = await end(outside, publisher)
            await audit_table(settings, streams.verdicts, lost_before_ns=killed_ns)
            await left(pod)
            await rebuilt(pod.start(), streams.verdicts)
            await audit_table(settings, streams.verdicts)


@pytest.mark.limit_s(150)
async def test_writes_that_time_out_and_are_applied_later_are_stored_once_and_a_frozen_node_delays_a_start(
    own_server: NatsServer, mortal: CassandraServer
) -> None:
    """SIGSTOP for 6 s, then again: the pod dies by kill -9 meanwhile, and its next life waits for it."""
    settings = settings_on(own_server, mortal)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = await loaded(outside)
            mortal.freeze()
            try:
                await is_told(pod, mortal)
                await asyncio.sleep(FROZEN_S)
            finally:
                mortal.thaw()
            await is_ready(pod)
            await publisher.more(200)
            mortal.freeze()
            try:
                await is_told(pod, mortal)
                pod.kill()
                pod.start()
                await is_told(pod, mortal)
                assert pod.said("no answer") or pod.said("no node answers")
            finally:
                mortal.thaw()
            await is_ready(pod)
            streams = await end(outside, publisher)
            await audit_table(settings, streams.verdicts)


@pytest.mark.limit_s(150)
async def test_what_was_published_and_not_stored_when_a_worker_and_the_pod_end_is_stored_by_the_next_pod(
    own_server: NatsServer, mortal: CassandraServer
) -> None:
    """A worker is killed between verdict and append, the pod told to leave; then the node dies with what it
    was sent. The next pod starts while no node is there, and serves when one is."""
    settings = settings_on(own_server, mortal, pod_name="first")
    async with fleet(settings) as outside:
        with Pod(settings) as first, Pod(another(settings, "second"), start=False) as second:
            await first.wait_serving()
            publisher = await loaded(outside)
            mortal.freeze()
            await is_told(first, mortal)
            dead = first.kill_worker(0)
            await until(lambda: first.workers[0] != dead, what="a successor")
            await is_told(first, mortal)
            begun_s = time.monotonic()
            first.sigterm()
            assert await first.wait_exit(deadline_s=LEAVES_S + 5.0) == 0
            assert time.monotonic() - begun_s < LEAVES_S
            mortal.kill()
            second.start()
            await is_told(second, mortal)
            assert second.said("start it, or correct CASSANDRA_CONTACT_POINTS")
            await comes_back(mortal)
            await is_ready(second)
            streams = await end(outside, publisher)
            await audit_table(settings, streams.verdicts)
