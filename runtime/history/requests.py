"""Requests to Cassandra from an event loop: the driver's own thread bridged, failures waited out.

The driver answers in a thread of its own. Answers go into a queue, and the loop is woken once for all that
have come since it last looked: no hop a row, nor even one a request when many are under way.

    CLOSED ── FAILURES_OPEN failures in a row ──► OPEN ── a request succeeds ──► CLOSED

Every request may be repeated (a row's key says which report it is), so one that failed for a reason that may
pass is sent again, with growing pauses, until it succeeds or its caller gives up. While the circuit is open
(`down` says why) callers queue behind one request that tries; whoever feeds us is to take nothing new.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final, NamedTuple

from cassandra import InvalidRequest
from cassandra.cluster import Cluster, ResponseFuture, Session
from cassandra.query import Statement

from runtime import log
from runtime.config import Settings
from runtime.counters import Counter, WorkerCounters
from runtime.errors import DefenderError, HistoryDiffers, HistoryUnreachable
from runtime.frames import backoff_s
from runtime.history.cluster import explained, open_cluster

FAILURES_OPEN: Final = 3
RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 1.0
_LOG: Final = log.get("cassandra")


class BatchTooLarge(HistoryDiffers):
    """The server refuses a batch for its size; its statements by themselves may pass."""


class Page(NamedTuple):
    """Rows, and where the next page begins; None after the last one."""

    rows: list[tuple[Any, ...]]
    next: bytes | None


class Answers:
    """From the driver's thread to one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._come: deque[tuple[asyncio.Future[Page], Page | None, Exception | None]] = deque()
        self._is_woken = False

    def of(self, response: ResponseFuture) -> asyncio.Future[Page]:
        """What the driver answers to a request that was sent."""
        waiter: asyncio.Future[Page] = self._loop.create_future()

        def came(rows: list[tuple[Any, ...]] | None) -> None:
            self._put(waiter, Page(rows or [], response._paging_state), None)

        def failed(error: Exception) -> None:
            self._put(waiter, None, error)

        response.add_callbacks(came, failed)
        return waiter

    def _put(self, waiter: asyncio.Future[Page], page: Page | None, error: Exception | None) -> None:
        self._come.append((waiter, page, error))
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._is_woken = False  # before looking: what comes from here on wakes us again
        while self._come:
            waiter, page, error = self._come.popleft()
            if waiter.done():
                continue  # nobody waits for it any more
            if error is not None:
                waiter.set_exception(error)
            else:
                assert page is not None
                waiter.set_result(page)


class Requests:
    """Sends statements over one driver session, which `open` makes, until they succeed.

    *prepare* is called with each new session, in a thread; what it gives is kept in ``prepared``.
    """

    def __init__(
        self,
        settings: Settings,
        prepare: Callable[[Session], Any],
        counters: WorkerCounters | None = None,
        random: Random | None = None,
        *,
        patience_s: float = math.inf,
    ) -> None:
        """After *patience_s* without success a request raises HistoryUnreachable."""
        self._settings, self._prepare, self._counters = settings, prepare, counters
        self._patience_s = patience_s
        self._random = random or Random()
        self._cluster: Cluster | None = None
        self._session: Session | None = None
        self.prepared: Any = None
        self.down = ""
        """Why nothing is stored or read at the moment; "" when the circuit is closed."""
        self.outages = 0
        """How often the circuit opened."""
        self._down_since_s = 0.0
        self._failures = 0
        self._answered_s = 0.0
        self._probe = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._answers = Answers(asyncio.get_running_loop())

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "open first"
        return self._cluster

    def _has_session(self) -> bool:
        return self._session is not None

    @property
    def silence_s(self) -> float:
        """Since when nothing was answered."""
        return time.monotonic() - self._answered_s

    async def open(self) -> None:
        """Connects, unless it is connected; waits while no node answers. Raises what waiting does not mend:
        CredentialsRefused, HistoryDiffers."""
        begun_s, attempt = time.monotonic(), 0
        async with self._opening:
            if self._has_session():
                return  # which says nothing of the nodes: the circuit stays as it is
            while not self._has_session():
                try:
                    await asyncio.to_thread(self._open)
                except DefenderError as error:
                    if not isinstance(error, HistoryUnreachable):
                        self._failures = FAILURES_OPEN
                        self._failed(error)
                        raise
                    self._failed(error)
                    attempt = await self._pause(error, begun_s, attempt)
            self._succeeded()

    def _open(self) -> None:
        cluster, session = open_cluster(self._settings)
        try:
            self.prepared = self._prepare(session)
        except Exception as error:
            cluster.shutdown()
            raise explained(error, self._settings) from error
        self._cluster, self._session = cluster, session

    async def close(self) -> None:
        """Ends the connections; takes a moment."""
        cluster, self._cluster, self._session = self._cluster, None, None
        if cluster is not None:
            await asyncio.to_thread(cluster.shutdown)

    async def send(self, statement: Statement, start: bytes | None = None) -> Page:
        """The answer to a statement, of a query the page that begins at *start*. Waits while nothing answers.
        Raises what waiting does not mend; the next `open` then connects anew."""
        if not self.down:
            return await self._insist(statement, start)
        async with self._probe:
            return await self._insist(statement, start)

    async def _insist(self, statement: Statement, start: bytes | None) -> Page:
        begun_s, attempt = time.monotonic(), 0
        while True:
            try:
                if self._session is None:
                    await self.open()
                page = await self._once(statement, start)
            except HistoryUnreachable as error:
                self._failed(error)
                _LOG.debug("sent again", cause=str(error))
                if self._counters is not None:
                    self._counters.add(Counter.HISTORY_RETRIES)
                attempt = await self._pause(error, begun_s, attempt)
            else:
                self._succeeded()
                return page

    async def _pause(self, error: HistoryUnreachable, begun_s: float, attempt: int) -> int:
        """Before the next try, whose number it gives; raises *error* when patience ends."""
        if time.monotonic() - begun_s > self._patience_s:
            raise error
        await asyncio.sleep(backoff_s(attempt, RETRY_FIRST_S, RETRY_MOST_S, self._random))
        return attempt + 1

    async def _once(self, statement: Statement, start: bytes | None) -> Page:
        session = self._session
        assert session is not None
        try:
            sent = session.execute_async(statement, paging_state=start)
            async with asyncio.timeout(2 * self._settings.cassandra_timeout_s):  # its own timeout comes first
                return await self._answers.of(sent)
        except TimeoutError:
            raise HistoryUnreachable("the driver of Cassandra gave no answer at all") from None
        except DefenderError:
            raise
        except Exception as error:
            known = explained(error, self._settings)
            if isinstance(error, InvalidRequest) and "Batch too large" in str(error):
                raise BatchTooLarge(str(known)) from error
            if not isinstance(known, HistoryUnreachable) and self._session is session:
                await self.close()
            raise known from error

    def _failed(self, error: DefenderError) -> None:
        self._failures += 1
        if self._failures >= FAILURES_OPEN and not self.down:
            self.down, self._down_since_s = str(error), time.monotonic()
            self.outages += 1
            if self._counters is not None:
                self._counters.set(Counter.HISTORY_DOWN, 1)
            _LOG.error("the history takes nothing; reports wait in NATS", cause=self.down)

    def _succeeded(self) -> None:
        self._failures, self._answered_s = 0, time.monotonic()
        if self.down:
            _LOG.info(
                "the history takes reports again", after_s=round(time.monotonic() - self._down_since_s, 1)
            )
            self.down = ""
            if self._counters is not None:
                self._counters.set(Counter.HISTORY_DOWN, 0)
