"""The audit: what a fleet's streams hold, against what one process makes of the same reports.

    SAMPLES ──► judged again ──► expected ──┐
    VERDICTS, REJECTED, ALARMS ─────────────┴──► held together by the report's sequence ──► Audited

The streams are read once, side by side in the order of their storage, so that only what is expected and did
not come yet is in memory: the fleet's lag at each moment, not the run. The fleet must be at rest.

What a stream no longer holds (its limits dropped it) cannot be audited: it counts as ``unknown`` and is a
problem, and no count that needs it is 0 for lack of it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import msgspec

from bench.lab.audit_judging import Rejudge
from bench.lab.audit_reading import Extent, Reader, extent_of
from bench.lab.audit_shard import Extents, Shard, head_of
from bench.lab.audited import Audited, Found
from bench.lab.errors import LabError
from runtime.bus import connect
from runtime.config import Settings
from runtime.connection import Connection
from runtime.specs import Specs

__all__ = ["Audited", "Progress", "audit"]

GC_THRESHOLD: Final = 100_000
"""New containers between two looks of the garbage collector."""
Progress = Callable[[int, int], None]
"""Called with the reports judged so far, and how many there are."""


async def audit(
    settings: Settings, specs: Mapping[int, Specs], *, on_progress: Progress | None = None
) -> Audited:
    """Audits the fleet of *settings*. *specs* by their revision: all reports are judged by the one that the
    first stored verdict names. Raises LabError (no such stream, no such specs), NotInTime, and what
    `runtime.bus.connect` raises."""
    connection = await connect(settings, "audit")
    try:
        with _collecting_seldom():
            return await _audit(connection, settings, specs, on_progress)
    finally:
        await connection.close()


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """The garbage collector looks rarely, and not at what is there already: each look goes through all
    expected verdicts, which have no cycles."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _audit(
    connection: Connection, settings: Settings, specs: Mapping[int, Specs], on_progress: Progress | None
) -> Audited:
    names, found, done = settings.names, Found(), 0
    streams = [names.partitions_of_shard(shard)[0] for shard in range(names.shards)]
    samples = [await extent_of(connection, names.samples_stream(first)) for first in streams]
    verdicts = [await extent_of(connection, names.verdicts_stream(first)) for first in streams]
    rejected, alarms = [await extent_of(connection, stream) for stream in (names.rejected, names.alarms)]
    total = sum(extent.last_seq - extent.first_seq + 1 - extent.deleted for extent in samples)
    revision = await _revision(connection, verdicts, specs)
    for shard in range(names.shards):
        judge = Rejudge(settings, specs[revision], revision)
        extents = Extents(samples[shard], verdicts[shard], rejected, alarms, time.time_ns())
        one = Shard(settings, shard, extents, judge, found)
        try:
            async with AsyncExitStack() as stack:
                readers = []
                for extent in (samples[shard], verdicts[shard], rejected, alarms):
                    readers.append(Reader(connection, extent.stream))
                    stack.push_async_callback(readers[-1].close)
                    await readers[-1].open()
                await one.run(readers, _further(on_progress, done, total))
        finally:
            judge.close()
        done += one.reports
    return found.audited()


def _further(on_progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """*on_progress* as a shard calls it, with its own reports; *done* are those of the shards before."""

    def tell(reports: int) -> None:
        if on_progress is not None:
            on_progress(done + reports, total)

    return tell


async def _revision(connection: Connection, verdicts: list[Extent], specs: Mapping[int, Specs]) -> int:
    """The revision of the specs that the first stored verdict names; without any, the newest."""
    if not specs:
        raise LabError("no specs to judge by; give those that the fleet was given, by their revision")
    for extent in verdicts:
        reader = Reader(connection, extent.stream)
        try:
            await reader.open()
            page = await reader.page()
        finally:
            await reader.close()
        for message in page:
            try:
                revision = head_of.decode(message.payload).spec
            except msgspec.MsgspecError:
                continue
            if revision not in specs:
                known = ", ".join(map(str, sorted(specs)))
                raise LabError(
                    f"{extent.stream}: judged by specs of revision {revision}, the audit has {known}; "
                    "give it the specs that the fleet had"
                )
            return revision
    return max(specs)
