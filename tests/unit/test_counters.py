"""The board: what one process writes every other reads, and a worker's counts outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.counters import (
    GAUGES,
    LATENCY_BOUNDS_US,
    LATENCY_BUCKETS,
    REASONS,
    Board,
    BoardMismatch,
    Counter,
)
from runtime.wire import Reason

WORKERS, PARTITIONS = 3, 5


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(WORKERS, PARTITIONS)
    yield board
    board.close()


def run_worker(board: Board, code: str, *, dies: bool = False) -> str:
    """Runs *code* in another process that holds the board's descriptor and attached it as ``board``."""
    program = (
        "import sys\n"
        "from runtime.counters import Board, Counter\n"
        "from runtime.wire import Reason\n"
        f"board = Board.attach(int(sys.argv[1]), {board.workers}, {board.partitions})\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(board.fd)],
        pass_fds=[board.fd],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if dies else 0), done.stderr
    return done.stdout.strip()


def test_two_processes_see_the_same_figures(board: Board) -> None:
    board.lease_deadline_ns = 2**62
    board.worker(1).add(Counter.REPORTS, 5)
    seen = run_worker(
        board,
        "mine = board.worker(1)\n"
        "mine.add(Counter.REPORTS, 2)\n"
        "mine.reject(Reason.EMPTY, 3)\n"
        "mine.tell('begin', 'warning')\n"
        "mine.observe_latency_us([400, 1_500, 99_000_000])\n"
        "mine.set_epoch(4, 77)\n"
        "mine.set_lag(4, 12)\n"
        "print(board.lease_deadline_ns)\n",
    )
    assert int(seen) == 2**62
    assert board.worker(1).get(Counter.REPORTS) == board.total(Counter.REPORTS) == 7
    assert board.rejected()[Reason.EMPTY] == board.total(Counter.REJECTED) == 3
    assert {pair: n for pair, n in board.told().items() if n} == {("begin", "warning"): 1}
    assert board.latency() == ([1, 1, *[2] * (LATENCY_BUCKETS - 3), 3], 99_001_900)
    assert board.partitions_owned() == {4: (77, 12)}


def test_a_successor_goes_on_counting_and_starts_its_gauges_anew(board: Board) -> None:
    run_worker(
        board,
        "mine = board.worker(0)\n"
        "for c in Counter: mine.set(c, 9)\n"
        "mine.set_epoch(2, 5); mine.set_lag(2, 8); mine.reject(Reason.EMPTY)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
        dies=True,
    )
    worker = board.worker(0)
    assert board.partitions_owned() == {2: (5, 8)}
    worker.reset_gauges()
    assert board.partitions_owned() == {}
    assert worker.rejected(Reason.EMPTY) == 1
    for counter in Counter:
        expected = 0 if counter in GAUGES else 10 if counter is Counter.REJECTED else 9
        assert worker.get(counter) == expected, counter


def test_every_word_has_a_place_of_its_own(board: Board) -> None:
    """Writing all words of all workers, each with its own value, reads back each value."""
    for i in range(WORKERS):
        worker = board.worker(i)
        for counter in Counter:
            worker.set(counter, 1000 * i + counter)
        for n, pair in enumerate(worker.told()):
            for _ in range(n):
                worker.tell(*pair)
        worker.observe_buckets([10 * i + b for b in range(LATENCY_BUCKETS)], 5000 + i)
        for partition in range(PARTITIONS):
            worker.set_epoch(partition, 200 * i + partition + 1)
            worker.set_lag(partition, 300 * i + partition)
    board.lease_deadline_ns = -7
    for i in range(WORKERS):
        worker = board.worker(i)
        assert [worker.get(counter) for counter in Counter] == [1000 * i + counter for counter in Counter]
        assert worker.latency() == ([10 * i + b for b in range(LATENCY_BUCKETS)], 5000 + i)
        assert [worker.lag(p) for p in range(PARTITIONS)] == [300 * i + p for p in range(PARTITIONS)]
        assert worker.owned() == {p: 200 * i + p + 1 for p in range(PARTITIONS)}
        assert [worker.rejected(reason) for reason in REASONS] == [0] * len(REASONS)
        assert list(worker.told().values()) == list(range(12))
    assert board.lease_deadline_ns == -7


def test_a_new_board_is_fenced_and_has_counted_nothing(board: Board) -> None:
    assert board.lease_deadline_ns == 0
    assert all(board.total(counter) == 0 for counter in Counter)
    assert board.latency() == ([0] * LATENCY_BUCKETS, 0)


@given(values=st.lists(st.integers(0, 20_000_000) | st.sampled_from(LATENCY_BOUNDS_US), max_size=50))
def test_the_latency_histogram_counts_the_values_at_or_below_each_bound(values: list[int]) -> None:
    board = Board.create(2, 1)
    board.worker(0).observe_latency_us(values)
    board.worker(1).observe_latency_us(values)
    cumulative, sum_us = board.latency()
    below = [2 * sum(value <= bound for value in values) for bound in LATENCY_BOUNDS_US]
    assert cumulative == [*below, 2 * len(values)]
    assert sum_us == 2 * sum(values)
    assert all(a <= b for a, b in pairwise(cumulative))
    board.close()


def test_a_partition_on_the_move_is_shown_once_with_its_newest_epoch(board: Board) -> None:
    board.worker(0).set_epoch(1, 10)
    board.worker(0).set_lag(1, 99)
    board.worker(2).set_epoch(1, 11)
    board.worker(2).set_lag(1, 3)
    assert board.partitions_owned() == {1: (11, 3)}
    board.worker(0).set_epoch(1, 12)
    assert board.partitions_owned() == {1: (12, 99)}
    board.worker(0).set_epoch(1, 10)
    board.worker(2).set_epoch(1, 0)
    assert board.worker(2).lag(1) == 0
    assert board.partitions_owned() == {1: (10, 99)}


@pytest.mark.parametrize("partition", [-1, PARTITIONS])
def test_a_partition_that_does_not_exist_is_refused(board: Board, partition: int) -> None:
    worker = board.worker(0)
    for call in (worker.lag, worker.epoch):
        with pytest.raises(IndexError, match=f"partition {partition}"):
            call(partition)
    for write in (worker.set_lag, worker.set_epoch):
        with pytest.raises(IndexError, match=f"partition {partition}"):
            write(partition, 1)


def test_a_memory_of_another_shape_is_refused(board: Board) -> None:
    with pytest.raises(BoardMismatch, match="bytes"):
        Board.attach(board.fd, WORKERS + 1, PARTITIONS)
    blank = os.memfd_create("blank")
    os.ftruncate(blank, os.fstat(board.fd).st_size)
    with pytest.raises(BoardMismatch, match="no board"):
        Board.attach(blank, WORKERS, PARTITIONS)
    os.close(blank)


def test_an_attached_board_does_not_need_the_descriptor_any_more_and_leaves_it_open(board: Board) -> None:
    copy = os.dup(board.fd)
    attached = Board.attach(copy, WORKERS, PARTITIONS)
    os.close(copy)
    board.worker(0).add(Counter.SAMPLES, 4)
    assert attached.total(Counter.SAMPLES) == 4
    attached.close()
    os.fstat(board.fd)


def test_closing_gives_the_descriptor_back_once() -> None:
    board = Board.create(1, 1)
    fd = board.fd
    board.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    board.close()


def test_the_parts_that_claim_an_id_first_import_only_the_standard_library_and_msgspec() -> None:
    """From exec to a claimed ID 0.5 s: numpy alone would take a fifth of that."""
    program = (
        "import sys\n"
        "import runtime.config, runtime.log, runtime.counters\n"
        "names = {m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names\n"
        "print(*sorted(n for n in names if not n.startswith('_')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert set(done.stdout.split()) - {"typing_extensions"} == {
        "msgspec",
        "runtime",
    }  # msgspec takes it if there
