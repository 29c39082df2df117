"""The HTTP port: a real server on a free port, asked by a real client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from runtime.counters import LATENCY_BUCKETS, REASONS, Board, Counter
from runtime.errors import SettingsError
from runtime.http import Server, serve
from runtime.metrics import Metrics, PodState, Role
from runtime.wire import Reason


class Reasons:
    """Probes whose answers a test sets."""

    def __init__(self) -> None:
        self.dead: list[str] = []
        self.unready: list[str] = []
        self.unstarted: list[str] = []

    def live(self) -> list[str]:
        return self.dead

    def ready(self) -> list[str]:
        return self.unready

    def started(self) -> list[str]:
        return self.unstarted


class Pod:
    """A server with all that it shows, and a client."""

    def __init__(self) -> None:
        self.board = Board.create(2, 4)
        self.state = PodState(pod="pod-a", track="stable", revision="r1")
        self.probes = Reasons()
        self.now_ns = 100_000_000_000
        self.metrics = Metrics(self.board, self.state, lambda: self.now_ns)
        self.server: Server
        self.client: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, str, str]:
        async with self.client.get(f"http://127.0.0.1:{self.server.port}{path}") as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def scrape(self) -> dict[str, Metric]:
        status, content_type, text = await self.get("/metrics")
        assert status == 200
        assert content_type.startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(text)}


@asynccontextmanager
async def serving() -> AsyncIterator[Pod]:
    pod = Pod()
    pod.server = await serve("127.0.0.1", 0, pod.probes, pod.metrics)
    try:
        async with aiohttp.ClientSession() as pod.client:
            yield pod
    finally:
        await pod.server.close()
        pod.board.close()


def with_pod(test: Callable[[Pod], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving() as pod:
            await test(pod)

    asyncio.run(asyncio.wait_for(run(), 20))


def values(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(s.labels[label] for label in labels): s.value for s in family.samples}


@pytest.mark.parametrize(
    ("path", "answer"), [("/livez", "dead"), ("/readyz", "unready"), ("/startupz", "unstarted")]
)
def test_a_probe_says_yes_or_why_not(path: str, answer: str) -> None:
    async def test(pod: Pod) -> None:
        status, content_type, body = await pod.get(path)
        assert (status, json.loads(body)) == (200, {"ok": True, "why": []})
        assert content_type.startswith("application/json")
        reasons = ["no lease", "worker 1: no progress"]
        setattr(pod.probes, answer, reasons)
        status, _, body = await pod.get(path)
        assert (status, json.loads(body)) == (503, {"ok": False, "why": reasons})
        others = {"/livez", "/readyz", "/startupz"} - {path}
        assert [(await pod.get(other))[0] for other in others] == [200, 200]

    with_pod(test)


def test_the_index_names_every_page_and_each_of_them_answers() -> None:
    async def test(pod: Pod) -> None:
        status, _, text = await pod.get("/")
        assert status == 200
        paths = [line.split()[0] for line in text.splitlines() if line.startswith("/")]
        assert paths == ["/livez", "/readyz", "/startupz", "/metrics"]
        assert [(await pod.get(path))[0] for path in paths] == [200] * 4
        assert (await pod.get("/nothing"))[0] == 404

    with_pod(test)


def test_metrics_parse_and_carry_the_workers_counts() -> None:
    async def test(pod: Pod) -> None:
        for i, worker in enumerate((pod.board.worker(0), pod.board.worker(1))):
            worker.add(Counter.REPORTS, 10 + i)
            worker.reject(Reason.EMPTY, 2)
            worker.set(Counter.SLOTS_TOTAL, 100)
            worker.set(Counter.SLOTS_USED, 30)
            worker.observe_latency_us([900, 2_000, 60_000_000])
            worker.set(Counter.PROGRESS_AT_NS, pod.now_ns - 3_000_000_000)
        pod.board.worker(1).set_epoch(3, 17)
        pod.board.worker(1).set_lag(3, 5)
        families = await pod.scrape()
        assert values(families["defender_reports"]) == {(): 21}
        rejected = values(families["defender_rejected"], "reason")
        assert rejected == {(r.value,): 4.0 if r is Reason.EMPTY else 0.0 for r in REASONS}
        assert values(families["defender_cache_slots"], "state") == {("used",): 60, ("free",): 140}
        assert values(families["defender_partition_lag"], "partition") == {("3",): 5}
        assert values(families["defender_partition_epoch"], "partition") == {("3",): 17}
        ages = values(families["defender_worker_progress_age_seconds"], "worker")
        assert ages == {("0",): 3, ("1",): 3}
        histogram = families["defender_verdict_latency_seconds"]
        assert histogram.type == "histogram"
        samples = {
            (s.name.removeprefix(histogram.name), s.labels.get("le")): s.value for s in histogram.samples
        }
        assert len(samples) == LATENCY_BUCKETS + 2
        assert samples["_bucket", "0.0005"] == 0
        assert samples["_bucket", "0.001"] == 2
        assert samples["_bucket", "0.002"] == samples["_bucket", "10.0"] == 4
        assert samples["_bucket", "+Inf"] == samples["_count", None] == 6
        assert samples["_sum", None] == pytest.approx(120.0058)

    with_pod(test)


def test_metrics_say_who_the_pod_is_and_how_old_its_lease_is() -> None:
    async def test(pod: Pod) -> None:
        families = await pod.scrape()
        assert families["defender_lease_age_seconds"].samples == []
        assert values(families["defender_lease_left_seconds"]) == {(): 0}
        pod.state.stable_id, pod.state.role = "defender-4", Role.HOLDER
        pod.state.lease_renewed_ns = pod.now_ns - 1_500_000_000
        pod.state.worker_restarts[1] = 2
        pod.board.lease_deadline_ns = pod.now_ns + 18_500_000_000
        families = await pod.scrape()
        (identity,) = families["defender_info"].samples
        assert identity.labels["stable_id"] == "defender-4"
        assert identity.labels["pod"] == "pod-a"
        roles = values(families["defender_role"], "role")
        assert [role for role, on in roles.items() if on] == [("holder",)]
        assert values(families["defender_lease_age_seconds"]) == {(): 1.5}
        assert values(families["defender_lease_left_seconds"]) == {(): 18.5}
        assert values(families["defender_worker_restarts"], "worker") == {("0",): 0, ("1",): 2}

    with_pod(test)


def test_every_counter_of_the_board_is_among_the_metrics() -> None:
    async def test(pod: Pod) -> None:
        worker = pod.board.worker(0)
        worker.set(Counter.SLOTS_TOTAL, 100)
        before = (await pod.get("/metrics"))[2].splitlines()
        elsewhere = {Counter.PROGRESS, Counter.REJECTED}  # as the time of the last turn, and by reason
        for counter in set(Counter) - elsewhere:
            value = worker.get(counter)
            worker.set(counter, value + 50)
            changed = set((await pod.get("/metrics"))[2].splitlines()) - set(before)
            assert any(line.startswith("defender_") for line in changed), counter
            worker.set(counter, value)

    with_pod(test)


def test_a_port_that_is_taken_is_an_error_that_names_the_setting() -> None:
    async def run() -> None:
        pod = Pod()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SettingsError, match=f"HTTP_PORT: {port} is taken"):
                await serve("127.0.0.1", port, pod.probes, pod.metrics)
        with pytest.raises(SettingsError, match=r"HTTP_HOST: cannot listen at '192\.0\.2\.1'"):
            await serve("192.0.2.1", 0, pod.probes, pod.metrics)
        pod.board.close()

    asyncio.run(run())


def test_a_closed_server_has_left_its_port() -> None:
    async def run() -> None:
        pod = Pod()
        server = await serve("127.0.0.1", 0, pod.probes, pod.metrics)
        await server.close()
        await server.close()
        again = await serve("127.0.0.1", server.port, pod.probes, pod.metrics)
        assert again.port == server.port
        await again.close()
        pod.board.close()

    asyncio.run(asyncio.wait_for(run(), 20))
