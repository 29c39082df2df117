"""What a session reads by partition: whole ones to be served, from the history, and copies ahead.

    (none) ── copy ──► WAITING ──► COPYING ──► COPIED ── ready ──► what came since ──► in memory
       │                  │ └─────────┴───────────┴── forget ──► (none)
       └── ready ──► READING ◄── ready             a copy under way is finished first, at full speed

A copy comes from the memory of the owner's worker (`runtime.transfer`) if its source is told and it gives it,
else from the history. One from memory is used only by the acquisition that replaces its owner's very epoch:
then nobody else had the partition in between. For any other the history is read anew; so it is where the
owner was still giving.

A copy ahead is background work in the loop that judges: it works for some milliseconds at a time and rests
for twice as long, as long as anything is served. Chambers that are copied are in the cache, but not valid:
a successor of this worker drops them, and they are the first to leave when live ones need room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from runtime import arena as arenas
from runtime import log
from runtime.cache import Cache
from runtime.errors import DefenderError
from runtime.history import History, Rest
from runtime.pipes import Source
from runtime.rebuild import Rebuild

Fetch = Callable[[int, Source, Rebuild, Rest], Awaitable[tuple[int, list[str]]]]
"""Fills a rebuild from a partition's owner: (chambers taken, chambers that it could not give)."""

READS_MAX: Final = 4
"""Partitions to be served that are read at the same time; of each up to 8 MB are under way."""
DUTY_MAX: Final = 1 / 3
"""Of the loop's time, for all copies ahead, while anything is served."""
AT_ONCE: Final = 8
"""Reports of a chamber that the owner could not give that are put back in one go."""
_LOG = log.get("readings")


class _Copy:
    """One partition that is read ahead, or was."""

    def __init__(self, rebuild: Rebuild, source: Source | None) -> None:
        self.rebuild = rebuild
        self.source = source
        """Where it is from, or is to be; None: the history."""
        self.is_giving = False
        """Whether its owner is being asked for it."""
        self.task: asyncio.Task[Any] | None = None
        """None while it waits for others."""
        self.is_urgent = False
        self.last: int | None = None


class Readings:
    """What is being read, over one cache. *is_live()*: whether anything is being served."""

    def __init__(
        self,
        cache: Cache,
        history: History,
        copies_max: int,
        is_live: Callable[[], bool],
        fetch: Fetch,
    ) -> None:
        self._cache, self._history, self._is_live = cache, history, is_live
        self._fetch = fetch
        self.transferred = self.failed = 0
        """Chambers that came from their owners' memory, and copies that did not although they were to."""
        self._copies: dict[int, _Copy] = {}
        self._reads = asyncio.Semaphore(READS_MAX)
        self._ahead = asyncio.Semaphore(copies_max)
        self._copying = 0

    def is_copying(self, partition: int) -> bool:
        """Whether it is being copied or refreshed, or waits for that."""
        copy = self._copies.get(partition)
        return copy is not None and (copy.task is None or not copy.task.done())

    def is_kept(self, partition: int, before: int) -> bool:
        """Whether memory still holds all of a partition that was served with the epoch *before* last."""
        arena = self._cache.arena
        is_read = arena.partitions[partition] != arenas.UNREAD
        return bool(before and is_read and int(arena.epochs[partition]) == before)

    def plan_copy(self, partition: int, source: Source | None) -> None:
        """The partition is to be copied from *source*, or what came since it was; `copy` does it."""
        copy = self._copies.get(partition)
        if copy is None or (copy.source is not None and source is not None and copy.source != source):
            self._cache.forget(partition)
            self._copies[partition] = _Copy(Rebuild(self._cache, partition), source)

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
                if copy.last is None and copy.source is not None:
                    copy.last = await self._transfer(partition, copy, copy.source, rest)
                loaded = await self._history.load_partition(
                    partition, copy.rebuild.take, after=copy.last, rest=rest
                )
            finally:
                self._copying -= 1
        copy.last = loaded.last
        return copy.rebuild.reports

    async def _transfer(self, partition: int, copy: _Copy, source: Source, rest: Rest) -> int | None:
        """Copies from the owner's memory; from where on the history is to be read, None for all of it."""
        copy.is_giving = True
        try:
            position = await self._history.position(partition)
            chambers, left_out = await self._fetch(partition, source, copy.rebuild, rest)
        except DefenderError as error:
            _LOG.debug("copied from the history", partition=partition, cause=str(error))
            self._cache.forget(partition)
            copy.rebuild, copy.source = Rebuild(self._cache, partition), None
            self.failed += 1
            return None
        finally:
            copy.is_giving = False
        self.transferred += chambers
        for name in left_out:
            rows = await self._history.load_chamber(partition, name)
            for first in range(0, len(rows), AT_ONCE):
                copy.rebuild.take(rows[first : first + AT_ONCE])
                await rest(0.0)
        copy.rebuild.follow()
        return position

    def _rest_ratio(self) -> float:
        """Of each copy's rest to its work, so that all of them together keep to DUTY_MAX."""
        return self._copying / DUTY_MAX - 1.0

    def begin(self, partition: int, before: int) -> bool:
        """The partition is to be served with nothing of it in memory, unless a copy of it is (or is coming)
        that may be used: then False, and `ready` finishes it."""
        copy = self._copies.get(partition)
        if copy is not None and copy.task is not None and self._may_use(copy, before):
            return False
        self.forget(partition)
        self._cache.arena.partitions[partition] = arenas.PARTLY
        return True

    async def ready(self, partition: int, before: int) -> int:
        """Returns when all of the partition that is stored is in memory, for the acquisition that replaced
        the epoch *before*; how many reports it read now."""
        copy = self._copies.get(partition)
        if copy is not None and copy.task is not None and self._may_use(copy, before):
            copy.is_urgent = True
            await asyncio.wait([copy.task])
        if copy is None or copy.task is None or not self._may_use(copy, before):
            self.forget(partition)
            copy = _Copy(Rebuild(self._cache, partition), None)
        had = copy.rebuild.reports
        async with self._reads:
            rest = _breathe if self._is_live() else None
            await self._history.load_partition(partition, copy.rebuild.take, after=copy.last, rest=rest)
        self._copies.pop(partition, None)
        copy.rebuild.finish()
        return copy.rebuild.reports - had

    @staticmethod
    def _may_use(copy: _Copy, before: int) -> bool:
        """Whether a copy leads to what the history holds; one whose owner is still giving is not waited for,
        as the owner has stopped."""
        return copy.source is None or (copy.source.epoch == before and not copy.is_giving)

    def forget(self, partition: int) -> None:
        """Stops reading the partition, and drops what memory has of it."""
        copy = self._copies.pop(partition, None)
        if copy is not None and copy.task is not None:
            copy.task.cancel()
        self._cache.forget(partition)


async def _breathe(worked_s: float) -> None:
    """Lets others have their turn; what is read is waited for, so it rests no longer."""
    await asyncio.sleep(0.0)
