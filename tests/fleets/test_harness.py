"""The controllers keep the platform's rules and the observer counts rightly: on pods and streams made up."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from bench.lab.controllers import Deployment, StatefulSet
from runtime.bucket import Entry
from runtime.config import Settings
from tests.fleets.observer import Event, Observer, Waits, histogram
from tests.fleets.pretended import Journal, controlled
from tests.oracle import Stored, Streams

MS = 1_000_000


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.lab.controllers.RECONCILE_S", 0.001)


@pytest.mark.parametrize(("surge", "unavailable"), [(3, 0), (0, 1), (1, 1), (2, 3)])
async def test_a_rolling_update_keeps_to_surge_and_unavailable(surge: int, unavailable: int) -> None:
    """Never more pods than replicas + surge, never fewer Ready ones than replicas - unavailable."""
    journal = Journal()
    deployment = controlled(Deployment, 8, journal)
    await deployment.start()
    first = {pod.settings.pod_uid for pod in journal.pods}
    journal.counts.clear()
    await deployment.rolling_update("8d4b", surge=surge, unavailable=unavailable)
    assert max(active for active, _ in journal.counts) <= 8 + surge
    assert min(ready for _, ready in journal.counts) >= 8 - unavailable
    assert len(deployment.departures) == 8
    second = {pod.settings.pod_uid for pod in deployment.pods}
    assert len(second) == 8
    assert not first & second
    assert {pod.settings.revision for pod in deployment.pods} == {"8d4b"}
    assert len({pod.settings.pod_name for pod in journal.pods}) == len(journal.pods)


async def test_a_stateful_set_is_updated_from_its_highest_ordinal_down() -> None:
    """Each pod leaves before one of its name, with another UID, is started."""
    journal = Journal()
    stateful_set = controlled(StatefulSet, 3, journal)
    await stateful_set.start()
    await stateful_set.rolling_update("8d4b")
    names = [pod.settings.pod_name for pod in journal.pods]
    assert names == ["defender-0", "defender-1", "defender-2", "defender-2", "defender-1", "defender-0"]
    assert len({pod.settings.pod_uid for pod in journal.pods}) == 6
    assert min(active for active, _ in journal.counts[6:]) == 2


async def test_scaling_down_ends_the_youngest_pods() -> None:
    """As a replica set does it."""
    journal = Journal()
    deployment = controlled(Deployment, 5, journal)
    await deployment.start()
    await deployment.scale(2)
    assert [pod.is_told for pod in journal.pods] == [False, False, True, True, True]


def observed(*written: tuple[int, str, str, str]) -> Observer:
    """An observer that saw (partition, state, owner, pod) being written."""
    observer = Observer(None, Settings(partitions=4))  # type: ignore[arg-type]
    for revision, (partition, state, owner, pod) in enumerate(written, start=1):
        value = msgspec.json.encode({"state": state, "owner": owner, "pod_uid": pod})
        observer._on_assignment(Entry(f"partition.{partition}", value, revision))
    return observer


def test_a_changed_stable_id_is_a_reassignment_and_a_changed_pod_a_takeover() -> None:
    """A partition that its owner acquires anew is neither."""
    observer = observed(
        (0, "owned", "defender-0", "a"),
        (0, "owned", "defender-0", "a"),
        (1, "owned", "defender-0", "a"),
        (1, "released", "defender-0", "a"),
        (1, "owned", "defender-0", "b"),
        (2, "owned", "defender-0", "a"),
        (2, "owned", "defender-1", "c"),
    )
    changes = observer.changes(0, 2**63)
    assert [change.partition for change in changes if change.is_takeover] == [1]
    assert [change.partition for change in changes if change.is_reassignment] == [2]
    assert changes[0].free_ns == observer.history[1][1].at_ns
    assert observer.unsettled({"b", "c"}) == [
        "partition 0 is owned by a, which is gone",
        "partition 3 is vacant",
    ]


def test_waits_are_told_from_the_servers_times_and_lost_doubled_and_stale_are_counted() -> None:
    """Of four reports one waits 40 ms, one has two verdicts, one has none and one has an older epoch's."""
    samples = [Stored("S", seq, "t.in.0.C", b"", {}, seq * 100 * MS) for seq in (1, 2, 3, 4)]

    def verdict(seq: int, epoch: int, at_ms: int) -> Stored:
        payload = msgspec.msgpack.encode({"seq": seq, "epoch": epoch, "chamber": "C"})
        return Stored("V", next(numbers), "t.verdict.0.C", payload, {}, at_ms * MS)

    numbers = itertools.count(1)
    verdicts = [verdict(1, 1, 140), verdict(2, 2, 201), verdict(2, 2, 202), verdict(4, 1, 403)]
    waits = Waits(Streams(samples=samples, verdicts=verdicts))
    assert waits.longest_ms(0, 0, 500 * MS) == 40
    assert waits.longest_ms(0, 150 * MS, 500 * MS) == 3
    assert waits.longest_ms(1, 0, 500 * MS) is None
    assert waits.lost == [300 * MS]
    assert waits.doubled == [200 * MS]
    assert waits.stale == [403 * MS]


async def test_an_event_has_the_ring_before_it_and_those_committed_in_it() -> None:
    """So that what must move is told by the first and the last."""
    observer = observed()

    def commit(version: int) -> None:
        value = msgspec.json.encode({"version": version, "partitions": 4})
        observer._on_assignment(Entry("ring", value, version))

    commit(1)
    commit(2)
    async with observer.event("two commits") as event:
        commit(3)
        commit(4)
    commit(5)
    assert [ring.version for ring in observer.rings_of(event)] == [2, 3, 4]
    assert [ring.version for ring in observer.rings_of(Event("later", event.end_ns + 10**12))] == [5]


def test_a_histogram_has_a_line_for_each_bound_that_some_gap_keeps() -> None:
    """The last line is for those that keep none."""
    assert [line.split()[1:4:2] for line in histogram([1, 4, 30, 20_000]).splitlines()] == [
        ["5", "2"],
        ["50", "1"],
        ["10,000", "1"],
    ]


async def test_an_old_pod_that_lapses_for_a_moment_does_not_bring_down_a_second_one() -> None:
    """A failed probe or two are nothing; a pod that is not Ready any more counts as unavailable."""
    journal = Journal()
    deployment = controlled(Deployment, 3, journal)
    await deployment.start()
    lapsing = journal.pods[1]
    lapsing.lapse(2)
    for _ in range(3):
        assert len(await deployment.ready()) == 3
    assert not deployment.lapses
    lapsing.lapse(50)
    for _ in range(3):
        ready = await deployment.ready()
    assert lapsing not in ready
    assert [lapse.partition(":")[0] for lapse in deployment.lapses] == [lapsing.settings.pod_name]
    journal.counts.clear()
    await deployment.rolling_update("8d4b", surge=1, unavailable=0)
    assert journal.told[0] is lapsing
    assert min(ready for _, ready in journal.counts) >= 2, "more than the lapsing one were not Ready"
