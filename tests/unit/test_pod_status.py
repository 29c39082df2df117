"""What a pod says of itself when its history takes nothing, or is still being read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from sights import NOW, view_of

from runtime.config import Settings
from runtime.counters import Board, Counter
from runtime.membership import Heartbeat, Load, State
from runtime.pod_status import PodStatus
from runtime.pool import WorkerHandle, WorkerState

DOWN = "the history takes nothing (Cassandra at db-1,db-2:9043); reports wait in NATS"


@dataclass
class Held:
    stable_id: str = "defender-0"


@dataclass
class Workers:
    """A pool, as far as its handles."""

    handles: list[WorkerHandle] = field(default_factory=list)


@dataclass
class Partitions:
    """A steward that serves and has copied everything, but for what a test says."""

    unserved: list[int] = field(default_factory=list)

    def not_served(self) -> list[int]:
        return self.unserved

    def not_copied(self) -> int:
        return 0


@dataclass
class Line:
    is_connected: bool = True


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2, 4)
    yield board
    board.close()


@pytest.fixture
def pod(board: Board) -> PodStatus:
    """A holder of defender-0, in the ring, whose two workers serve all that falls to it."""
    settings = Settings(pod_uid="uid-a", partitions=4, workers=2, cassandra_contact_points="db-1,db-2:9043")
    status: Any = PodStatus(settings, board, "s")
    handles = [WorkerHandle(index, -1) for index in range(2)]
    for handle in handles:
        handle.enter(WorkerState.STARTING)
        handle.enter(WorkerState.READY)
    status.connection, status.view, status.loaded = Line(), view_of(now_s=100.0), True
    status.hold(Held())
    status.pool, status.steward = Workers(handles), Partitions()
    return status


def test_a_holder_whose_history_takes_nothing_is_not_ready_and_says_which_worker_and_where(
    pod: PodStatus, board: Board
) -> None:
    assert pod.ready() == []
    board.worker(1).set(Counter.HISTORY_DOWN, 1)
    assert pod.ready() == [f"worker 1: {DOWN}"]
    board.worker(0).set(Counter.HISTORY_DOWN, 1)
    assert pod.ready() == [f"worker 0: {DOWN}", f"worker 1: {DOWN}"]
    pod.steward.unserved.append(3)
    assert len(pod.ready()) == 3, "what else is wrong is told, too"
    pod.steward.unserved.clear()
    for index in range(2):
        board.worker(index).set(Counter.HISTORY_DOWN, 0)
    assert pod.ready() == [], "it is ready again by itself"


def test_a_history_that_is_down_restarts_no_pod(pod: PodStatus, board: Board) -> None:
    """A platform restarts what does not start; workers that cannot open their history are starting."""
    pod.pool.handles[0].enter(WorkerState.STARTING)
    pod.steward.unserved.append(2)
    assert pod.started() == ["worker 0 is starting", "1 partitions are not served yet, the first is 2"]
    board.worker(0).set(Counter.HISTORY_DOWN, 1)
    assert not pod.served
    assert (pod.started(), pod.live()) == ([], [])
    assert len(pod.ready()) == 3


def test_a_pod_whose_chambers_are_being_read_serves_and_is_ready(pod: PodStatus, board: Board) -> None:
    board.worker(0).set(Counter.REBUILD_LEFT, 30)
    board.worker(1).set(Counter.REBUILD_LEFT, 7)
    assert (pod.ready(), pod.warm) == ([], True)
    assert pod.beat().load.rebuild_left == 37


def test_a_pod_whose_history_is_down_tells_so_and_is_nobody_to_cut_over_to(
    pod: PodStatus, board: Board
) -> None:
    assert pod.warm
    assert not pod.beat().load.history_down
    board.worker(1).set(Counter.HISTORY_DOWN, 1)
    assert not pod.warm
    beat = msgspec.json.decode(msgspec.json.encode(pod.beat()), type=Heartbeat)
    assert beat.load.history_down is True
    assert beat.warm is False


def test_what_workers_said_that_have_left_is_not_told_any_more(pod: PodStatus, board: Board) -> None:
    """An idle pod would otherwise alarm for ever of a history that it does not use."""
    board.worker(0).set(Counter.HISTORY_DOWN, 1)
    board.worker(0).set(Counter.REBUILD_LEFT, 9)
    board.worker(0).add(Counter.HISTORY_ROWS, 4)
    pod.let_go()
    pod.state = State.DRAINED
    load = pod.beat().load
    assert (load.history_down, load.rebuild_left) == (False, 0)
    assert pod.ready() == []
    assert board.total(Counter.HISTORY_DOWN) == 0, "metrics read the board"
    assert board.total(Counter.HISTORY_ROWS) == 4


def test_heartbeats_of_other_versions_are_read() -> None:
    """Those without the words on the history, and those with words that came later."""
    beat = {"pod_uid": "u", "pod_name": "p", "track": "t", "revision": "r", "state": "active", "at": NOW}
    old = msgspec.json.encode({**beat, "load": {"workers": 2}})
    assert msgspec.json.decode(old, type=Heartbeat).load == Load(workers=2)
    new = msgspec.json.encode({**beat, "load": {"history_down": True, "later": 1}, "later": [1]})
    assert msgspec.json.decode(new, type=Heartbeat).load == Load(history_down=True)
