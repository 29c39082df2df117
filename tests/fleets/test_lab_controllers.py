"""The lab's stand-ins for the platform keep its rules, on pods made up; and its pods are real ones."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from fleet import settings_for

from bench.lab.controllers import Deployment, StatefulSet
from bench.lab.errors import LabError, NotInTime
from bench.lab.kubelet import BACKOFF_FORGOTTEN_S, BACKOFF_S, BACKOFF_S_MAX, Kubelet
from bench.lab.pods import Pod, brisk, is_alive
from bench.lab.proxy import proxied
from bench.lab.usage import Process, Usage, machine, session, taken
from bench.lab.waiting import until
from runtime.config import Settings
from runtime.embedded import NatsServer
from tests.fleets.pretended import Journal, S, controlled

SPINNING = "import sys; print(flush=True)\nwhile True: pass"
LAB = """
import sys, time, msgspec
from pathlib import Path
from bench.lab.pods import Pod
from runtime.config import Settings
pod = Pod(msgspec.json.decode(sys.argv[1], type=Settings), log_path=Path(sys.argv[2]))
while not pod.workers: time.sleep(0.05)
print(pod.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.lab.controllers.RECONCILE_S", 0.001)


# --- rules, on pods made up ---------------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
async def test_those_not_ready_go_first_then_those_of_lower_deletion_cost_then_the_youngest() -> None:
    """When a Deployment is scaled down."""
    journal = Journal()
    deployment = controlled(Deployment, 6, journal)
    await deployment.start()
    pods = journal.pods
    deployment.deletion_cost = lambda pod: -5 if pod is pods[2] else 0
    pods[1].lapse(1_000)
    for _ in range(3):
        await deployment.ready()
    assert deployment.ready_count == 5
    pods[1].lapse(1)
    await deployment.scale(3)
    assert journal.told == [pods[1], pods[2], pods[5]]


@pytest.mark.usefixtures("_hurried")
async def test_an_update_ends_pods_of_lower_deletion_cost_first() -> None:
    """Among the old ones that are Ready."""
    journal = Journal()
    deployment = controlled(Deployment, 4, journal)
    await deployment.start()
    dear = journal.pods[3]
    deployment.deletion_cost = lambda pod: 100 if pod is dear else 0
    await deployment.rolling_update("8d4b", surge=1)
    assert journal.told[-1] is dear


@pytest.mark.usefixtures("_hurried")
async def test_of_a_stateful_set_never_more_than_unavailable_are_updated_at_a_time() -> None:
    """And the next begins as soon as one is Ready."""
    journal = Journal()
    stateful_set = controlled(StatefulSet, 6, journal)
    await stateful_set.start()
    journal.counts.clear()
    await stateful_set.rolling_update("8d4b", unavailable=2)
    assert min(ready for _, ready in journal.counts) == 4
    ordinals = [int(pod.settings.pod_name[-1]) for pod in journal.told]
    assert ordinals == [5, 4, 3, 2, 1, 0]
    assert {pod.settings.revision for pod in stateful_set.pods} == {"8d4b"}


@pytest.mark.usefixtures("_hurried")
async def test_an_ordered_stateful_set_starts_and_ends_one_pod_after_the_other() -> None:
    """Each is Ready before the next is started, and has left before the next is told to."""
    journal = Journal()
    stateful_set = controlled(StatefulSet, 4, journal)
    stateful_set.is_ordered = True
    await stateful_set.start()
    assert max(active - ready for active, ready in journal.counts) == 1
    await stateful_set.scale(1)
    assert [pod.settings.pod_name for pod in journal.told] == ["defender-3", "defender-2", "defender-1"]
    assert [departure.pod_name for departure in stateful_set.departures] == [
        pod.settings.pod_name for pod in journal.told
    ]


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("graceful", [False, True])
@pytest.mark.parametrize("kind", [Deployment, StatefulSet])
async def test_a_deleted_pod_gets_a_successor_with_another_uid(
    kind: type[Deployment | StatefulSet], graceful: bool
) -> None:
    """Of another name in a Deployment, of the same in a StatefulSet."""
    journal = Journal()
    controller = controlled(kind, 3, journal)
    await controller.start()
    old = journal.pods[1]
    new = await controller.replace(old, graceful=graceful)
    assert old.was_killed is not graceful
    assert (new.settings.pod_name == old.settings.pod_name) is (kind is StatefulSet)
    assert new.settings.pod_uid != old.settings.pod_uid
    await controller.wait_ready()
    assert len(controller.pods) == 3
    await controller.left()


async def test_the_kubelet_restarts_at_once_then_after_10_20_40_s_until_the_container_ran_long() -> None:
    """As the platform backs off from a container that crashes again and again."""
    journal, kubelet = Journal(), Kubelet()
    deployment = controlled(Deployment, 1, journal, kubelet=kubelet)
    pod = deployment._launch("defender-x")
    waits: list[int] = []
    for _ in range(8):
        ended_s = journal.now_s = journal.now_s + 1
        pod.leave(ended_s)
        while pod.exit_code is not None:
            kubelet.look(journal.now_s * S)
            journal.now_s += 1
        waits.append(journal.now_s - 1 - ended_s)
    assert waits == [0, 10, 20, 40, 80, 160, int(BACKOFF_S_MAX), int(BACKOFF_S_MAX)]
    assert {restart.exit_code for restart in kubelet.restarts} == {76}
    journal.now_s += int(BACKOFF_FORGOTTEN_S)
    pod.leave(journal.now_s)
    kubelet.look(journal.now_s * S)
    assert pod.exit_code is None


async def test_a_pod_that_left_by_itself_ends_what_waits_when_there_is_no_kubelet() -> None:
    """Nobody would start it again."""
    journal = Journal()
    deployment = controlled(Deployment, 2, journal)
    await deployment.start()
    journal.pods[0].leave(1)
    with pytest.raises(LabError, match="a pod left by itself; defender-7c9f-"):
        await deployment.wait_ready()


# --- real pods ----------------------------------------------------------------------------------------


def small(server: NatsServer, **changes: object) -> Settings:
    return settings_for(server, **brisk(workers=1, **changes))


async def test_a_container_that_dies_is_started_again_in_its_pod_and_the_log_and_the_use_are_kept(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The same name and UID; `lines` are the new container's, the file has both."""
    pods: list[Pod] = []

    def launch(settings: Settings) -> Pod:
        pods.append(stack.enter_context(Pod(settings, log_path=tmp_path / "pods" / "one.log")))
        return pods[-1]

    with ExitStack() as stack:
        async with Kubelet() as kubelet:
            one = Deployment(
                launch,
                small(nats_server),
                replicas=1,
                revision="7c9f",
                name="defender",
                random=random.Random(1),
                kubelet=kubelet,
            )
            await one.start()
            (pod,) = pods
            before, first = pod.use(), pod.pid
            assert before.cpu_s > 0.2
            assert before.pss_mb > 30
            assert len({process.pid for process in session(pod.pid)}) >= 3, "supervisor, fork server, worker"
            pod.kill_supervisor()
            await until(lambda: pod.restarts == 1, what="the kubelet restarts it")
            assert one.pods == [pod]
            assert pod.pid != first
            await one.wait_ready()
            assert [restart.exit_code for restart in kubelet.restarts] == [-signal.SIGKILL]
            assert len(pod.lines("listening")) == 1
            assert pod.log_path.read_text().count('"listening"') == 2
            after = pod.use()
            assert after.cpu_s > 1.5 * before.cpu_s
            pod.sigterm()
            await until(lambda: pod.exit_code == 0, what="it leaves in order")
            assert kubelet.wait_s(pod) == BACKOFF_S
            assert [life.exit_code for life in pod.lives] == [-signal.SIGKILL, 0]
            assert pod.use().cpu_s >= after.cpu_s
    assert pod.lives[-1].ended_ns > pod.lives[-1].begun_ns
    await until(lambda: not any(is_alive(one.pid) for one in session(pod.pid)), what="all of it is dead")
    assert pod.log_path.exists()


async def test_a_pod_dies_with_a_lab_that_is_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    """Its workers, too: nothing is left of it."""
    settings = msgspec.json.encode(small(nats_server)).decode()
    argv = [sys.executable, "-c", LAB, settings, str(tmp_path / "pod.log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as lab:
        assert lab.stdout is not None
        pid = int(await asyncio.to_thread(lab.stdout.readline))
        members = [process.pid for process in session(pid)]
        assert len(members) >= 3
        lab.kill()
    await until(lambda: not any(map(is_alive, members)), what="all of the pod is dead")


async def test_a_pod_that_never_gets_ready_ends_the_wait_and_the_message_has_what_it_says(
    own_server: NatsServer,
) -> None:
    """What /readyz answers, and its log's last lines."""
    own_server.stop()
    with ExitStack() as stack:
        deployment = Deployment(
            lambda settings: stack.enter_context(Pod(settings)),
            small(own_server),
            replicas=1,
            revision="7c9f",
            name="defender",
            random=random.Random(1),
        )
        with pytest.raises(NotInTime) as caught:
            await deployment.start(deadline_s=6.0)
    assert f"/readyz: no connection to NATS at {own_server.url}" in str(caught.value)
    assert "correct NATS_SERVERS" in str(caught.value)


async def test_a_pod_that_leaves_at_its_start_ends_the_wait_at_once(nats_server: NatsServer) -> None:
    """With its code and its log's last lines."""
    with (
        Pod(small(nats_server), argv=("-c", "print('no such flag'); raise SystemExit(64)")) as pod,
        pytest.raises(LabError, match=r"it left with 64; .*no such flag") as caught,
    ):
        await pod.wait_ready()
    assert caught.type is LabError, "not when the time was over"


# --- use and network ----------------------------------------------------------------------------------


async def test_what_groups_of_sessions_take_is_sampled() -> None:
    """A spinning process takes much, the one that waits for it nothing; they are told apart by name."""
    spinning, idle = (
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        for code in (SPINNING, "import time; print(flush=True); time.sleep(60)")
    )
    with spinning, idle:
        try:
            for one in (spinning, idle):
                assert one.stdout is not None
                await asyncio.to_thread(one.stdout.readline)
            usage = Usage(every_s=0.5)
            usage.watch(lambda: {"busy": [spinning.pid], "idle": [idle.pid]}, lambda: (7, 5))
            await until(lambda: len(usage.samples) >= 3, what="three samples")
            await usage.stop()
        finally:
            spinning.kill()
            idle.kill()
    last = usage.samples[-1]
    assert 0.05 < last.cores["busy"] < 1.2
    assert last.cores["idle"] < 0.02
    assert (last.pods, last.ready) == (7, 5)
    assert usage.cores == pytest.approx(sum(last.cores.values()))


def test_a_process_counts_where_it_is_named_itself_and_from_its_birth() -> None:
    """A PID that was given to another process meanwhile begins anew."""
    hertz = os.sysconf("SC_CLK_TCK")
    before = {
        1: Process(1, 1, 10 * hertz, 0, 5),
        2: Process(2, 1, 0, 0, 6),
        3: Process(3, 1, 9 * hertz, 0, 7),
    }
    after = {
        1: Process(1, 1, 11 * hertz, 99, 5),
        2: Process(2, 1, 4 * hertz, 0, 6),
        3: Process(3, 1, hertz, 0, 77),
        4: Process(4, 9, hertz, 0, 8),
    }
    assert taken(before, after, {"session": [1], "two": [2], "none": []}, 2.0) == {
        "session": 1.0,
        "two": 2.0,
        "none": 0.0,
    }


def test_the_machine_is_told() -> None:
    """With the versions of what runs on it."""
    found = machine()
    assert found.cores >= 1
    assert found.memory_gb > 0.1
    assert found.nats_server.count(".") == 2
    assert found.cpu


async def test_a_cut_proxy_lets_nothing_through_in_either_direction_and_delivers_it_when_mended() -> None:
    """Connections stay, and new ones wait."""

    accepted: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        while chunk := await reader.read(1000):
            writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, proxied(server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.cut()
        assert proxy.is_cut
        writer.write(b"two")
        later, late = await asyncio.open_connection("127.0.0.1", proxy.port)
        late.write(b"three")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1)
        assert proxy.forwarded == 6
        assert len(accepted) == 1
        proxy.mend()
        assert await reader.readexactly(3) == b"two"
        assert await later.readexactly(5) == b"three"
        for one in (writer, late):
            one.close()
            await one.wait_closed()
