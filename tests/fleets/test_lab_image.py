"""Pods forked from the lab's warm image are pods like those that begin with an interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fleet import settings_for

from bench.lab.errors import LabError
from bench.lab.image import Image
from bench.lab.pods import Pod, brisk, is_alive
from bench.lab.usage import session
from bench.lab.waiting import until
from runtime.config import Settings
from runtime.embedded import NatsServer
from tests.load import Fleet, fleet

ROOT = Path(__file__).parents[2]
COLD_CPU_S_MIN = 0.5
"""An interpreter that imports NumPy and numba takes twice that at least, what is forked less than half."""


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with Image() as made:
        yield made


@pytest.fixture
def settings(nats_server: NatsServer) -> Settings:
    return settings_for(nats_server, **brisk(workers=2))


async def judges(outside: Fleet, pod: Pod) -> None:
    """Until the pod has judged reports, each once and rightly."""
    await pod.wait_serving()
    publisher = outside.publisher(seed=1, rate=300)
    publisher.begin()
    await publisher.more(150)
    await publisher.finish()
    await outside.audit()


async def test_a_forked_pod_judges_dies_restarts_and_leaves_as_any_pod(
    settings: Settings, image: Image, tmp_path: Path
) -> None:
    async with fleet(settings) as outside:
        with Pod(settings, image=image, log_path=tmp_path / "pod.log") as pod:
            await judges(outside, pod)
            members = {one.pid for one in session(pod.pid)}
            assert {pod.pid, *pod.workers.values()} < members  # and fork server, resource tracker
            assert os.getpgid(pod.pid) == pod.pid
            pod.kill_supervisor()
            assert await pod.wait_exit() == -signal.SIGKILL
            await until(lambda: not any(map(is_alive, members)), what="nothing of the pod is left")
            pod.start()
            await judges(outside, pod)
            pod.kill_worker(0)
            await judges(outside, pod)
            pod.sigterm()
            assert await pod.wait_exit() == 0
            assert pod.restarts == 1
            assert not pod.said("did not preload")


async def test_a_forked_pod_has_its_own_environment_and_costs_no_start(
    settings: Settings, image: Image, tmp_path: Path
) -> None:
    async with fleet(settings):
        renamed = msgspec.structs.replace(settings, pod_name="forked-pod", workers=1)
        with Pod(renamed, image=image, log_path=tmp_path / "pod.log") as pod:
            await pod.wait_serving()
            environ = Path(f"/proc/{image.pid}/environ").read_text()
            assert "forked-pod" not in environ
            assert [line["pod"] for line in pod.lines("claimed")] == ["forked-pod"]
            assert pod.use().cpu_s < COLD_CPU_S_MIN


def test_a_pod_whose_settings_are_wrong_leaves_with_their_code(image: Image, tmp_path: Path) -> None:
    with Pod(Settings(), image=image, log_path=tmp_path / "pod.log", WORKERS="many") as pod:
        while pod.exit_code is None:
            os.waitid(os.P_PID, pod.pid, os.WEXITED | os.WNOWAIT)
        assert pod.exit_code == 64
        assert pod.said("WORKERS")
        assert not pod.said("Traceback")


def test_an_image_that_was_killed_forks_no_more(tmp_path: Path) -> None:
    with Image() as doomed:
        os.kill(doomed.pid, signal.SIGKILL)
        os.waitid(os.P_PID, doomed.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(LabError, match="the image of the pods"):
            Pod(Settings(), image=doomed, log_path=tmp_path / "pod.log")


LAB = """
import sys, time
from pathlib import Path
from bench.lab.image import Image
from bench.lab.pods import Pod
from runtime.config import Settings
with Image() as image:
    pod = Pod(Settings(nats_servers="nats://127.0.0.1:1"), image=image, log_path=Path(sys.argv[1]))
    print(image.pid, pod.pid, flush=True)
    time.sleep(60)
"""


async def test_image_and_pods_die_with_the_lab(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", LAB, str(tmp_path / "pod.log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as lab:
        assert lab.stdout is not None
        pids = [int(word) for word in lab.stdout.readline().split()]
        assert len(pids) == 2
        lab.kill()
    await until(lambda: not any(map(is_alive, pids)), what="the image's and the pod's end")
