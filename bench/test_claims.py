"""A start of two hundred pods at once: how long until each has its ID, and how many attempts that takes.

All pods are in this one process, each with what a real one has: its connection, its view of the fleet, its
heartbeat. Two hundred views of two hundred heartbeats and renewals every 2 s would be 40,000 deliveries a
second, more than one process parses beside the claims: here they come every 6 s. What is left, 600 to each
view, is most of the time that is measured; this process's CPU time stands beside it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

import msgspec
import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for

from runtime.bucket import Bucket
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.fleet_view import FleetView
from runtime.identity import Claimant
from runtime.membership import Heart, Heartbeat, State
from runtime.resources import ensure

SEED = 1
PODS = 30 if QUICK else 200


class Pod:
    """What of a pod takes part in claiming."""

    def __init__(self, connection: Any, settings: Settings, seed: int) -> None:
        random = Random(seed)
        self._settings = settings
        self.view = FleetView(connection, settings, random=random)
        ids, hearts = settings.nats_kv_stable_ids, settings.nats_kv_heartbeats
        self.claimant = Claimant(
            Bucket(connection, ids, random=random), settings, self.view, random=random, session=str(seed)
        )
        self.heart = Heart(Bucket(connection, hearts, random=random), self._beat, every_s=settings.renew_s)
        self.stable_id: str | None = None
        self.claimed_s = 0.0

    def _beat(self) -> Heartbeat:
        s, state = self._settings, State.ACTIVE if self.stable_id else State.STARTING
        now = datetime.now(UTC)
        return Heartbeat(s.pod_uid, s.pod_name, s.track, s.revision, state, now, self.stable_id)

    async def claim(self) -> None:
        """From nothing but a connection to a lease that is renewed."""
        started_s = time.perf_counter()
        self.heart.begin()
        await self.view.start()
        lease = await self.claimant.claim()
        self.stable_id, self.claimed_s = lease.stable_id, time.perf_counter() - started_s
        lease.begin(self._fenced)
        await self.heart.beat_now()

    def _fenced(self, error: Exception) -> None:
        raise AssertionError(f"{self.stable_id} was lost while others claimed") from error


@asynccontextmanager
async def fleet_of(server: NatsServer, count: int) -> AsyncIterator[list[Pod]]:
    calm: dict[str, Any] = {"renew_s": 6.0, "heartbeat_ttl_s": 60.0, "silence_s": 20.0}
    settings = settings_for(server, id_range=f"0-{count - 1}", **calm)
    async with AsyncExitStack() as stack:
        pods = []
        for number in range(count):
            own = msgspec.structs.replace(settings, pod_name=f"pod-{number}", pod_uid=f"uid-{number}")
            pods.append(Pod(await stack.enter_async_context(connected(own)), own, SEED + number))
        async with connected(settings) as connection:
            await ensure(connection, settings)
        yield pods


class Round(NamedTuple):
    all_s: float
    cpu_s: float
    median_s: float
    attempts: float
    ids: set[str | None]


async def claim_all(server: NatsServer) -> Round:
    async with fleet_of(server, PODS) as pods:
        # What two hundred pods remember is in one process here: its garbage collection is no pod's.
        gc.collect()
        gc.disable()
        started_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(pod.claim() for pod in pods))
        took_s = time.perf_counter() - started_s
        gc.enable()
        return Round(
            took_s,
            time.process_time() - cpu_s,
            sorted(pod.claimed_s for pod in pods)[len(pods) // 2],
            sum(pod.claimant.attempts for pod in pods) / len(pods),
            {pod.stable_id for pod in pods},
        )


def test_simultaneous_claims(benchmark: Any) -> None:
    """Two hundred pods claim at once: the lowest IDs, none twice, hardly an attempt too many."""
    rounds: list[Round] = []
    with NatsServer() as server:
        benchmark.pedantic(lambda: rounds.append(uvloop.run(claim_all(server))), rounds=1 if QUICK else 3)
    assert all(one.ids == {f"defender-{number}" for number in range(PODS)} for one in rounds)
    worst = max(rounds, key=lambda one: one.all_s)
    spread = f"median pod {worst.median_s:.2f} s; {worst.cpu_s:.2f} s CPU of this process"
    took = f"{worst.all_s:.2f} s"
    figure(f"{PODS} claims at once", took, target="≤ 3 s", baseline=spread, met=worst.all_s <= 3)
    attempts = max(one.attempts for one in rounds)
    figure("attempts a claim", f"{attempts:.2f}", target="≤ 3", met=attempts <= 3, is_ratio=True)
