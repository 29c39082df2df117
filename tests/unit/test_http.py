"""The HTTP port: a real server on a free port, asked by a real client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sights import NOW, ViewOfFleet, beat, layout, view_of

from runtime.config import Settings
from runtime.counters import LATENCY_BUCKETS, REASONS, Board, Counter
from runtime.errors import SettingsError
from runtime.fleet_watch import FleetWatch
from runtime.http import Server, serve
from runtime.membership import State
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


class Candidate:
    """A pod that leads, or would."""

    def __init__(self) -> None:
        self.leading = False
        self.elections = self.commits = self.deposed = 0


class Pod:
    """A server with all that it shows, and a client. The view is of the fleet of `sights`, at 100 s."""

    def __init__(self) -> None:
        self.board = Board.create(2, 4)
        self.state = PodState(pod="pod-a", track="stable", revision="r1")
        self.probes = Reasons()
        self.now_ns = 100_000_000_000
        self.settings = Settings(partitions=4, pod_uid="uid-a")
        self.view: ViewOfFleet | None = view_of(now_s=100.0)
        self.watch = FleetWatch(self, clock=lambda: self.now_ns / 1e9, now=lambda: NOW)
        self.metrics = Metrics(self.board, self.state, lambda: self.now_ns, watch=self.watch)
        self.server: Server
        self.client: aiohttp.ClientSession

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{self.server.port}{path}"
        async with self.client.get(url, headers=headers) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def scrape(self) -> dict[str, Metric]:
        status, content_type, text = await self.get("/metrics")
        assert status == 200
        assert content_type.startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(text)}


@asynccontextmanager
async def serving() -> AsyncIterator[Pod]:
    pod = Pod()
    pod.server = await serve("127.0.0.1", 0, pod.probes, pod.metrics, pod.watch)
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
        assert paths == ["/livez", "/readyz", "/startupz", "/metrics", "/ring", "/ring.json"]
        assert [(await pod.get(path))[0] for path in paths] == [200] * 6
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


def test_metrics_tell_how_the_history_fares_by_worker_and_how_long_appends_take() -> None:
    async def test(pod: Pod) -> None:
        families = await pod.scrape()
        assert values(families["defender_history_down"], "worker") == {("0",): 0, ("1",): 0}
        first, second = pod.board.worker(0), pod.board.worker(1)
        second.set(Counter.HISTORY_DOWN, 1)
        first.set(Counter.REBUILD_LEFT, 37)
        for worker, appends in ((first, 2), (second, 1)):
            worker.add(Counter.HISTORY_APPENDS, appends)
            worker.add(Counter.HISTORY_APPEND_US, 250_000)
            worker.add(Counter.HISTORY_ROWS, 500)
        first.add(Counter.HISTORY_RETRIES, 3)
        second.add(Counter.HISTORY_REPAIRED, 6)
        families = await pod.scrape()
        assert values(families["defender_history_down"], "worker") == {("0",): 0, ("1",): 1}
        assert values(families["defender_rebuild_chambers_left"], "worker") == {("0",): 37, ("1",): 0}
        assert values(families["defender_history_rows"]) == {(): 1000}
        assert values(families["defender_history_retries"]) == {(): 3}
        assert values(families["defender_history_repaired"]) == {(): 6}
        appends = families["defender_history_append_seconds"]
        assert appends.type == "summary"
        assert {s.name.removeprefix(appends.name): s.value for s in appends.samples} == {
            "_count": 3,
            "_sum": 0.5,
        }

    with_pod(test)


def test_metrics_say_who_the_pod_is_and_how_old_its_lease_is() -> None:
    async def test(pod: Pod) -> None:
        families = await pod.scrape()
        assert families["defender_lease_age_seconds"].samples == []
        assert families["defender_lease_left_seconds"].samples == [], "a standby's lease is not running out"
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


def test_the_ring_is_a_page_for_people_and_json_for_programs() -> None:
    async def test(pod: Pod) -> None:
        status, content_type, page = await pod.get("/ring", Accept="text/html,application/json;q=0.9")
        assert (status, content_type) == (200, "text/html; charset=utf-8")
        assert page.count("<rect") == 4
        assert "<h1>Defender: ring version 7</h1>" in page
        assert "http://" not in page, "nothing comes from elsewhere"
        assert "https://" not in page
        for path, accept in (
            ("/ring", "application/json"),
            ("/ring?format=json", "*/*"),
            ("/ring.json", "*/*"),
        ):
            _, content_type, body = await pod.get(path, Accept=accept)
            assert content_type.startswith("application/json")
            tree = json.loads(body)
            assert (tree["version"], tree["owners"]) == (7, layout(2).owners)
            assert [row["stable_id"] for row in tree["members"]] == ["defender-0", "defender-1"]
            assert tree["leader"]["pod_name"] == "a"

    with_pod(test)


def test_the_page_is_sound_markup_escapes_names_and_shows_what_is_wrong() -> None:
    async def test(pod: Pod) -> None:
        assert pod.view is not None
        pod.view.layout = layout(3)
        evil = beat("<script>x</script>", None, State.STANDBY, standby="<b>")
        pod.view.see_beat(evil, age_s=1.0, now_s=100.0)
        page = (await pod.get("/ring"))[2]
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        assert "in the ring, and held by nobody: defender-2" in page
        assert "in handoff" in page
        tags = Tags()
        tags.feed(page)
        tags.close()
        assert tags.open == []

    with_pod(test)


class Tags(HTMLParser):
    """Checks that what is opened is closed, in order."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_without_a_view_the_ring_is_empty_and_says_so() -> None:
    async def test(pod: Pod) -> None:
        pod.view = None
        tree = json.loads((await pod.get("/ring.json"))[2])
        assert (tree["version"], tree["unowned"]) == (0, [0, 1, 2, 3])
        assert "no defender holds an ID: nothing is judged" in tree["trouble"]
        assert (await pod.get("/ring"))[0] == 200

    with_pod(test)


def test_metrics_count_members_standbys_vacancies_and_partitions_in_trouble() -> None:
    async def test(pod: Pod) -> None:
        assert pod.view is not None
        families = await pod.scrape()
        members = values(families["defender_fleet_members"], "state")
        assert {state: n for (state,), n in members.items() if n} == {"active": 2}
        assert values(families["defender_partitions_unowned"]) == {(): 0}
        assert values(families["defender_leader_known"]) == {(): 1}
        assert values(families["defender_heartbeat_age_seconds"]) == {(): 1.5}
        pod.now_ns += 5_000_000_000
        pod.view.see_beat(beat("c", None, State.STANDBY, warm=True), age_s=0.0, now_s=105.0)
        pod.view.layout = layout(3)
        families = await pod.scrape()
        members = values(families["defender_fleet_members"], "state")
        assert {state: n for (state,), n in members.items() if n} == {"active": 1, "silent": 1}
        assert values(families["defender_fleet_standbys"], "warm") == {("true",): 1, ("false",): 0}
        assert values(families["defender_fleet_vacancies"]) == {(): 1}
        theirs = len(layout(2).partitions_of("defender-0"))
        assert values(families["defender_partitions_unowned"]) == {(): theirs}
        pod.now_ns += 2_000_000_000
        families = await pod.scrape()
        trouble = values(families["defender_partitions_trouble_seconds"], "trouble")
        assert trouble == {("unowned",): 2, ("unserved",): 0, ("doubly_owned",): 0}

    with_pod(test)


def test_metrics_tell_what_the_pod_handed_over_and_what_it_did_as_the_leader() -> None:
    async def test(pod: Pod) -> None:
        tally = pod.state.tally
        tally.reassigned, tally.taken_over, tally.refused = 3, 2, 1
        tally.handoffs["warm"] = 4
        for gap_s in (0.004, 0.2, 99.0):
            tally.unattended.observe(gap_s)
        candidate = pod.state.leader = Candidate()
        candidate.leading, candidate.commits, candidate.deposed = True, 7, 2
        families = await pod.scrape()
        assert values(families["defender_reassignments"]) == {(): 3}
        assert values(families["defender_takeovers"]) == {(): 2}
        outcomes = values(families["defender_handoffs"], "outcome")
        assert outcomes == {("warm",): 4, ("cold",): 0, ("handed",): 0, ("released",): 0}
        histogram = families["defender_unattended_seconds"]
        samples = {
            (s.name.removeprefix(histogram.name), s.labels.get("le")): s.value for s in histogram.samples
        }
        assert samples["_bucket", "0.01"] == samples["_bucket", "0.1"] == 1
        assert samples["_bucket", "0.25"] == 2
        assert samples["_bucket", "+Inf"] == samples["_count", None] == 3
        assert samples["_sum", None] == pytest.approx(99.204)
        assert values(families["defender_leader"]) == {(): 1}
        assert (values(families["defender_commits"]), values(families["defender_fenced"])) == (
            {(): 7},
            {(): 2},
        )

    with_pod(test)


def test_a_port_that_is_taken_is_an_error_that_names_the_setting() -> None:
    async def run() -> None:
        pod = Pod()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SettingsError, match=f"HTTP_PORT: {port} is taken"):
                await serve("127.0.0.1", port, pod.probes, pod.metrics, pod.watch)
        with pytest.raises(SettingsError, match=r"HTTP_HOST: cannot listen at '192\.0\.2\.1'"):
            await serve("192.0.2.1", 0, pod.probes, pod.metrics, pod.watch)
        pod.board.close()

    asyncio.run(run())


def test_a_closed_server_has_left_its_port() -> None:
    async def run() -> None:
        pod = Pod()
        server = await serve("127.0.0.1", 0, pod.probes, pod.metrics, pod.watch)
        await server.close()
        await server.close()
        again = await serve("127.0.0.1", server.port, pod.probes, pod.metrics, pod.watch)
        assert again.port == server.port
        await again.close()
        pod.board.close()

    asyncio.run(asyncio.wait_for(run(), 20))
