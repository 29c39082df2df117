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
from collections.abc import Callable
from typing import Any, Final

from runtime import arena as arenas
from runtime.cache import Cache
from runtime.history import History
from runtime.rebuild import Rebuild

READS_MAX: Final = 4
"""Partitions to be served that are read at the same time; of each up to 8 MB are under way."""
DUTY_MAX: Final = 1 / 3
"""Of the loop's time, for all copies ahead, while anything is served."""


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
        self._copying = 0

    def has_copy(self, partition: int) -> bool:
        """Whether it is copied, or will be."""
        return partition in self._copies

    def is_copying(self, partition: int) -> bool:
        """Whether it is being copied or refreshed, or waits for that."""
        copy = self._copies.get(partition)
        return copy is not None and (copy.task is None or not copy.task.done())

    def is_kept(self, partition: int, before: int) -> bool:
        """Whether memory still holds all of a partition that was served with the epoch *before* last."""
        arena = self._cache.arena
        is_read = arena.partitions[partition] != arenas.UNREAD
        return bool(before and is_read and int(arena.epochs[partition]) == before)

    def plan_copy(self, partition: int) -> None:
        """The partition is to be copied, anew if it was; `copy` does it."""
        self._cache.forget(partition)
        self._copies[partition] = _Copy(Rebuild(self._cache, partition))

    async def copy(self, partition: int) -> int | None:
        """Reads a planned partition ahead, or what came since it was copied, in a task of its own; how many
        reports of it are in memory, or None when it is not wanted any more."""
        copy = self._copies.get(partition)

        async def rest(worked_s: float) -> None:
            assert copy is not None
            is_beside = self._is_live() and not copy.is_urgent
            await asyncio.sleep(self._rest_ratio() * worked_s if is_beside else 0.0)

        async with self._ahead:
            if copy is None or self._copies.get(partition) is not copy:
                return None
            copy.task = asyncio.current_task()
            self._copying += 1
            try:
                loaded = await self._history.load_partition(
                    partition, copy.rebuild.take, after=copy.last, rest=rest
                )
            finally:
                self._copying -= 1
        copy.last = loaded.last
        return copy.rebuild.reports

    def _rest_ratio(self) -> float:
        """Of each copy's rest to its work, so that all of them together keep to DUTY_MAX."""
        return self._copying / DUTY_MAX - 1.0

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
