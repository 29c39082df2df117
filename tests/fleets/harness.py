"""A whole fleet under load: real `defender run` processes, one real nats-server, an observer and an auditor.

    async with running(settings) as fleet:
        blue = fleet.deployment(replicas=8, revision="7c9f")
        await blue.start()
        await fleet.steady(8)
        fleet.load(rate=1000)
        async with fleet.event("rolling update"):
            await blue.rolling_update("8d4b", surge=3)
            await fleet.steady(8)
        figures = await fleet.audit()

`audit` ends the load, prints what each event cost, and fails unless the streams hold exactly what the oracle
says. Everything drawn at random comes from one seed, which is printed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from fleet import connected, settings_for, until

from bench.lab.controllers import Controller, Departure, Deployment, StatefulSet
from bench.lab.pods import Pod, environment
from runtime.bucket import Bucket
from runtime.config import Identity, Settings
from runtime.embedded import NatsServer
from tests.fleets.observer import Event, Figures, Observer, figures, print_table
from tests.load import DIFFERENCES_SHOWN, Publisher
from tests.load import Fleet as Outside
from tests.load import fleet as outside_of

STEADY_S_MAX: Final = 30.0
C = TypeVar("C", bound=Controller)


def fleet_settings(server: NatsServer, **changes: Any) -> Settings:
    """Settings of pods so small that ten of them fit on two cores; all times are the usual ones."""
    small = {"workers": 1, "cache_mb": 20, "window": 32, "history_depth": 512, "partitions": 32}
    return settings_for(server, **{**small, **changes})


class Fleet:
    """Pods, what is done to them, and what comes of it."""

    def __init__(self, outside: Outside, observer: Observer, stack: ExitStack, seed: int) -> None:
        self.settings, self.outside, self.observer = outside.settings, outside, observer
        self.pods: list[Pod] = []
        """Every pod that ever was."""
        self.controllers: list[Controller] = []
        self._stack, self._seed, self._random = stack, seed, random.Random(seed)
        self._publisher: Publisher | None = None

    # --- pods -------------------------------------------------------------------------------------

    def deployment(self, *, replicas: int, revision: str = "7c9f", **changes: Any) -> Deployment:
        """A Deployment of the settings' track, or of the one named in *changes* of settings; not started."""
        return self._controller(Deployment, replicas, revision, changes)

    def stateful_set(self, *, replicas: int, revision: str = "7c9f", **changes: Any) -> StatefulSet:
        """A StatefulSet, whose pods are told to take their IDs from their names; not started."""
        return self._controller(StatefulSet, replicas, revision, {"identity": Identity.ORDINAL, **changes})

    def _controller(self, kind: type[C], replicas: int, revision: str, changes: dict[str, Any]) -> C:
        settings = msgspec.structs.replace(self.settings, **changes)
        name = "defender" if settings.track == self.settings.track else settings.track
        made = kind(
            self._launch, settings, replicas=replicas, revision=revision, name=name, random=self._random
        )
        self.controllers.append(made)
        return made

    def _launch(self, settings: Settings) -> Pod:
        pod = self._stack.enter_context(Pod(settings))
        self.pods.append(pod)
        return pod

    @property
    def living(self) -> list[Pod]:
        """The pods whose process runs."""
        return [pod for pod in self.pods if pod.exit_code is None]

    @property
    def departures(self) -> list[Departure]:
        """How the pods that were told to leave left."""
        return [departure for controller in self.controllers for departure in controller.departures]

    async def steady(self, members: int | None = None, deadline_s: float = STEADY_S_MAX) -> None:
        """Until each partition is owned as the ring wants, the ring has *members*, and all pods serve."""
        end = time.monotonic() + deadline_s

        def wrong() -> list[str]:
            found = self.observer.unsettled({pod.settings.pod_uid for pod in self.living})
            have = len(self.observer.ring.members) if self.observer.ring else 0
            if members is not None and have != members:
                found.insert(0, f"the ring has {have} members, not {members}")
            return found

        try:
            await until(lambda: not wrong(), deadline_s=deadline_s)
        except AssertionError:
            raise AssertionError(f"not steady within {deadline_s:g} s: {'; '.join(wrong()[:8])}") from None
        for controller in self.controllers:
            await controller.wait_ready(deadline_s=max(1.0, end - time.monotonic()))

    async def command(self, *argv: str, deadline_s: float = 30.0) -> str:
        """What `defender <argv>` prints; fails unless it exits with 0."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "runtime", *argv),
            env={**environment(self.settings), "NO_COLOR": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(deadline_s):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            output, _ = await process.communicate()
            raise AssertionError(f"defender {' '.join(argv)} hangs:\n{output.decode()}") from None
        assert process.returncode == 0, f"defender {' '.join(argv)}: {process.returncode}\n{output.decode()}"
        return output.decode()

    async def leader(self) -> str:
        """The UID of the pod that leads."""
        bucket = Bucket(self.outside.connection, self.settings.nats_kv_leader, random=self._random)
        entry = await bucket.get("leader")
        assert entry is not None, "nobody leads"
        assert entry.value is not None, "nobody leads"
        return str(msgspec.json.decode(entry.value)["pod_uid"])

    # --- load and figures -------------------------------------------------------------------------

    def load(self, *, rate: int, chambers: int = 100) -> Publisher:
        """Begins to publish."""
        self._publisher = self.outside.publisher(seed=self._seed, rate=rate, chambers=chambers)
        self._publisher.begin()
        return self._publisher

    def event(self, what: str) -> AbstractAsyncContextManager[Event]:
        """Marks a block's time; its figures are in `audit`'s table."""
        return self.observer.event(what)

    async def audit(self) -> list[Figures]:
        """Ends the load; the figures of each event. Fails where the oracle says otherwise."""
        if self._publisher is not None:
            await self._publisher.finish()
        await self.outside.settled()
        streams = await self.outside.read()
        found = figures(self.observer, streams)
        print_table(found)
        if self.departures:
            slowest = max(self.departures, key=lambda departure: departure.seconds)
            codes = sorted({departure.exit_code for departure in self.departures})
            print(f"{len(self.departures)} pods left with {codes}, the slowest after {slowest.seconds:.1f} s")
        for lapse in (lapse for controller in self.controllers for lapse in controller.lapses):
            print(f"not Ready any more: {lapse}")
        differences = await asyncio.to_thread(self.outside.differences, streams)
        shown = "\n".join(differences[:DIFFERENCES_SHOWN])
        assert not differences, f"{len(differences)} differences from the oracle:\n{shown}"
        return found


@asynccontextmanager
async def running(settings: Settings, *, seed: int | None = None) -> AsyncIterator[Fleet]:
    """A fleet without pods yet; at the end all are killed, and after a failure their logs are shown."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    async with outside_of(settings) as outside, connected(settings) as connection:
        observer = await Observer(connection, settings).start()
        try:
            with ExitStack() as stack:
                yield Fleet(outside, observer, stack, seed)
        finally:
            await observer.stop()
