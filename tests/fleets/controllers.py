"""Stand-ins for the platform's controllers: a Deployment and a StatefulSet of real `defender run` processes.

They do to pods what Kubernetes does, by its rules: a Deployment's update never has more than replicas + surge
pods (those being terminated do not count), nor fewer than replicas - unavailable that are Ready; a
StatefulSet's goes from the highest ordinal down and waits for each. A new pod has a new UID; a container that
is restarted in its pod keeps name and UID. A pod is told to leave by SIGTERM and killed after a grace period.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from runtime.config import Settings
from tests.pods import Pod

RECONCILE_S: Final = 0.1
GRACE_S: Final = 30.0
READY_S_MAX: Final = 45.0
FAILURES_MAX: Final = 3
"""A pod that was Ready is so until this many probes in a row failed, the platform's default."""
LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"


class Departure(NamedTuple):
    """A pod that was told to leave: after how long it had left, and how."""

    pod_name: str
    seconds: float
    exit_code: int


class Controller(ABC):
    """Keeps *replicas* pods of one track, each started by *launch*.

    *departures* tells how those that were told to leave did so.
    """

    def __init__(
        self,
        launch: Callable[[Settings], Pod],
        settings: Settings,
        *,
        replicas: int,
        revision: str,
        name: str,
        random: random.Random,
        grace_s: float = GRACE_S,
    ) -> None:
        self.replicas, self.revision, self.name = replicas, revision, name
        self.pods: list[Pod] = []
        self.departures: list[Departure] = []
        self.lapses: list[str] = []
        """Pods that were Ready, were not told to leave, and were not Ready any more; and what they said."""
        self._failures: dict[str, int] = {}
        self._launch_pod, self._settings, self._random, self._grace_s = launch, settings, random, grace_s
        self._leaving: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def scale(self, replicas: int) -> None:
        """Starts or ends pods; returns when the new are Ready or the old have left."""

    async def start(self) -> None:
        """The first replicas, all at once; returns when all are Ready."""
        replicas, self.replicas = self.replicas, 0
        await self.scale(replicas)

    async def restart(self, pod: Pod) -> None:
        """The container dies (SIGKILL of its first process) and is started again in its pod."""
        pod.kill_supervisor()
        await pod.wait_exit()
        pod.start()

    async def ready(self) -> list[Pod]:
        """The pods that are Ready and not being terminated. Fails when one has left by itself."""
        return [pod for pod, passed in await self._probed() if self._is_ready(pod, passed)]

    async def _probed(self) -> list[tuple[Pod, bool]]:
        for pod in self.pods:
            if pod.exit_code is not None:
                raise AssertionError(f"{pod.settings.pod_name} left by itself with {pod.exit_code}")
        pods = list(self.pods)
        statuses = await asyncio.gather(*(pod.probe("/readyz") for pod in pods))
        return [(pod, status == 200) for pod, status in zip(pods, statuses, strict=True)]

    def _is_ready(self, pod: Pod, passed: bool) -> bool:
        uid, name = pod.settings.pod_uid, pod.settings.pod_name
        if passed:
            self._failures[uid] = 0
        elif uid in self._failures:
            self._failures[uid] += 1
            if self._failures[uid] == FAILURES_MAX:
                self.lapses.append(f"{name}: {'; '.join(pod.not_ready()) or 'Ready again'}")
        return self._failures.get(uid, FAILURES_MAX) < FAILURES_MAX

    async def wait_ready(self, deadline_s: float = READY_S_MAX) -> None:
        """Until all pods are Ready at one time, by the newest probe."""
        end = time.monotonic() + deadline_s
        while True:
            probed = await self._probed()
            slow = [pod for pod, passed in probed if not self._is_ready(pod, passed) or not passed]
            if not slow:
                return
            assert time.monotonic() < end, f"not Ready within {deadline_s:g} s: {why_not_ready(slow)}"
            await asyncio.sleep(RECONCILE_S)

    async def left(self) -> None:
        """Until every pod that was told to leave has left."""
        while self._leaving:
            await asyncio.gather(*self._leaving)

    def _launch(self, pod_name: str) -> Pod:
        settings = msgspec.structs.replace(
            self._settings,
            pod_name=pod_name,
            pod_uid=f"{self._random.getrandbits(64):016x}",
            revision=self.revision,
        )
        pod = self._launch_pod(settings)
        self.pods.append(pod)
        return pod

    def terminate(self, pod: Pod) -> asyncio.Task[None]:
        """SIGTERM, and SIGKILL after the grace period; the pod does not count any more."""
        self.pods.remove(pod)
        pod.sigterm()
        task = asyncio.create_task(self._departed(pod, time.monotonic()))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _departed(self, pod: Pod, told_s: float) -> None:
        while pod.exit_code is None:
            if time.monotonic() - told_s > self._grace_s:
                pod.kill()
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - told_s
        self.departures.append(Departure(pod.settings.pod_name, took_s, pod.exit_code))


class Deployment(Controller):
    """Pods with random names, as a Deployment's replica sets make them."""

    async def rolling_update(self, revision: str, *, surge: int = 1, unavailable: int = 0) -> None:
        """Replaces every pod by one of *revision*; returns when all are Ready and the old ones have left."""
        assert surge or unavailable, "an update with neither surge nor unavailable pods cannot begin"
        self.revision = revision
        end = time.monotonic() + READY_S_MAX + 5.0 * self.replicas
        while True:
            ready = await self.ready()
            old = [pod for pod in self.pods if pod.settings.revision != revision]
            new = [pod for pod in self.pods if pod.settings.revision == revision]
            if not old and len(new) == self.replicas and len(ready) == len(self.pods):
                break
            room = self.replicas + surge - len(self.pods)
            for _ in range(min(room, self.replicas - len(new))):
                self._launch(self._new_name())
            starting = sum(pod not in ready for pod in self.pods if pod not in old)
            # those that are not Ready do not count as available, and go first
            going = len(self.pods) - starting - (self.replicas - unavailable)
            for pod in sorted(old, key=lambda pod: pod in ready)[: max(0, going)]:
                self.terminate(pod)
            assert time.monotonic() < end, f"the update hangs: {why_not_ready(self.pods)}"
            await asyncio.sleep(RECONCILE_S)
        await self.left()

    async def scale(self, replicas: int) -> None:
        self.replicas = replicas
        while len(self.pods) < replicas:
            self._launch(self._new_name())
        for pod in self.pods[replicas:][::-1]:  # the youngest go, as a replica set has it
            self.terminate(pod)
        await self.wait_ready()
        await self.left()

    def _new_name(self) -> str:
        return f"{self.name}-{self.revision}-{''.join(self._random.choices(LETTERS, k=5))}"


class StatefulSet(Controller):
    """Pods named by ordinals; a replaced one has the name of the one before, and a new UID."""

    async def rolling_update(self, revision: str, *, at_once: int = 1) -> None:
        """From the highest ordinal down, *at_once* at a time: they leave, come again, and are waited for."""
        self.revision = revision
        ordinals = sorted((self._ordinal(pod) for pod in self.pods), reverse=True)
        for first in range(0, len(ordinals), at_once):
            await asyncio.gather(*(self._replace(ordinal) for ordinal in ordinals[first : first + at_once]))
            await self.wait_ready()

    async def scale(self, replicas: int, *, parallel: bool = True) -> None:
        """Starts the next ordinals or ends the highest, all at once or one after the other."""
        self.replicas = replicas
        have = {self._ordinal(pod) for pod in self.pods}
        for ordinal in range(replicas):
            if ordinal not in have:
                self._launch(f"{self.name}-{ordinal}")
                if not parallel:
                    await self.wait_ready()
        for pod in sorted(self.pods, key=self._ordinal, reverse=True):
            if self._ordinal(pod) >= replicas:
                leaving = self.terminate(pod)
                if not parallel:
                    await leaving
        await self.wait_ready()
        await self.left()

    async def _replace(self, ordinal: int) -> None:
        (pod,) = [pod for pod in self.pods if self._ordinal(pod) == ordinal]
        await self.terminate(pod)
        self._launch(pod.settings.pod_name)

    def _ordinal(self, pod: Pod) -> int:
        return int(pod.settings.pod_name.rpartition("-")[2])


def why_not_ready(pods: Iterable[Pod]) -> dict[str, list[str]]:
    """What each pod says."""
    return {pod.settings.pod_name: pod.not_ready() for pod in pods}
