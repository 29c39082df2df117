"""A stand-in for the platform's kubelet: restarts containers that ended by themselves, in their pods.

    running ──ends──► ended ──backoff──► running       the same name, the same UID

The first restart of a pod comes at once, the next 10 s after the container's end, then 20, 40, ... s, 300 s
at most; a container that ran for 10 minutes has the pod start over. It probes the pods now and then, too, so
that `Controller.ready_count` is of now while nothing is done to them.

    async with Kubelet() as kubelet:
        blue = Deployment(launch, settings, ..., kubelet=kubelet)
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from bench.lab.pods import Pod

if TYPE_CHECKING:
    from bench.lab.controllers import Controller

LOOK_S: Final = 0.05
PROBE_S: Final = 1.0
BACKOFF_S: Final = 10.0
BACKOFF_S_MAX: Final = 300.0
BACKOFF_FORGOTTEN_S: Final = 600.0


class Restart(NamedTuple):
    """A container that was started again, and with what it had left."""

    pod_name: str
    at_ns: int
    exit_code: int


class Kubelet:
    """Minds the pods of its *controllers*, which enter themselves. One that is being terminated, or was
    deleted, is not among their pods and is not started again."""

    def __init__(self) -> None:
        self.controllers: list[Controller] = []
        self.restarts: list[Restart] = []
        self._backoff_s: dict[str, float] = {}
        """By pod UID, of its next restart."""
        self._task: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    def look(self, now_ns: int) -> None:
        """Starts what has ended and whose backoff is over."""
        for controller in self.controllers:
            for pod in controller.pods:
                if pod.exit_code is not None and self._due_ns(pod) <= now_ns:
                    self._restart(pod, now_ns)

    def wait_s(self, pod: Pod) -> float:
        """From the pod's end to its restart, if it ended now or has ended."""
        life = pod.lives[-1]
        ran_s = ((life.ended_ns or time.time_ns()) - life.begun_ns) / 1e9
        return 0.0 if ran_s >= BACKOFF_FORGOTTEN_S else self._backoff_s.get(pod.settings.pod_uid, 0.0)

    def _due_ns(self, pod: Pod) -> int:
        return pod.lives[-1].ended_ns + int(self.wait_s(pod) * 1e9)

    def _restart(self, pod: Pod, now_ns: int) -> None:
        waited_s, exit_code = self.wait_s(pod), pod.exit_code
        assert exit_code is not None, "a container that runs is not restarted"
        pod.start()
        self._backoff_s[pod.settings.pod_uid] = min(2 * waited_s or BACKOFF_S, BACKOFF_S_MAX)
        self.restarts.append(Restart(pod.settings.pod_name, now_ns, exit_code))

    # --- its task ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises what it broke with, if it did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        probed_s = time.monotonic()
        while True:
            self.look(time.time_ns())
            if (now_s := time.monotonic()) - probed_s >= PROBE_S and not self._is_probing():
                self._probing = asyncio.create_task(self._probe())
                probed_s = now_s
            await asyncio.sleep(LOOK_S)

    def _is_probing(self) -> bool:
        if self._probing is None or not self._probing.done():
            return self._probing is not None
        self._probing.result()
        return False

    async def _probe(self) -> None:
        await asyncio.gather(*(controller.ready() for controller in self.controllers))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._task, self._probing) if task is not None]
        self._task = self._probing = None
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
