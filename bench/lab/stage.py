"""Where a run takes place: the server, the fleet's resources, those who watch, and the pods' controllers.

Everything is in one folder and dies with this process; `Stage.close` ends it in order.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.lab import broken
from bench.lab.controllers import Controller, Deployment, StatefulSet
from bench.lab.errors import LabError, NotInTime
from bench.lab.follower import Following
from bench.lab.image import Image
from bench.lab.kube_api import KubeApi
from bench.lab.kubelet import Kubelet
from bench.lab.load import SPECS, Producers
from bench.lab.observer import Observer
from bench.lab.pods import Pod, environment
from bench.lab.proxy import Proxy, proxied
from bench.lab.result import Mark
from bench.lab.scenario import Scenario
from bench.lab.usage import Usage
from bench.lab.waiting import until
from runtime import specs as chart_specs
from runtime.bucket import Bucket
from runtime.bus import connect
from runtime.config import History, Identity, Settings, load
from runtime.connection import Connection
from runtime.embedded import NatsServer
from runtime.errors import DefenderError, SettingsError
from runtime.resources import ensure

STEADY_S_MAX: Final = 120.0
"""For a fleet of dozens of pods that start on two cores."""
READY_S_MAX: Final = 120.0
PODS_MAX: Final = 256
"""That a run may start where each has a proxy of its own."""
STORE: Final = "nats-server"
COMMAND_S_MAX: Final = 60.0
COSTS_TOLD_S_MAX: Final = 20.0
"""Pods say it within seconds of a change, each at a time of its own: they do not ask all at once."""
FIRST_REVISION: Final = "7c9f"
_SMALL: Final = {"workers": 1, "cache_mb": 20, "window": 64, "history_depth": 256}
"""A pod's sizes unless the scenario says otherwise: dozens of them share one machine."""


def members_max(scenario: Scenario) -> int:
    """The most defenders that the scenario's first track is to have in the ring: so many IDs there are, and
    whoever comes beyond stands by."""
    scaled = (int(step.to) for step in scenario.steps if step.do == "scale")
    return max(scenario.fleet.defenders, *scaled, 1)


def settings_of(scenario: Scenario, identity: Identity, server_url: str) -> Settings:
    """The settings of the scenario's pods. Raises ScenarioError by way of SettingsError."""
    fleet = scenario.fleet
    names = Settings.__struct_fields__
    given = {name.upper(): str(value) for name, value in _SMALL.items()}
    given |= {
        "WORKERS": str(fleet.workers),
        "PARTITIONS": str(fleet.partitions),
        "NATS_SERVERS": server_url,
        "IDENTITY": identity.value,
        "ID_RANGE": f"0-{members_max(scenario) - 1}",
        "TRACK": "blue",
        "LOG_FORMAT": "json",
        "HISTORY": fleet.history,
        **_cassandra(fleet.history),
        **fleet.settings,
    }
    unknown = [name for name in given if name.lower() not in names]
    if unknown:
        raise SettingsError(unknown[0], "no such setting; defender config lists them")
    return load(given)


def _cassandra(history: str) -> dict[str, str]:
    """How the lab's own environment says to reach Cassandra. Raises LabError when it does not."""
    if history != History.CASSANDRA.value:
        return {}
    found = {name: value for name, value in os.environ.items() if name.startswith("CASSANDRA_")}
    if "CASSANDRA_CONTACT_POINTS" not in found:
        raise LabError(
            "the history is to be in Cassandra, and CASSANDRA_CONTACT_POINTS is not set: make cassandra "
            "starts a node and says where"
        )
    return found


class Stage:
    """One run's server, fleet and watchers. Made by `staged`."""

    def __init__(
        self, scenario: Scenario, identity: Identity, out: Path, broken_by: str = "", *, is_cold: bool = False
    ) -> None:
        self.scenario, self.identity, self.out, self.broken = scenario, identity, out, broken_by
        self.is_cold = is_cold or bool(broken_by)  # one that is broken must not share its memory with another
        self.image: Image | None = None
        self.api: KubeApi | None = None
        """Where pods say what their deletion costs, when the scenario asks a Deployment to delete some."""
        self.random = random.Random(scenario.load.seed)
        self.controllers: list[Controller] = []
        self.pods: list[Pod] = []
        """Every pod that ever was."""
        self.names: dict[str, str] = {}
        """Pod names by UID."""
        self.of_uid: dict[str, Pod] = {}
        self.marks: list[Mark] = []
        self.notes: list[str] = []
        self.absences: dict[str, list[tuple[int, int]]] = {}
        """When a pod's processes were dead or stopped, by its UID."""
        self.frozen: set[str] = set()
        """UIDs of pods that are stopped on purpose."""
        self.main: Controller
        self.settings: Settings
        self.server: NatsServer
        self.specs_revision = 0
        self.connection: Connection
        self.observer: Observer
        self.following: Following
        self.producers: Producers
        self.usage: Usage
        self.proxies: dict[str, Proxy] = {}
        """By pod UID, where the scenario cuts pods off."""
        self._spare: list[Proxy] = []
        self._exits = AsyncExitStack()
        self._kubelet: Kubelet | None = None
        self.cuts_off = any(step.do == "partition" for step in scenario.steps)

    # --- pods -------------------------------------------------------------------------------------

    def controller(
        self, replicas: int, *, revision: str = FIRST_REVISION, **changes: Any
    ) -> Deployment | StatefulSet:
        """A StatefulSet where identity is ordinal, else a Deployment; not started."""
        settings = msgspec.structs.replace(self.settings, **changes)
        kind = StatefulSet if settings.identity is Identity.ORDINAL else Deployment
        made = kind(
            self._launch,
            settings,
            replicas=replicas,
            revision=revision,
            name="defender" if settings.track == "blue" else f"defender-{settings.track}",
            random=self.random,
            kubelet=self._kubelet,
        )
        if self.api is not None and isinstance(made, Deployment):
            made.deletion_cost = self.api.deletion_cost
        self.controllers.append(made)
        return made

    def _launch(self, settings: Settings) -> Pod:
        uid, name = settings.pod_uid, settings.pod_name
        if self.cuts_off:
            proxy = self.proxies[uid] = self._spare.pop()
            settings = msgspec.structs.replace(settings, nats_servers=proxy.url)
        argv = broken.argv(self.broken) if self.broken else ("-m", "runtime", "run")
        log_path = self.out / "pods" / f"{name}-{uid[:6]}.log"
        environ: dict[str, Any] = {}
        if self.api is not None:
            self.api.add(settings)
            environ = self.api.environ
        pod = Pod(settings, argv=argv, log_path=log_path, image=self.image, **environ)
        self.pods.append(pod)
        self.names[uid] = name
        self.of_uid[uid] = pod
        return pod

    @property
    def living(self) -> list[Pod]:
        """The pods whose process runs and is not stopped."""
        return [pod for pod in self.pods if pod.exit_code is None and pod.settings.pod_uid not in self.frozen]

    async def steady(self, members: int | None = None, deadline_s: float = STEADY_S_MAX) -> None:
        """Until each partition is owned as the ring wants, the ring has *members*, and all pods are Ready."""
        end = time.monotonic() + deadline_s
        await until(lambda: not self._wrong(members), deadline_s=deadline_s, what=lambda: self._why(members))
        for controller in self.controllers:
            await controller.wait_ready(deadline_s=max(1.0, end - time.monotonic()))

    async def costs_told(self) -> None:
        """Until each pod has said what its deletion costs, where they do."""
        api = self.api
        if api is None:
            return
        await until(
            lambda: all(api.cost_of(pod.settings.pod_name) is not None for pod in self.living),
            deadline_s=COSTS_TOLD_S_MAX,
            what="every pod says what its deletion costs",
        )

    def _wrong(self, members: int | None) -> list[str]:
        found = self.observer.unsettled({pod.settings.pod_uid for pod in self.living})
        have = len(self.observer.ring.members) if self.observer.ring else 0
        if members is not None and have != members:
            found.insert(0, f"the ring has {have} members, not {members}")
        return found

    def _why(self, members: int | None) -> str:
        return "the fleet is steady; " + "; ".join(self._wrong(members)[:8])

    @contextmanager
    def absent(self, uids: Iterable[str]) -> Iterator[None]:
        """These pods run, and can do nothing, for the time of the block."""
        chosen, begun_ns = set(uids), time.time_ns()
        self.frozen |= chosen
        try:
            yield
        finally:
            self.frozen -= chosen
            for uid in chosen:
                self.absences.setdefault(uid, []).append((begun_ns, time.time_ns()))

    def lives(self, uid: str, at_ns: int) -> bool:
        """Whether a container of the pod ran at a time, and was not stopped."""
        pod = self.of_uid.get(uid)
        if pod is None or any(begun <= at_ns < ended for begun, ended in self.absences.get(uid, [])):
            return False
        return any(one.begun_ns <= at_ns and (not one.ended_ns or at_ns < one.ended_ns) for one in pod.lives)

    def forget_store(self) -> None:
        """Removes what nats-server stored, once it has ended."""
        shutil.rmtree(self.out / STORE, ignore_errors=True)

    async def command(self, *argv: str) -> str:
        """What `defender <argv>` prints. Raises LabError unless it exits with 0."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "runtime", *argv),
            env={**environment(self.settings), "NO_COLOR": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise NotInTime(f"defender {' '.join(argv)} did not end within {COMMAND_S_MAX:g} s") from None
        if process.returncode:
            raise LabError(f"defender {' '.join(argv)} left with {process.returncode}: {output.decode()}")
        return output.decode()

    async def leader(self) -> str:
        """The UID of the pod that leads. Raises LabError when nobody does."""
        entry = await Bucket(self.connection, self.settings.nats_kv_leader, random=self.random).get("leader")
        if entry is None or entry.value is None:
            raise LabError("nobody leads the fleet at the moment")
        return str(msgspec.json.decode(entry.value)["pod_uid"])

    @asynccontextmanager
    async def mark(self, what: str) -> AsyncIterator[None]:
        """A block's time, with its name, in the report. It stands open where the run breaks off in it."""
        begun_ns, at = time.time_ns(), len(self.marks)
        self.marks.append(Mark(what, begun_ns))
        yield
        self.marks[at] = Mark(what, begun_ns, time.time_ns())

    # --- its begin and end ------------------------------------------------------------------------

    async def open(self) -> None:
        """Starts the server and the watchers, and makes the fleet's resources."""
        settings = settings_of(self.scenario, self.identity, "nats://127.0.0.1:1")
        if not self.is_cold:
            self.image = Image()
        self.server = NatsServer(self.out / STORE, names=settings.names)
        await self.server.start_async()
        self.settings = settings_of(self.scenario, self.identity, self.server.url)
        if self.settings.history is History.CASSANDRA:
            await self._make_keyspace()
        self.connection = await connect(self.settings, "lab")
        await ensure(self.connection, self.settings)
        bucket = Bucket(self.connection, self.settings.nats_kv_chart_specs, random=self.random)
        self.specs_revision = await bucket.put(chart_specs.KEY, chart_specs.encode(SPECS))
        await self._keep_all_verdicts()
        self.observer = await Observer(self.connection, self.settings).start()
        self.following = Following(self.settings)
        await self.following.start()
        self.producers = Producers(self.settings, self.scenario.load)
        self.usage = Usage()
        self.usage.watch(self._groups, self.counts)
        if self.cuts_off:
            for _ in range(PODS_MAX):
                self._spare.append(await self._exits.enter_async_context(proxied(self.server.port)))
        if self.identity is Identity.CLAIM and any(step.do == "scale" for step in self.scenario.steps):
            self.api = await self._exits.enter_async_context(KubeApi(self.out / "kubernetes"))
        fleet = self.scenario.fleet
        # only claimed IDs can be taken over by a pod that stands by
        standbys = fleet.standbys if self.identity is Identity.CLAIM else 0
        self._kubelet = await self._exits.enter_async_context(Kubelet())
        self.main = self.controller(fleet.defenders + standbys)

    async def _make_keyspace(self) -> None:
        """One of the run's own, which stays when the run has ended."""
        keyspace = f"lab_{secrets.token_hex(4)}"
        self.settings = msgspec.structs.replace(self.settings, cassandra_keyspace=keyspace)
        await self.command("init")
        self.notes.append(f"the history is in Cassandra's keyspace {keyspace}, which stays there")

    async def _keep_all_verdicts(self) -> None:
        """The audit reads every verdict of the run, of which a fleet keeps a chamber's last alone."""
        names = self.settings.names
        for shard in range(names.shards):
            stream = names.verdicts_stream(names.partitions_of_shard(shard)[0])
            config = (await self.connection.api(f"STREAM.INFO.{stream}"))["config"]
            await self.connection.api(f"STREAM.UPDATE.{stream}", config | {"max_msgs_per_subject": -1})

    def _groups(self) -> Mapping[str, Iterable[int]]:
        """The sessions whose CPU is counted."""
        image = [self.image.pid] if self.image is not None else []
        return {
            "pods": [pod.pid for pod in self.pods if pod.exit_code is None],
            "server": [self.server.pid] if self.server.running else [],
            "lab": [os.getpid(), self.following.pid, *self.producers.pids, *image],
        }

    def counts(self) -> tuple[int, int]:
        """How many pods run, and how many are Ready."""
        ready = sum(controller.ready_count for controller in self.controllers)
        return sum(pod.exit_code is None for pod in self.pods), ready

    async def close(self) -> None:
        """Ends everything that was started, in order, whatever state it is in."""
        await self._exits.aclose()  # the kubelet first: it would start again what is killed
        for pod in self.pods:
            pod.kill()
        if self.image is not None:
            self.image.close()
        if hasattr(self, "usage"):
            await self.usage.stop()
            await self.producers.close()
        if hasattr(self, "following"):
            await self.following.stop()
        if hasattr(self, "observer"):
            await self.observer.stop()
        if hasattr(self, "connection"):
            with suppress(DefenderError):
                await self.connection.close()
        if hasattr(self, "server"):
            self.server.close()


@asynccontextmanager
async def staged(
    scenario: Scenario, identity: Identity, out: Path, broken_by: str, *, is_cold: bool
) -> AsyncIterator[Stage]:
    """A stage without pods yet."""
    stage = Stage(scenario, identity, out, broken_by, is_cold=is_cold)
    try:
        await stage.open()
        yield stage
    finally:
        await stage.close()
