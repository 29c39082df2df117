"""Stand-ins for the platform's controllers: a Deployment and a StatefulSet of real `defender run` processes.

They do to pods what Kubernetes does, by its rules: a Deployment's update never has more than replicas + surge
pods (those being terminated do not count), nor fewer than replicas - unavailable that are Ready; a
StatefulSet's goes from the highest ordinal down. A new pod has a new UID; a container that is restarted in
its pod keeps name and UID. A pod is told to leave by SIGTERM and killed after a grace period.

A container that ends by itself is the kubelet's: `bench.lab.kubelet`. Without one it ends whatever waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from bench.lab.errors import LabError, NotInTime
from bench.lab.pods import Pod
from bench.lab.waiting import until
from runtime.config import Settings

if TYPE_CHECKING:
    from bench.lab.kubelet import Kubelet

RECONCILE_S: Final = 0.1
GRACE_S: Final = 30.0
READY_S_MAX: Final = 45.0
UPDATED_S_MAX: Final = 5.0
"""More than that, a replica, for an update."""
FAILURES_MAX: Final = 3
"""A pod that was Ready is so until this many probes in a row failed, the platform's default."""
LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
PODS_SHOWN: Final = 4


class Departure(NamedTuple):
    """A pod that was told to leave: after how long it had left, and how."""

    pod_name: str
    seconds: float
    exit_code: int


class Controller(ABC):
    """Keeps *replicas* pods of one track, each started by *launch*.

    *departures* tells how those that were told to leave did so. *kubelet* restarts containers that end by
    themselves.
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
        kubelet: Kubelet | None = None,
    ) -> None:
        self.replicas, self.revision, self.name = replicas, revision, name
        self.pods: list[Pod] = []
        """Those that are not being terminated, the oldest first."""
        self.departures: list[Departure] = []
        self.lapses: list[str] = []
        """Pods that were Ready, were not told to leave, and were not Ready any more; and what they said."""
        self._failures: dict[str, int] = {}
        self._launch_pod, self._settings, self._random, self._grace_s = launch, settings, random, grace_s
        self._leaving: set[asyncio.Task[None]] = set()
        self._kubelet = kubelet
        if kubelet is not None:
            kubelet.controllers.append(self)

    @abstractmethod
    async def scale(self, replicas: int, deadline_s: float = READY_S_MAX) -> None:
        """Starts or ends pods; returns when the new are Ready and the old have left."""

    @abstractmethod
    async def replace(self, pod: Pod, *, graceful: bool = False) -> Pod:
        """The pod is deleted, and gets a successor: at once, as when its node is gone (what still runs of it
        is killed), or by SIGTERM when *graceful*. Returns the successor, which is not Ready yet."""

    async def start(self, deadline_s: float = READY_S_MAX) -> None:
        """The first replicas; returns when all are Ready. Raises NotInTime."""
        replicas, self.replicas = self.replicas, 0
        await self.scale(replicas, deadline_s)

    async def restart(self, pod: Pod) -> None:
        """The container dies (SIGKILL of its first process), if it has not left yet, and is started again in
        its pod: by the kubelet where there is one, after its backoff."""
        restarts = pod.restarts
        pod.kill_supervisor()
        if self._kubelet is None:
            await pod.wait_exit()
            pod.start()
            return
        wait_s = self._kubelet.wait_s(pod) + READY_S_MAX
        what = f"the kubelet restarts {pod.settings.pod_name}"
        await until(lambda: pod.restarts > restarts, deadline_s=wait_s, what=what)

    # --- readiness --------------------------------------------------------------------------------

    @property
    def ready_count(self) -> int:
        """How many pods are Ready by the newest probes, which `ready`, all waiting, and a kubelet make."""
        running = (pod for pod in self.pods if pod.exit_code is None)
        return sum(self._failures.get(pod.settings.pod_uid, FAILURES_MAX) < FAILURES_MAX for pod in running)

    async def ready(self) -> list[Pod]:
        """The pods that are Ready and not being terminated. Without a kubelet, raises LabError when one has
        left by itself."""
        return [pod for pod, passed in await self._probed() if self._is_ready(pod, passed)]

    async def _probed(self) -> list[tuple[Pod, bool]]:
        if self._kubelet is not None:
            self._kubelet.check()
        else:
            for pod in self.pods:
                if pod.exit_code is not None:
                    raise LabError(f"a pod left by itself; {pod.told()}")
        pods = list(self.pods)
        statuses = await asyncio.gather(*(pod.probe("/readyz") for pod in pods))
        # of those that were told to leave meanwhile nobody asks any more
        probed = zip(pods, statuses, strict=True)
        return [(pod, status == 200) for pod, status in probed if pod in self.pods]

    def _is_ready(self, pod: Pod, passed: bool) -> bool:
        uid, name = pod.settings.pod_uid, pod.settings.pod_name
        if passed:
            self._failures[uid] = 0
        elif uid in self._failures:
            self._failures[uid] += 1
            if self._failures[uid] == FAILURES_MAX:
                self.lapses.append(f"{name}: {pod.refusal}")
        return self._failures.get(uid, FAILURES_MAX) < FAILURES_MAX

    async def wait_ready(self, deadline_s: float = READY_S_MAX) -> None:
        """Until all pods are Ready at one time, by the newest probe. Raises NotInTime, which says of those
        that are not what /readyz and their logs say."""
        end = time.monotonic() + deadline_s
        while True:
            probed = await self._probed()
            slow = [pod for pod, passed in probed if not self._is_ready(pod, passed) or not passed]
            if not slow:
                return
            if time.monotonic() > end:
                raise NotInTime(f"not Ready within {deadline_s:g} s: {told(slow)}")
            await asyncio.sleep(RECONCILE_S)

    # --- pods come and go -------------------------------------------------------------------------

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

    def _delete(self, pod: Pod) -> None:
        """It is gone, with all of its processes."""
        self.pods.remove(pod)
        pod.kill()

    def terminate(self, pod: Pod) -> asyncio.Task[None]:
        """SIGTERM, and SIGKILL after the grace period; the pod does not count any more."""
        self.pods.remove(pod)
        pod.sigterm()
        task = asyncio.create_task(self._departed(pod, time.monotonic()))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _departed(self, pod: Pod, told_s: float) -> None:
        while (exit_code := pod.exit_code) is None:
            if time.monotonic() - told_s > self._grace_s:
                pod.kill()
            await asyncio.sleep(0.02)
        self.departures.append(Departure(pod.settings.pod_name, time.monotonic() - told_s, exit_code))


class Deployment(Controller):
    """Pods with random names, as a Deployment's replica sets make them.

    *deletion_cost*, where given, is the pods' annotation `controller.kubernetes.io/pod-deletion-cost`.
    """

    deletion_cost: Callable[[Pod], int] | None = None

    async def rolling_update(self, revision: str, *, surge: int = 1, unavailable: int = 0) -> None:
        """Replaces every pod by one of *revision*; returns when all are Ready and the old ones have left.
        Raises NotInTime when that takes too long."""
        if surge < 0 or unavailable < 0 or not (surge or unavailable):
            raise LabError(
                f"an update with surge {surge} and unavailable {unavailable} cannot begin: give one above 0"
            )
        self.revision = revision
        deadline_s = READY_S_MAX + UPDATED_S_MAX * self.replicas
        end = time.monotonic() + deadline_s
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
            for pod in self._victims(old, ready)[: max(0, going)]:
                self.terminate(pod)
            if time.monotonic() > end:
                slow = [pod for pod in self.pods if pod not in ready]
                raise NotInTime(f"the update is not done within {deadline_s:g} s: {told(slow)}")
            await asyncio.sleep(RECONCILE_S)
        await self.left()

    async def scale(self, replicas: int, deadline_s: float = READY_S_MAX) -> None:
        self.replicas = replicas
        while len(self.pods) < replicas:
            self._launch(self._new_name())
        if len(self.pods) > replicas:
            ready = await self.ready()
            for pod in self._victims(self.pods, ready)[: len(self.pods) - replicas]:
                self.terminate(pod)
        await self.wait_ready(deadline_s)
        await self.left()

    async def replace(self, pod: Pod, *, graceful: bool = False) -> Pod:
        """As `Controller.replace`; the successor has a name of its own and is started at once."""
        if graceful:
            self.terminate(pod)
        else:
            self._delete(pod)
        return self._launch(self._new_name())

    def _victims(self, pods: Iterable[Pod], ready: list[Pod]) -> list[Pod]:
        """In the order in which they go: not Ready ones first, then of lower cost, then the youngest."""
        cost = self.deletion_cost or (lambda pod: 0)
        born = {id(pod): number for number, pod in enumerate(self.pods)}
        return sorted(pods, key=lambda pod: (pod in ready, cost(pod), -born[id(pod)]))

    def _new_name(self) -> str:
        return f"{self.name}-{self.revision}-{''.join(self._random.choices(LETTERS, k=5))}"


class StatefulSet(Controller):
    """Pods named by ordinals, from the first of the settings' IDs on (`spec.ordinals.start`); a replaced one
    has the name of the one before, and a new UID.

    *is_ordered* is the policy OrderedReady: when scaled, one pod after the other. Else it is Parallel.
    """

    is_ordered = False

    async def rolling_update(self, revision: str, *, unavailable: int = 1) -> None:
        """From the highest ordinal down: they leave and come again, never more than *unavailable* at a time.
        Returns when all are Ready; raises NotInTime when that takes too long."""
        if unavailable < 1:
            raise LabError(f"an update with unavailable {unavailable} cannot begin: give 1 or more")
        self.revision = revision
        deadline_s = READY_S_MAX + (READY_S_MAX + self._grace_s) * self.replicas / unavailable
        end = time.monotonic() + deadline_s
        replacing: set[asyncio.Task[Pod]] = set()
        try:
            while True:
                ready = await self.ready()
                old = sorted(
                    (pod for pod in self.pods if pod.settings.revision != revision), key=self._ordinal
                )
                for task in [task for task in replacing if task.done()]:
                    replacing.remove(task)
                    task.result()
                missing = [pod for pod in self.pods if pod not in ready and pod not in old]
                if not old and not replacing and not missing:
                    break
                for pod in old[::-1][: max(0, unavailable - len(replacing) - len(missing))]:
                    replacing.add(asyncio.create_task(self.replace(pod, graceful=True)))
                if time.monotonic() > end:
                    raise NotInTime(f"the update is not done within {deadline_s:g} s: {told(missing)}")
                await asyncio.sleep(RECONCILE_S)
        finally:
            for task in replacing:
                task.cancel()
        await self.wait_ready()

    async def scale(self, replicas: int, deadline_s: float = READY_S_MAX) -> None:
        self.replicas = replicas
        have = {self._ordinal(pod) for pod in self.pods}
        start = min(self._settings.ids)
        for ordinal in range(start, start + replicas):
            if ordinal not in have:
                self._launch(f"{self.name}-{ordinal}")
                if self.is_ordered:
                    await self.wait_ready(deadline_s)
        for pod in sorted(self.pods, key=self._ordinal, reverse=True):
            if self._ordinal(pod) >= start + replicas:
                leaving = self.terminate(pod)
                if self.is_ordered:
                    await leaving
        await self.wait_ready(deadline_s)
        await self.left()

    async def replace(self, pod: Pod, *, graceful: bool = False) -> Pod:
        """As `Controller.replace`; the successor has the pod's name and is started when that has left."""
        if graceful:
            await self.terminate(pod)
        else:
            self._delete(pod)
        return self._launch(pod.settings.pod_name)

    def _ordinal(self, pod: Pod) -> int:
        return int(pod.settings.pod_name.rpartition("-")[2])


def told(pods: list[Pod]) -> str:
    """What is known of the first of them."""
    more = f"\nand {len(pods) - PODS_SHOWN} more" if len(pods) > PODS_SHOWN else ""
    return "\n".join(pod.told() for pod in pods[:PODS_SHOWN]) + more
