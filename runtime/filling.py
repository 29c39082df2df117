"""Reads the chambers of partitions that are served already, beside their reports.

Where a store reads a chamber as cheaply by itself as with its partition, a partition is served from its
acquisition on: a chamber whose report waits is read at once, by the passage; the others here, the one judged
last first, until all that fit are in memory. A chamber that a report asks for while it is being read here is
left to the passage: what was read here may be old by the time it arrives.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from runtime import arena as arenas
from runtime import log
from runtime.cache import Cache, CacheFull
from runtime.counters import Counter, WorkerCounters
from runtime.history import History
from runtime.rebuild import restore_chamber

CHAMBERS_AT_ONCE: Final = 4
"""Read at the same time by one worker, of all its partitions."""
PASSES_MAX: Final = 3
"""Over a partition, for chambers that came in and were evicted meanwhile."""
OTHERS_S: Final = 1.0
"""For which a pass waits for a chamber that is read for a report of it."""
PROGRESS_S: Final = 5.0
"""Between two lines of the log."""
_LOG: Final = log.get("filling")


class Filler:
    """What is being read, over one cache."""

    def __init__(self, cache: Cache, history: History, counters: WorkerCounters) -> None:
        self._cache, self._history, self._counters = cache, history, counters
        self._at_once = asyncio.Semaphore(CHAMBERS_AT_ONCE)
        self._reading: set[str] = set()
        self._left_out: set[str] = set()
        """Chambers that others read. One that they evict again while it is read here would come back as it
        was before they had it."""
        self._fills = self._left = self._chambers = self._reports = 0
        self._begun_s = self._told_s = 0.0

    def leave(self, chamber: str) -> None:
        """A report of this chamber waits: whoever called reads it."""
        self._reading.discard(chamber)
        self._left_out.add(chamber)

    async def fill(self, partition: int) -> None:
        """Returns when all of a partition is in memory that fits. May be cancelled at any time."""
        if not self._fills:
            self._begun_s = self._told_s = time.monotonic()
            self._chambers = self._reports = 0
        self._fills += 1
        try:
            await self._fill(partition)
        finally:
            self._fills -= 1
            if not self._fills:
                self._left_out.clear()
        if not self._fills and self._chambers:
            took_s = time.monotonic() - self._begun_s
            self._counters.set(Counter.REBUILD_US, int(took_s * 1e6))
            told = {"chambers": self._chambers, "reports": self._reports, "took_s": round(took_s, 2)}
            _LOG.info("rebuilt", **told)

    async def _fill(self, partition: int) -> None:
        chambers = await self._history.chambers(partition)  # from here on only we add to them
        for _ in range(PASSES_MAX):
            lacking = [name for name in chambers if self._cache.get(name) is None]
            if not lacking:
                self._cache.arena.partitions[partition] = arenas.WHOLE
                break
            if not await self._read_all(partition, lacking):
                break

    async def _read_all(self, partition: int, chambers: list[str]) -> bool:
        """False when the cache has no more room."""
        self._add_left(len(chambers))
        reads = [asyncio.ensure_future(self._read(partition, chamber)) for chamber in chambers]
        for read in reads:
            read.add_done_callback(lambda _: self._add_left(-1))
        try:
            return all(await asyncio.gather(*reads))
        finally:
            for read in reads:
                read.cancel()

    async def _read(self, partition: int, chamber: str) -> bool:
        """Whether there was room for it, or it was left to others."""
        async with self._at_once:
            fits = True
            is_ours = chamber not in self._left_out and self._cache.get(chamber) is None
            if is_ours and self._cache.has_room(1):
                self._reading.add(chamber)
                rows = await self._history.load_chamber(partition, chamber)
                if chamber in self._reading and self._cache.get(chamber) is None:
                    try:
                        restore_chamber(self._cache, chamber, partition, rows, evict=False)
                    except CacheFull:
                        fits = False
                    else:
                        self._chambers += 1
                        self._reports += len(rows)
                        self._counters.add(Counter.REBUILT_REPORTS, len(rows))
                self._reading.discard(chamber)
            await asyncio.sleep(0.0)
        if chamber in self._left_out:
            await self._others_read(chamber)
        return fits

    async def _others_read(self, chamber: str) -> None:
        """Gives others the time to read a chamber: one that is not there yet keeps its partition from being
        whole."""
        end_s = time.monotonic() + OTHERS_S
        while self._cache.get(chamber) is None and time.monotonic() < end_s:
            await asyncio.sleep(0.02)

    def _add_left(self, n: int) -> None:
        self._left += n
        self._counters.set(Counter.REBUILD_LEFT, self._left)
        now_s = time.monotonic()
        if self._left and now_s - self._told_s > PROGRESS_S:
            self._told_s = now_s
            _LOG.info("rebuilding", chambers_left=self._left, reports=self._reports)
