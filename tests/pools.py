"""A pod without a supervisor: a pool of real workers, driven word by word, as a handoff needs it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

import msgspec
from fleet import until

from runtime import fork, pipes
from runtime.bus import Connection
from runtime.config import Settings
from runtime.counters import Board
from runtime.ownership import Ownership, Want
from runtime.ownership_record import Owner, Record, decode, key
from runtime.pool import Pool, WorkerHandle

W = TypeVar("W", bound=pipes.OfSession)
LEASE_S = 3600.0


class Crew:
    """One pool, with the ownership of what its workers serve. What is lost in a broken session comes back."""

    def __init__(self, settings: Settings, connection: Connection, name: str) -> None:
        self.name = name
        settings = msgspec.structs.replace(settings, pod_uid=f"uid-{name}")
        self._board = Board.create(settings.workers, settings.partitions)
        self.hold_lease(LEASE_S)
        self._memory = [os.memfd_create(f"{name}-{i}") for i in range(settings.workers)]
        self.ownership = Ownership(connection, settings, Owner(name, settings.pod_uid), random=Random(1))
        self.words: list[tuple[float, pipes.OfSession]] = []
        self.gone: list[float] = []
        self.wanted: dict[int, set[int]] = defaultdict(set)
        """What each worker is to serve; it gets all of it again in a new session."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.pool = Pool(
            settings,
            self._board,
            self._memory,
            name,
            on_ready=self._ready,
            on_word=lambda _, word: self.words.append((time.monotonic(), word)),
            on_gone=lambda _: self.gone.append(time.monotonic()),
        )

    def hold_lease(self, for_s: float) -> None:
        self._board.lease_deadline_ns = time.monotonic_ns() + int(for_s * 1e9)

    @property
    def board(self) -> Board:
        return self._board

    @property
    def handle(self) -> WorkerHandle:
        """The first worker."""
        return self.pool.handles[0]

    def _ready(self, handle: WorkerHandle) -> None:
        if self.wanted[handle.index]:
            task = asyncio.get_running_loop().create_task(self._acquire(handle, self.wanted[handle.index]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _acquire(
        self, handle: WorkerHandle, partitions: Iterable[int], released: tuple[Record, int] | None = None
    ) -> None:
        entries = {} if released else await self.ownership.bucket.entries("partition.*")
        wants = {}
        for partition in partitions:
            entry = entries.get(key(partition))
            record, revision = released or (
                (decode(entry.value), entry.revision) if entry is not None else (Record(), 0)
            )
            wants[partition] = Want(partition, record, revision, warm=released is not None)
        acquired = await self.ownership.acquire(wants.values(), worker=handle.index)
        assert set(acquired) == set(wants), "another acquired them meanwhile"
        handle.assign(
            [
                pipes.Assignment(one.partition, one.epoch, one.consumer, one.position, wants[partition].epoch)
                for partition, one in acquired.items()
            ]
        )

    async def serve(
        self, partitions: Iterable[int], worker: int = 0, released: tuple[Record, int] | None = None
    ) -> None:
        """Acquires partitions and has them served; returns when they are assigned."""
        partitions = list(partitions)
        self.wanted[worker].update(partitions)
        await self._acquire(self.pool.handles[worker], partitions, released)

    async def serving(self, partitions: Iterable[int], worker: int = 0) -> None:
        wanted = set(partitions)
        handle = self.pool.handles[worker]
        await until(lambda: wanted <= handle.serving, what=f"{self.name} serves {sorted(wanted)}")

    async def copied(self, partition: int, worker: int = 0, source: Crew | None = None) -> pipes.Copied:
        """Has a partition copied ahead, and waits until it is; from the memory of *source*'s first worker,
        or from the history."""
        seen, sources = len(self.words), {}
        if source is not None:
            epoch = source.ownership.held[partition].acquired.epoch
            sources[partition] = pipes.Source(f"uid-{source.name}", 0, epoch)
        self.pool.handles[worker].copy([partition], sources)
        return await self.word(pipes.Copied, seen, lambda word: word.partition == partition)

    async def given_back(self, partitions: Iterable[int], worker: int = 0) -> dict[int, int]:
        """Takes partitions back from a worker, and waits until it has stopped; their positions."""
        partitions, seen = list(partitions), len(self.words)
        self.wanted[worker].difference_update(partitions)
        assert self.pool.handles[worker].take_back(partitions)
        positions: dict[int, int] = {}
        for partition in partitions:
            word = await self.word(pipes.Yielded, seen, lambda word, p=partition: p in word.positions)
            positions[partition] = word.positions[partition]
        return positions

    async def word(self, kind: type[W], since: int, wanted=lambda word: True, deadline_s: float = 10.0) -> W:  # type: ignore[no-untyped-def]
        """The first word of a kind among those that came after the first *since*."""

        def found() -> list[W]:
            return [word for _, word in self.words[since:] if isinstance(word, kind) and wanted(word)]

        return (await until(found, deadline_s=deadline_s, what=f"{self.name} says {kind.__name__}"))[0]

    async def hand_over(self, partition: int, to: Crew, *, from_memory: bool = False) -> float:
        """Moves a partition with a copy ahead; how long nobody served it, s."""
        await to.copied(partition, source=self if from_memory else None)
        begun = time.monotonic()
        positions = await self.given_back([partition])
        released = await self.ownership.release(partition, positions[partition], to.name)
        seen = len(to.words)
        await to.serve([partition], released=released)
        await to.word(pipes.Serving, seen, lambda word: partition in word.partitions)
        served = next(at for at, word in to.words[seen:] if isinstance(word, pipes.Serving))
        return served - begun

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.kill()
        await self.ownership.close()
        for fd in self._memory:
            os.close(fd)


@asynccontextmanager
async def crews(settings: Settings, connection: Connection, *names: str) -> AsyncIterator[list[Crew]]:
    """Pools of one fleet, their workers ready."""
    fork.start_server(settings)
    await fork.server_loaded()
    made = [Crew(settings, connection, name) for name in names]
    try:
        for crew in made:
            crew.pool.start()
        for crew in made:
            for handle in crew.pool.handles:
                await until(lambda h=handle: h.session is not None, what=f"{crew.name} is ready")
        yield made
    finally:
        for crew in made:
            await crew.close()
