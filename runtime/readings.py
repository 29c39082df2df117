"""What a session reads of the history by partition: whole ones to be served, and copies ahead.

    (none) ── copy ──► WAITING ──► COPYING ──► COPIED ── ready ──► what came since ──► in memory
       │                  │ └─────────┴───────────┴── forget ──► (none)
       └── ready ──► READING ◄── ready             a copy under way is finished first, at full speed

A copy ahead is background work in the loop that judges: it works for some milliseconds at a time and rests
for twice as long, as long as anything is served. Chambers that are copied are in the cache, but not valid:
a successor of this worker drops them, and they are the first to leave when live ones need room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from runtime import arena as arenas
from runtime.cache import Cache
from runtime.history import History
from runtime.rebuild import Rebuild

READS_MAX: Final = 4
"""Partitions to be served that are read at the same time; of each up to 8 MB are under way."""
REST_RATIO: Final = 2.0
"""Of a copy's rest to the work before it: it takes a third of the loop's time at most."""


class _Copy:
    """One partition that is read ahead, or was."""

    def __init__(self, rebuild: Rebuild) -> None:
        self.rebuild = rebuild
        self.task: asyncio.Task[Any] | None = None
        """None while it waits for others."""
        self.is_urgent = False
        self.last: int | None = None


class Readings:
    """The histories that are being read, over one cache. *is_live()*: whether anything is being served."""

    def __init__(self, cache: Cache, history: History, copies_max: int, is_live: Callable[[], bool]) -> None:
        self._cache, self._history, self._is_live = cache, history, is_live
        self._copies: dict[int, _Copy] = {}
        self._reads = asyncio.Semaphore(READS_MAX)
        self._ahead = asyncio.Semaphore(copies_max)

    def has_copy(self, partition: int) -> bool:
        """Whether it is copied, or will be."""
        return partition in self._copies

    def is_kept(self, partition: int, before: int) -> bool:
        """Whether memory still holds all of a partition that was served with the epoch *before* last."""
        arena = self._cache.arena
        is_read = arena.partitions[partition] != arenas.UNREAD
        return bool(before and is_read and int(arena.epochs[partition]) == before)

    def copy(self, partition: int) -> Coroutine[Any, Any, int | None]:
        """Begins anew to read a partition ahead; the result, to be waited for by a task of its own, is how
        many reports it put into memory, or None when it was not wanted any more."""
        self._cache.forget(partition)
        copy = self._copies[partition] = _Copy(Rebuild(self._cache, partition))
        return self._copy(partition, copy)

    async def _copy(self, partition: int, copy: _Copy) -> int | None:
        async def rest(worked_s: float) -> None:
            is_beside = self._is_live() and not copy.is_urgent
            await asyncio.sleep(REST_RATIO * worked_s if is_beside else 0.0)

        async with self._ahead:
            if self._copies.get(partition) is not copy:
                return None
            copy.task = asyncio.current_task()
            loaded = await self._history.load_partition(partition, copy.rebuild.take, rest=rest)
        copy.last = loaded.last
        return copy.rebuild.reports

    async def ready(self, partition: int) -> int:
        """Returns when all of the partition that is stored is in memory; how many reports it read now."""
        copy = self._copies.get(partition)
        if copy is not None and copy.task is not None:
            copy.is_urgent = True
            await asyncio.wait([copy.task])
        else:
            self.forget(partition)
            copy = _Copy(Rebuild(self._cache, partition))
        before = copy.rebuild.reports
        async with self._reads:
            rest = _breathe if self._is_live() else None
            await self._history.load_partition(partition, copy.rebuild.take, after=copy.last, rest=rest)
        self._copies.pop(partition, None)
        copy.rebuild.finish()
        return copy.rebuild.reports - before

    def forget(self, partition: int) -> None:
        """Stops reading the partition, and drops what memory has of it."""
        copy = self._copies.pop(partition, None)
        if copy is not None and copy.task is not None:
            copy.task.cancel()
        self._cache.forget(partition)


async def _breathe(worked_s: float) -> None:
    """Lets others have their turn; what is read is waited for, so it rests no longer."""
    await asyncio.sleep(0.0)
