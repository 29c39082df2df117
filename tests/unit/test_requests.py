"""Requests to Cassandra, over a driver that answers, fails or keeps silent as it is told, in a thread of its
own as the real one does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from cassandra import InvalidRequest, OperationTimedOut
from cassandra.cluster import NoHostAvailable
from cassandra.query import SimpleStatement
from fleet import until

from runtime.config import Settings
from runtime.counters import Board, Counter, WorkerCounters
from runtime.errors import HistoryDiffers, HistoryUnreachable
from runtime.history import requests as module
from runtime.history.requests import FAILURES_OPEN, Answers, BatchTooLarge, Page, Requests

SETTINGS = msgspec.structs.replace(Settings(), cassandra_timeout_s=0.2)
TIMED_OUT = OperationTimedOut()
STATEMENT = SimpleStatement("SELECT 1")


class Response:
    """A `ResponseFuture`, answered in a thread; *outcome* None is never answered."""

    def __init__(self, outcome: Page | Exception | None) -> None:
        self._outcome = outcome
        self._paging_state = outcome.next if isinstance(outcome, Page) else None

    def add_callbacks(self, came: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        outcome = self._outcome
        if isinstance(outcome, Page):
            threading.Thread(target=came, args=(outcome.rows,)).start()
        elif outcome is not None:
            threading.Thread(target=failed, args=(outcome,)).start()


class Driver:
    """What `open_cluster` gives, both of the two: *outcomes* are what its requests come to, the last one for
    ever."""

    def __init__(self, *outcomes: Page | Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.refusals: list[Exception] = []
        """What connecting comes to before it succeeds."""
        self.sent = self.opened = self.ended = 0

    def __call__(self, settings: Settings) -> tuple[Driver, Driver]:
        if self.refusals:
            raise self.refusals.pop(0)
        self.opened += 1
        return self, self

    def execute_async(self, statement: object, paging_state: bytes | None) -> Response:
        self.sent += 1
        return Response(self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0])

    def shutdown(self) -> None:
        self.ended += 1


DONE = Page([(1,)], None)


@pytest.fixture
def counters() -> Iterator[WorkerCounters]:
    board = Board.create(1, 1)
    yield board.worker(0)
    board.close()


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(module, "RETRY_MOST_S", 0.005)


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch, counters: WorkerCounters) -> Callable[..., Requests]:
    def made(driver: Driver, **options: Any) -> Requests:
        monkeypatch.setattr(module, "open_cluster", driver)
        return Requests(SETTINGS, lambda session: "prepared", counters, Random(1), **options)

    return made


Over = Callable[..., Requests]


async def test_what_failed_for_a_passing_reason_is_sent_again_until_it_succeeds(
    over: Over, counters: WorkerCounters
) -> None:
    """Two failures, a silence of the driver, success: one answer, three retries, a closed circuit."""
    driver = Driver(TIMED_OUT, NoHostAvailable("none", {}), None, DONE)
    requests = over(driver)
    await requests.open()
    assert await requests.send(STATEMENT) == DONE
    assert counters.get(Counter.HISTORY_RETRIES) == 3
    assert (driver.sent, driver.opened, requests.prepared) == (4, 1, "prepared")
    assert requests.down == ""
    assert counters.get(Counter.HISTORY_DOWN) == 0


async def test_the_circuit_opens_after_failures_in_a_row_and_closes_by_a_success_alone(
    over: Over, counters: WorkerCounters
) -> None:
    """That the driver has a session says nothing of the nodes: `open` leaves the circuit as it is."""
    driver = Driver(TIMED_OUT)
    requests = over(driver)
    await requests.open()
    sending = asyncio.create_task(requests.send(STATEMENT))
    await until(lambda: requests.down, what="the circuit opens")
    assert driver.sent >= FAILURES_OPEN
    assert counters.get(Counter.HISTORY_DOWN) == 1
    assert SETTINGS.cassandra_contact_points in requests.down
    await requests.open()
    assert requests.down, "closed without a success"
    driver.outcomes = [DONE]
    assert await sending == DONE
    assert requests.down == ""
    assert requests.outages == 1


async def test_while_the_circuit_is_open_one_request_tries_and_the_others_wait(over: Over) -> None:
    """Twenty callers cost a node that is down no more than one does; all get their answer in the end."""
    driver = Driver(TIMED_OUT)
    requests = over(driver)
    await requests.open()
    first = asyncio.create_task(requests.send(STATEMENT))
    await until(lambda: requests.down, what="the circuit opens")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    most = 0
    once = requests._once

    async def counted(*arguments: Any) -> Page:
        nonlocal most
        trying.add(id(asyncio.current_task()))
        most = max(most, len(trying))
        return await once(*arguments)

    trying: set[int] = set()
    requests._once = counted  # type: ignore[method-assign]
    waiting = [asyncio.create_task(requests.send(STATEMENT)) for _ in range(20)]
    sent = driver.sent
    await until(lambda: driver.sent > sent + 10, what="one of them tries")
    assert most == 1
    driver.outcomes = [DONE]
    assert await asyncio.gather(*waiting) == [DONE] * 20


async def test_connecting_waits_for_a_node_and_raises_what_waiting_does_not_mend(over: Over) -> None:
    driver = Driver(DONE)
    requests = over(driver)
    driver.refusals = [HistoryUnreachable("away")] * 5
    await requests.open()
    assert driver.opened == 1
    assert requests.down == ""
    other = Driver(DONE)
    requests = over(other)
    other.refusals = [HistoryDiffers("run: defender init")]
    with pytest.raises(HistoryDiffers, match="defender init"):
        await requests.open()
    assert "defender init" in requests.down
    await requests.open()
    assert requests.down == ""


async def test_a_refused_request_ends_the_session_once_and_the_next_one_connects_anew(over: Over) -> None:
    """Several are refused at the same time; a batch that is too large says nothing of the session."""
    lost = InvalidRequest('code=2200 [Invalid query] message="unconfigured table reports"')
    driver = Driver(lost, lost, InvalidRequest('code=2200 message="Batch too large"'), DONE)
    requests = over(driver)
    await requests.open()
    found = await asyncio.gather(*(requests.send(STATEMENT) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in found] == [HistoryDiffers] * 2
    assert "run: defender init" in str(found[0])
    assert driver.ended == 1
    with pytest.raises(BatchTooLarge):
        await requests.send(STATEMENT)
    assert await requests.send(STATEMENT) == DONE
    assert (driver.opened, driver.ended) == (2, 1)
    await requests.close()
    await requests.close()
    assert driver.ended == 2


async def test_a_command_is_not_more_patient_than_it_was_told(over: Over) -> None:
    requests = over(Driver(TIMED_OUT), patience_s=0.05)
    await requests.open()
    with pytest.raises(HistoryUnreachable, match="CASSANDRA_TIMEOUT_S"):
        await requests.send(STATEMENT)


async def test_answers_from_many_threads_reach_their_waiters_and_one_that_waits_no_more_is_passed_over() -> (
    None
):
    answers = Answers(asyncio.get_running_loop())
    waiters = [answers.of(Response(Page([(number,)], None))) for number in range(50)]  # type: ignore[arg-type]
    waiters[7].cancel()
    found = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(found.pop(7), asyncio.CancelledError)
    assert [page.rows for page in found] == [[(number,)] for number in range(50) if number != 7]


def test_an_answer_that_comes_after_the_loop_was_closed_disturbs_nobody() -> None:
    loop = asyncio.new_event_loop()
    held: list[Callable[[Any], None]] = []

    class Late(Response):
        def add_callbacks(self, came: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
            held.append(came)

    Answers(loop).of(Late(DONE))  # type: ignore[arg-type]
    loop.close()
    held[0]([(1,)])
