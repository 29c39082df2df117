"""A small fleet under load to which something bad is done: what the tests of faults share.

    async with troubled(settings, members=3, standbys=1) as fleet:
        (await fleet.leader()).kill()
        await fleet.steady(3)

At the end of the block the load ends, the streams are held against the oracle, and the fleet must still be
steady: nothing lost, nothing judged twice, everything healed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from fleet import until

from bench.lab.controllers import Deployment
from bench.lab.pods import Pod
from runtime import fleet_report
from runtime.bucket import Bucket
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.errors import DefenderError, Fenced
from tests.fleets.harness import Fleet, fleet_settings, running
from tests.fleets.observer import Change
from tests.load import Publisher

RATE: Final = 300
REVISION: Final = "7c9f"


def troubled_settings(server: NatsServer, **changes: Any) -> Settings:
    """Deaths are noticed after 3 s, a lease lasts 8 s: short, but long enough for a busy machine."""
    times = {
        "lease_ttl_s": 11.0,
        "lease_held_s": 8.0,
        "renew_s": 0.5,
        "request_timeout_s": 2.0,
        "heartbeat_ttl_s": 11.0,
        "silence_s": 3.0,
        "leader_ttl_s": 5.0,
        "settle_s": 0.3,
        "hold_down_s": 3.0,
        "successor_wait_s": 2.0,
        "handoff_s": 6.0,
        "pull_expires_s": 5.0,
        "partitions": 16,
    }
    return fleet_settings(server, **{**times, **changes})


class Troubled:
    """A fleet, and what the tests ask of it."""

    def __init__(self, fleet: Fleet, deployment: Deployment, publisher: Publisher) -> None:
        self.fleet, self.deployment, self._publisher = fleet, deployment, publisher
        self.observer, self.settings, self.outside = fleet.observer, fleet.settings, fleet.outside

    # --- who is who -------------------------------------------------------------------------------

    @property
    def pods(self) -> list[Pod]:
        return self.fleet.pods

    @property
    def holders(self) -> dict[str, str]:
        """UID of each ID's holder."""
        return {stable_id: held.pod_uid for stable_id, held in self.observer.claims.items()}

    def pod(self, uid: str) -> Pod:
        (found,) = [pod for pod in self.pods if pod.settings.pod_uid == uid]
        return found

    def id_of(self, pod: Pod) -> str | None:
        """The ID that the pod holds."""
        return next((one for one, uid in self.holders.items() if uid == pod.settings.pod_uid), None)

    @property
    def standbys(self) -> list[Pod]:
        """The living pods without an ID."""
        return [pod for pod in self.fleet.living if self.id_of(pod) is None]

    async def led_by(self) -> Pod | None:
        """The pod that the leader's key names, if it runs."""
        try:
            entry = await self.bucket(self.settings.nats_kv_leader).get("leader")
        except DefenderError:
            return None
        if entry is None or entry.value is None:
            return None
        uid = json.loads(entry.value)["pod_uid"]
        return next((pod for pod in self.fleet.living if pod.settings.pod_uid == uid), None)

    async def leader(self) -> Pod:
        """The pod that leads, once one does."""
        found: Pod = await until(self.led_by, what="a pod leads")
        return found

    async def followers(self) -> list[Pod]:
        """The holders that do not lead, in the order of their IDs."""
        leader = await self.leader()
        pods = [self.pod(uid) for _, uid in sorted(self.holders.items())]
        return [pod for pod in pods if pod is not leader]

    def bucket(self, name: str) -> Bucket:
        return Bucket(self.outside.connection, name, random=random.Random())

    @property
    def assignments(self) -> Bucket:
        return self.bucket(self.settings.nats_kv_assignments)

    # --- what happened ----------------------------------------------------------------------------

    def moved_since(self, begin_ns: int) -> list[Change]:
        """The changes of owner since then."""
        return self.observer.changes(begin_ns, time.time_ns())

    def owned_by(self, pod: Pod) -> list[int]:
        """The partitions whose records name the pod."""
        uid = pod.settings.pod_uid
        records = {p: self.observer.record(p) for p in range(self.settings.partitions)}
        return [p for p, record in records.items() if record.state == "owned" and record.pod_uid == uid]

    async def steady(self, members: int | None = None, deadline_s: float = 30.0) -> None:
        """Until a live pod owns each partition, the one that the ring wants; some pods may have left."""

        def wrong() -> list[str]:
            found = self.observer.unsettled({pod.settings.pod_uid for pod in self.fleet.living})
            have = len(self.observer.ring.members) if self.observer.ring else 0
            return found if members in (None, have) else [f"the ring has {have} members", *found]

        try:
            await until(lambda: not wrong(), deadline_s=deadline_s)
        except AssertionError:
            raise AssertionError(f"not steady within {deadline_s:g} s: {'; '.join(wrong()[:8])}") from None

    async def more(self, reports: int = 200) -> None:
        """Until so many more reports are stored."""
        await self._publisher.more(reports)

    async def trouble(self) -> list[str]:
        """What `defender status` says is wrong, or why it says nothing else."""
        try:
            return fleet_report.trouble(await read_snapshot(self.outside.connection, self.settings))
        except DefenderError as error:
            return [str(error)]

    async def well(self, deadline_s: float = 20.0) -> None:
        """Until nothing is wrong."""
        told: list[str] = []

        async def nothing_told() -> bool:
            told[:] = await self.trouble()
            return not told

        try:
            await until(nothing_told, deadline_s=deadline_s)
        except AssertionError:
            raise AssertionError(f"trouble after {deadline_s:g} s: {told}") from None

    async def told(self, text: str, deadline_s: float = 10.0) -> None:
        """Until `defender status` names trouble in which *text* is."""

        async def is_told() -> bool:
            return any(text in one for one in await self.trouble())

        await until(is_told, deadline_s=deadline_s, what=f"status says {text!r}")

    async def fenced(self, pod: Pod, deadline_s: float = 20.0) -> str:
        """Waits until the pod leaves as one that lost its lease; the cause that it gives."""
        assert await pod.wait_exit(deadline_s) == Fenced.exit_code
        return str(pod.lines("fenced")[-1]["cause"])

    async def reborn(self, pod: Pod) -> Pod:
        """The platform starts the container again in its pod."""
        pod.start()
        return await pod.wait_ready()


@asynccontextmanager
async def troubled(
    settings: Settings, *, members: int = 3, standbys: int = 0, rate: int = RATE
) -> AsyncIterator[Troubled]:
    """A fleet that is steady and under load; audited at the end."""
    if standbys:
        settings = msgspec.structs.replace(settings, max_defenders=members)
    async with running(settings) as fleet:
        deployment = fleet.deployment(replicas=members + standbys, revision=REVISION)
        await deployment.start()
        await fleet.steady(members)
        one = Troubled(fleet, deployment, fleet.load(rate=rate))
        await one.more(rate)
        yield one
        await fleet.audit()
        await one.steady(deadline_s=10.0)
