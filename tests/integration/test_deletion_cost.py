"""A pod tells the API server what its deletion costs, and serves on whatever that says: a real HTTPS server
with the contract of Kubernetes', real pods, a Deployment that goes by their annotations."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet import settings_for, until

from bench.lab.controllers import Deployment
from bench.lab.kube_api import KubeApi, Refusal
from bench.lab.pods import Pod, brisk
from runtime import deletion_cost
from runtime.config import Settings
from runtime.deletion_cost import ANNOTATION, COST_IDLE, DeletionCost, Outcome, cost
from runtime.embedded import NatsServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
HURRIED = {"SPREAD_S": 0.01, "PACE_S": 0.02, "RETRY_FIRST_S": 0.02, "RETRY_MOST_S": 0.1, "REFUSED_S": 0.2}
POD = Settings(pod_name="defender-7f9c-x2", pod_uid="0b0e3a52")


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in HURRIED.items():
        monkeypatch.setattr(deletion_cost, name, seconds)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="defender"):
        yield


@contextlib.asynccontextmanager
async def kept(api: KubeApi, pod: Settings = POD, **environ: str) -> AsyncIterator[DeletionCost]:
    """The annotation of a pod, for the time of a block; its task must not have ended by itself."""
    settings = msgspec.structs.replace(pod, service_account_dir=str(api.folder))
    one = DeletionCost(settings, {**api.environ, "POD_UID": pod.pod_uid, **environ}, random.Random(1))
    task = asyncio.create_task(one.run())
    try:
        yield one
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def field(record: Any, name: str) -> str:
    return str(record.fields[name])


async def is_set(api: KubeApi, value: int, pod: Settings = POD) -> None:
    await until(lambda: api.cost_of(pod.pod_name) == value, what=f"the cost is {value}, {api.requests}")


# --- the annotation ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
async def test_the_annotation_follows_the_id_and_nothing_else_of_the_pod_changes(tmp_path: Path) -> None:
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        before = msgspec.json.encode({**api.pods[POD.pod_name], "annotations": {"other": "kept"}})
        api.pods[POD.pod_name]["annotations"]["other"] = "kept"
        async with kept(api) as one:
            for stable_id in (None, "defender-3", "defender-0", None):
                one.want(stable_id)
                await until(lambda stable_id=stable_id: one.written == cost(stable_id))
                assert api.cost_of(POD.pod_name) == cost(stable_id)
            assert one.requests == {Outcome.SET: 4, Outcome.REFUSED: 0, Outcome.UNANSWERED: 0}
        after = dict(api.pods[POD.pod_name])
        assert after["annotations"].pop(ANNOTATION) == "-1"
        assert {**after, "resourceVersion": "1"} == msgspec.json.decode(before)


@pytest.mark.usefixtures("_hurried")
async def test_what_changes_often_is_said_seldom_and_what_does_not_change_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion_cost, "PACE_S", 0.3)
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        async with kept(api) as one:
            begun_s = time.monotonic()
            for number in range(200):
                one.want(f"defender-{number}")
                await asyncio.sleep(0.005)
            await is_set(api, cost("defender-199"))
            assert len(api.requests) <= 2 + (time.monotonic() - begun_s) / 0.3
            gaps = [b.at_s - a.at_s for a, b in zip(api.requests, api.requests[1:], strict=False)]
            assert min(gaps) >= 0.28
            told = len(api.requests)
            for _ in range(100):
                one.want("defender-199")
                await asyncio.sleep(0.005)
            one.want("defender-7")
            await is_set(api, cost("defender-7"))
            assert len(api.requests) == told + 1


@pytest.mark.usefixtures("_hurried")
async def test_the_token_is_read_anew_for_each_request(tmp_path: Path) -> None:
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        async with kept(api) as one:
            for number in range(3):
                one.want(f"defender-{number}")
                await is_set(api, cost(f"defender-{number}"))
                api.rotate_token()
        assert [request.status for request in api.requests] == [200, 200, 200]


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
async def test_without_the_permission_it_says_once_which_verb_it_lacks_and_uses_it_once_it_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        api.permits_patch = False
        async with kept(api) as one:
            one.want("defender-3")
            await until(lambda: len(api.requests) >= 4)
            (warning,) = warnings(caplog)
            assert 'cannot patch resource "pods"' in field(warning, "cause")
            assert "the verb patch on pods" in field(warning, "remedy")
            assert api.cost_of(POD.pod_name) is None
            api.permits_patch = True
            await is_set(api, cost("defender-3"))
        assert len(warnings(caplog)) == 1


@pytest.mark.usefixtures("_hurried")
async def test_an_api_server_that_is_busy_or_broken_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = [Refusal(429, retry_after="0"), Refusal(500), Refusal(503), Refusal(409), Refusal(401)]
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        api.refusals.extend(refusals)
        async with kept(api) as one:
            one.want("defender-3")
            await is_set(api, cost("defender-3"))
            assert one.requests[Outcome.REFUSED] == len(refusals)
        assert [request.status for request in api.requests] == [429, 500, 503, 409, 401, 200]
        assert all(field(one, "remedy") == "it is tried again" for one in warnings(caplog))


@pytest.mark.usefixtures("_hurried")
async def test_a_server_that_names_a_time_is_left_alone_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(deletion_cost, "RETRY_MOST_S", 5.0)
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        api.refusals.append(Refusal(429, retry_after="1"))
        async with kept(api) as one:
            one.want("defender-3")
            await is_set(api, cost("defender-3"))
        assert api.requests[1].at_s - api.requests[0].at_s >= 1.0


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize(
    ("changes", "status", "remedy"),
    [({"pod_name": "node-7"}, 404, "POD_NAME"), ({"pod_uid": "another"}, 422, "POD_UID")],
)
async def test_a_pod_that_does_not_know_its_name_or_uid_writes_on_no_other(
    changes: dict[str, str], status: int, remedy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        async with kept(api, msgspec.structs.replace(POD, **changes)) as one:
            one.want("defender-3")
            await until(lambda: len(api.requests) >= 2)
        assert {request.status for request in api.requests} == {status}
        assert api.cost_of(POD.pod_name) is None
        (warning,) = warnings(caplog)
        assert remedy in field(warning, "remedy")


# --- it cannot be asked -------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hurried")
async def test_one_that_keeps_silent_takes_its_time_and_the_loop_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion_cost, "REQUEST_S", 1.0)
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        api.is_silent = True
        async with kept(api) as one:
            one.want("defender-3")
            late_s = 0.0
            while one.requests[Outcome.UNANSWERED] < 2:
                asleep_s = time.monotonic()
                await asyncio.sleep(0.002)
                late_s = max(late_s, time.monotonic() - asleep_s)
            assert late_s < 0.5, f"the loop stood for {late_s:.3f} s"
            api.is_silent = False
            await is_set(api, cost("defender-3"))


@pytest.mark.usefixtures("_hurried")
async def test_one_whose_certificate_is_another_cas_is_told_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeApi(tmp_path / "a") as api, KubeApi(tmp_path / "b") as other:
        api.add(POD)
        shutil.copy(other.folder / "ca.crt", api.folder / "ca.crt")
        async with kept(api) as one:
            one.want("defender-3")
            await until(lambda: one.requests[Outcome.UNANSWERED] >= 2)
        assert not api.requests
        (warning,) = warnings(caplog)
        assert "certificate verify failed" in field(warning, "cause")


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("missing", ["token", "ca.crt", "namespace"])
async def test_a_pod_without_a_service_account_says_once_how_to_mount_it(
    missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        (tmp_path / missing).rename(tmp_path / "away")
        async with kept(api) as one:
            one.want("defender-3")
            await until(lambda: warnings(caplog))
            (warning,) = warnings(caplog)
            assert missing in field(warning, "cause")
            assert "automountServiceAccountToken" in field(warning, "remedy")
            assert not api.requests
            (tmp_path / "away").rename(tmp_path / missing)
            await is_set(api, cost("defender-3"))
        assert len(warnings(caplog)) == 1


@pytest.mark.usefixtures("_hurried")
async def test_a_cas_certificate_that_lacks_an_extension_will_do_where_python_is_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from 3.13 on by default, and the CAs of many clusters lack some."""
    usual = ssl.create_default_context

    def strict(**given: Any) -> ssl.SSLContext:
        context = usual(**given)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    async with KubeApi(tmp_path) as api:
        api.add(POD)
        async with kept(api) as one:
            one.want("defender-3")
            await is_set(api, cost("defender-3"))


@pytest.mark.usefixtures("_hurried")
async def test_whatever_breaks_in_it_is_logged_and_does_not_end_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The supervisor ends with any of its tasks that fails."""
    monkeypatch.setattr(deletion_cost.ApiServer, "patch_pod", None)
    settings = msgspec.structs.replace(POD, service_account_dir=str(tmp_path))
    cluster = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    one = DeletionCost(settings, cluster, random.Random(1))
    one.want("defender-3")
    await one.run()
    assert [record.levelname for record in warnings(caplog)] == ["ERROR"]


GARBLED = {
    "closes": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
    "a head without an end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
    "a line without an end": b"HTTP/1.1 200 " + b"x" * 1_000_000,
    "half a body": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 300\r\n\r\n{",
}


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("answer", GARBLED.values(), ids=GARBLED)
async def test_what_is_no_answer_is_not_taken_for_one(answer: bytes, tmp_path: Path) -> None:
    """By a server with the right certificate."""

    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with KubeApi(tmp_path) as api:
        server = await asyncio.start_server(garble, "127.0.0.1", 0, ssl=api.server_context)
        port = str(server.sockets[0].getsockname()[1])
        async with server, kept(api, KUBERNETES_SERVICE_PORT=port) as one:
            one.want("defender-3")
            await until(lambda: one.requests[Outcome.UNANSWERED] >= 2)
            assert one.written is None
            assert not one.requests[Outcome.REFUSED]


@pytest.mark.usefixtures("_hurried")
async def test_an_api_server_that_was_away_is_found_again(tmp_path: Path) -> None:
    async with KubeApi(tmp_path) as api:
        pass
    api.add(POD)
    async with kept(api) as one:
        one.want("defender-3")
        await until(lambda: one.requests[Outcome.UNANSWERED] >= 2)
        async with api:
            await is_set(api, cost("defender-3"))


# --- pods ---------------------------------------------------------------------------------------------


@pytest.mark.limit_s(120)
async def test_a_deployment_scaled_down_loses_its_idle_pod_then_its_highest_ids(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Real pods, which have said so to the API server themselves; the youngest would go otherwise."""
    settings = settings_for(nats_server, **brisk(workers=1, max_defenders=3, successor_wait_s=0.1))
    async with KubeApi(tmp_path) as api:
        with contextlib.ExitStack() as pods:

            def launch(own: Settings) -> Pod:
                api.add(own)
                return pods.enter_context(Pod(own, log_path=tmp_path / own.pod_name, **api.environ))

            random_one = random.Random(7)
            blue = Deployment(
                launch, settings, replicas=4, revision="5c9d", name="defender", random=random_one
            )
            await blue.start()
            blue.deletion_cost = api.deletion_cost
            costs = {cost(None), *(cost(f"defender-{number}") for number in range(3))}
            await until(lambda: {api.deletion_cost(pod) for pod in blue.pods} == costs, deadline_s=20)
            blue.pods.sort(key=api.deletion_cost)  # by age alone, the pod of defender-0 would go first now
            idle, *_, first = blue.pods
            assert idle.metric("defender_pod_deletion_cost") == COST_IDLE
            assert idle.lines("standby")
            await blue.scale(3)
            assert idle not in blue.pods
            await blue.scale(1)
            assert blue.pods == [first]
            assert first.lines("claimed")[-1]["stable_id"] == "defender-0"
            # one request of a pod for each time that it had something new to say
            assert len(api.requests) <= 6


async def test_a_pod_without_the_permission_or_the_api_server_serves_all_the_same(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with KubeApi(tmp_path) as api:
        api.permits_patch = False
        settings = settings_for(nats_server, **brisk(workers=1), pod_name="pod-a", pod_uid="a")
        away = settings_for(nats_server, **brisk(workers=1), pod_name="pod-b", pod_uid="b")
        gone = {**api.environ, "KUBERNETES_SERVICE_PORT": "1"}
        with Pod(settings, **api.environ) as refused, Pod(away, **gone) as alone:
            for pod in (refused, alone):
                await pod.wait_serving()
                (line,) = await until(lambda pod=pod: pod.lines("pod deletion cost not set"))
                assert line["level"] == "warning"
                assert pod.not_ready() == []
            assert refused.metric("defender_pod_deletion_cost_requests_total", outcome="refused") == 1
            assert alone.metric("defender_pod_deletion_cost_requests_total", outcome="unanswered") >= 1
            refused.sigterm()
            assert await refused.wait_exit() == 0
