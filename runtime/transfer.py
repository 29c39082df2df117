"""A partition's chambers from the memory of the worker that serves it to the one that will.

    receiver                                             owner's worker
      │  notes the history's position
      │ ── Ask(partition, epoch, after="") ───────────────► │
      │ ◄─────────────────────────────────── Page(more) ── │   whole chambers, in the order of their names
      │ ── Ask(…, after=<last name>) ─────────────────────► │
      │ ◄───────────────────────────────────────── Page ── │   is the partition whole in memory?
      │ ── Ask(…, names=<what was in flight>) ────────────► │
      │  reads the history from the position on

It takes a small part of the time that reading the history takes, on either side. Why memory then equals the
history (``E`` is the owner's epoch, ``N`` the noted position, ``c`` a chamber):

1. Only confirmed chambers are given: nothing in flight, so all that the owner published of ``c`` is in the
   state. What it publishes later is stored behind ``N``, which was noted before it was asked; the receiver
   reads from ``N`` on, and passes over what the state has (`runtime.rebuild`).
2. Chambers that the owner has not in memory: it tells with each page whether its partition is WHOLE, which
   it becomes once within an epoch at most (`runtime.filling`), never after an eviction. If it was at every
   page, an unknown chamber has nothing stored before ``N``. Else the copy is PARTLY too, and a chamber that
   is missing is read when it is needed; rows behind ``N`` do not make one, unless they begin with its first
   report (`Rebuild.follow`).
3. Others that published: the copy is used only if ``E`` is the very epoch that the receiver's own acquisition
   replaced (`runtime.readings`), else the history is read. So nobody had the partition between the two.
4. A verdict that a former owner sent before it was overtaken by ``E``, and that was stored late but before
   ``N``: the owner does not have it in its state and has not met its sample yet, for then its own verdict
   would have been a repeat, its session would have ended, and ``E`` with it. So the sample is above the
   position at which the partition is handed over: the receiver meets it, as the owner would have, and settles
   it the same way. If a second one of ``c`` was stored behind ``N``, its ordinal shows the gap: ``c`` is
   dropped, and read from the history when it is needed.
5. An owner that was overtaken itself, and does not know: as 3, its ``E`` is not what is replaced.

A slot's meaning must be the same on both sides: the fingerprint says so. Whoever changes what a slot means
raises `runtime.arena.LAYOUT_VERSION`. Anything odd raises `TransferFailed`, and the history is read.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import cache as cache_once
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kernels.state import CARRIED, ENTRY, SLOT, SUMS
from runtime import arena as arenas
from runtime.cache import Cache
from runtime.connection import Connection, within
from runtime.errors import DefenderError
from runtime.frames import frame_pub
from runtime.history import Rest
from runtime.names import Names, name_problem
from runtime.rebuild import Rebuild
from runtime.wire import names_problems

PAGE_BYTES: Final = 128_000
"""Of one page, about: either side works on it for 0.5-1 ms."""
CHAMBER_BYTES_MAX: Final = 900_000
"""A larger chamber is read from the history. One that is larger than a page has a page of its own."""
OVERHEAD_BYTES: Final = 10_000
"""What a page may have besides the chambers' own bytes."""
DUTY_MAX: Final = 1 / 3
"""Of the owner's loop, for all who ask."""
ASKED_MAX: Final = 32
"""Requests that may wait; others are refused."""
LISTS_MAX: Final = 16
"""Lists of chambers kept between two pages; one that was dropped is made again."""
ANSWER_S: Final = 2.0
"""For one page. The history costs less than to wait longer."""
AGAIN: Final = 2
"""How often chambers that were in flight are asked for again."""


class TransferFailed(DefenderError):
    """The owner's worker did not give its copy, or not one that can be used; the history has it all."""

    temporary = True


class Given(Struct, frozen=True, array_like=True):
    """One chamber; its charts' slots are the next ``len(charts)`` of the page."""

    name: str
    seq: int
    ordinal: int
    charts: list[str]


class Ask(Struct, frozen=True, tag=True):
    """The chambers behind *after* in the order of names, or just *names*, as served with *epoch*."""

    partition: int
    epoch: int
    fingerprint: int
    after: str = ""
    names: list[str] = []


class Page(Struct, frozen=True, tag=True):
    """Chambers, with the bytes of SLOT[n], SUMS[n], CARRIED[n] and, slot by slot, of the ENTRYs that they
    remember at their places in the ring, first place first."""

    chambers: list[Given]
    state: bytes
    sums: bytes
    carried: bytes
    entries: bytes
    last: str
    """The name behind which the next page begins."""
    more: bool
    whole: bool
    left_out: list[str]
    """Chambers that cannot be given now: something of them is in flight, or they are too large."""


class Refused(Struct, frozen=True, tag=True):
    why: str


_ask: Final = msgspec.msgpack.Decoder(Ask)
_answer: Final = msgspec.msgpack.Decoder(Page | Refused)
_encode: Final = msgspec.msgpack.Encoder().encode


@cache_once
def fingerprint(window: int, depth: int) -> int:
    """What must be alike on both sides."""
    layouts = [record.descr for record in (SLOT, SUMS, CARRIED, ENTRY)]
    return zlib.crc32(repr((arenas.LAYOUT_VERSION, *layouts, window, depth)).encode())


def _raw(records: NDArray[Any]) -> NDArray[Any]:
    """The same without fields: numpy copies records of fields at random places one field after another, 13.8
    against 1.9 ms for 130,000 samples."""
    return records.view(np.dtype(("V", records.dtype.itemsize)))


def _places(state: NDArray[Any], window: int) -> NDArray[np.bool_]:
    """(n, W): which places of n rings are remembered samples."""
    ages = (state["head"].astype(np.int32)[:, None] - 1 - np.arange(window, dtype=np.int32)) % window
    remembered: NDArray[np.bool_] = ages < state["length"][:, None]
    return remembered


# --- the owner's side ---------------------------------------------------------------------------


def give(cache: Cache, ask: Ask, names: Sequence[str], bytes_max: int) -> Page | Refused:
    """One page of the partition's confirmed chambers, of *names*, sorted; at most *bytes_max* long."""
    arena, partition = cache.arena, ask.partition
    if ask.fingerprint != fingerprint(arena.shape.window, cache.depth):
        return Refused("its slots have another layout, window or depth")
    if not 0 <= partition < arena.shape.partitions or arena.partitions[partition] == arenas.UNREAD:
        return Refused(f"partition {partition} is not in memory")
    if int(arena.epochs[partition]) != ask.epoch:
        return Refused(f"partition {partition} is served with epoch {int(arena.epochs[partition])}")
    most = min(PAGE_BYTES, bytes_max - OVERHEAD_BYTES)
    chambers: list[Given] = []
    left_out: list[str] = []
    slots: list[int] = []
    size, last, more = 0, ask.after, False
    for name in names[bisect_right(names, ask.after) :]:
        chamber = cache.get(name)
        if chamber is None or chamber.partition != partition:
            left_out.append(name)  # asked for by name, and evicted meanwhile
            last = name
            continue
        confirmed = int(arena.chambers["seq"][chamber.row])
        if chamber.pins or confirmed != chamber.seq:
            left_out.append(name)
            last, size = name, size + 2 * len(name)
        elif chamber.seq:  # of one that has none there is nothing to know
            own = list(chamber.slots.values())
            its_size = _size(cache, name, own)
            if its_size > min(CHAMBER_BYTES_MAX, bytes_max - OVERHEAD_BYTES):
                left_out.append(name)
                last = name
                continue
            if chambers and size + its_size > most:
                more = True
                break
            chambers.append(Given(name, chamber.seq, chamber.ordinal, list(chamber.slots)))
            slots += own
            last, size = name, size + its_size
        if size > most:
            more = True  # or an empty page comes next
            break
    at = np.array(slots, dtype=np.int64)
    state = _raw(arena.state)[at].view(SLOT)
    entries = _raw(arena.window)[at][_places(state, arena.shape.window)]
    whole = bool(arena.partitions[partition] == arenas.WHOLE)
    return Page(
        chambers,
        state.tobytes(),
        _raw(arena.sums)[at].tobytes(),
        _raw(arena.carried)[at].tobytes(),
        entries.tobytes(),
        last,
        more,
        whole,
        left_out,
    )


def names_of(cache: Cache, partition: int) -> list[str]:
    """The partition's chambers in memory, sorted."""
    return sorted(name for name, chamber in cache.chambers.items() if chamber.partition == partition)


def _size(cache: Cache, name: str, slots: list[int]) -> int:
    """Bytes of a chamber in a page, not less than it takes."""
    samples = int(cache.arena.state["length"].take(slots).sum())
    charts = SLOT.itemsize + SUMS.itemsize + CARRIED.itemsize + 66
    return 100 + len(name) + charts * len(slots) + ENTRY.itemsize * samples


class Giver:
    """Answers those who ask for what this worker serves, one page at a time, within DUTY_MAX of the loop.

    *serves*: whether a partition's reports are taken; a partition that is being left is not given.
    """

    def __init__(
        self, cache: Cache, connection: Connection, subject: str, serves: Callable[[int], bool]
    ) -> None:
        self._cache, self._connection = cache, connection
        self._subject, self._serves = subject, serves
        self._asked: deque[tuple[bytes, bytes]] = deque()
        self._came = asyncio.Event()
        self._lists: dict[tuple[int, int], list[str]] = {}
        """The chambers of each partition and epoch as they were when its first page was given."""

    async def run(self) -> None:
        """Until it is cancelled, or the connection ends."""
        await self._connection.tap(self._subject, self._deliver)
        while True:
            while self._asked and self._connection.is_connected:
                begun_s = time.perf_counter()
                reply, payload = self._asked.popleft()
                self._connection.write(frame_pub(reply, _encode(self._answer(payload))))
                await asyncio.sleep((time.perf_counter() - begun_s) * (1 / DUTY_MAX - 1.0))
            self._came.clear()
            await self._came.wait()

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if not reply:
            return
        if len(self._asked) < ASKED_MAX:
            self._asked.append((reply, payload))
            self._came.set()
        else:
            self._connection.write(frame_pub(reply, _encode(Refused("too many ask"))))

    def _answer(self, payload: bytes) -> Page | Refused:
        try:
            ask = _ask.decode(payload)
        except msgspec.MsgspecError as error:
            return Refused(str(error))
        if not self._serves(ask.partition):
            return Refused(f"partition {ask.partition} is not served here")
        return give(self._cache, ask, self._names(ask), self._connection.max_payload)

    def _names(self, ask: Ask) -> list[str]:
        if ask.names:
            return sorted(ask.names)
        key = ask.partition, ask.epoch
        if not ask.after or key not in self._lists:
            if len(self._lists) >= LISTS_MAX:
                self._lists.clear()
            self._lists[key] = names_of(self._cache, ask.partition)
        return self._lists[key]


# --- the receiver's side ------------------------------------------------------------------------


def take(page: Page, rebuild: Rebuild, cache: Cache, partition: int) -> int:
    """Puts a page's chambers into the cache, as far as there is room; how many. Raises TransferFailed
    before anything of it is put there."""
    arena = cache.arena
    state, sums, carried, entries = _checked(page, cache.names, partition, arena.shape.window)
    to: list[int] = []
    rows: list[int] = []
    first = adopted = 0
    for given in page.chambers:
        last = first + len(given.charts)
        slots = rebuild.adopt(given.name, given.seq, given.ordinal, given.charts)
        if slots is not None:
            to += slots
            rows += range(first, last)
            adopted += 1
        first = last
    if to:
        kept = np.array(rows, dtype=np.int64)
        _raw(arena.state)[to] = _raw(state)[kept]
        _raw(arena.sums)[to] = _raw(sums)[kept]
        _raw(arena.carried)[to] = _raw(carried)[kept]
        places = _places(state, arena.shape.window)
        rings = np.zeros(places.shape, dtype=ENTRY)
        _raw(rings)[places] = _raw(entries)
        _raw(arena.window)[to] = _raw(rings)[kept]  # where nothing is remembered, nothing is read
    return adopted


def _checked(
    page: Page, names: Names, partition: int, window: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The page's columns. Raises TransferFailed where they cannot be what they should."""
    try:
        state = np.frombuffer(page.state, dtype=SLOT)
        sums = np.frombuffer(page.sums, dtype=SUMS)
        carried = np.frombuffer(page.carried, dtype=CARRIED)
        entries = np.frombuffer(page.entries, dtype=ENTRY)
    except ValueError as error:
        raise TransferFailed(f"a page is cut off: {error}") from None
    charts = sum(len(given.charts) for given in page.chambers)
    if {len(state), len(sums), len(carried)} != {charts} or len(entries) != int(state["length"].sum()):
        raise TransferFailed(
            f"a page of {charts} charts has {len(state)} slots, {len(sums)} sums, {len(carried)} records of "
            f"what is carried, and {len(entries)} samples"
        )
    if charts and (int(state["length"].max()) > window or int(state["head"].max()) >= window):
        raise TransferFailed(f"a page has more samples of a chart than the window of {window}")
    for given in page.chambers:
        if name_problem(given.name) is not None or names.partition_of(given.name) != partition:
            raise TransferFailed(f"{given.name!r} is no chamber of partition {partition}")
        if not given.seq > 0 < given.ordinal:
            raise TransferFailed(f"chamber {given.name!r} has no report")
        if given.charts and names_problems(given.charts):
            raise TransferFailed(f"chamber {given.name!r} has charts that cannot be")
    return state, sums, carried, entries


async def fetch(
    page_of: Callable[[Ask], Awaitable[Page]],
    partition: int,
    epoch: int,
    cache: Cache,
    rebuild: Rebuild,
    rest: Rest,
) -> tuple[int, list[str]]:
    """Fills *rebuild* from the owner's memory: (chambers taken, those that it could not give).

    Note the history's position before. Raises TransferFailed, or what *page_of* raises; what *rebuild* has
    by then is to be forgotten.
    """
    mark = fingerprint(cache.arena.shape.window, cache.depth)
    taken = 0
    names: list[str] = []
    for _ in range(1 + AGAIN):
        after, more = "", True
        left_out: list[str] = []
        while more:
            page = await page_of(Ask(partition, epoch, mark, after, names))
            begun_s = time.perf_counter()
            if page.more and page.last <= after:
                raise TransferFailed(f"a page behind {after!r} ends with {page.last!r}")
            taken += take(page, rebuild, cache, partition)
            after, more = page.last, page.more
            left_out += page.left_out
            rebuild.complete = rebuild.complete and page.whole
            await rest(time.perf_counter() - begun_s)
        names = left_out
        if not names:
            break
    return taken, names


async def page_from(connection: Connection, subject: str, ask: Ask) -> Page:
    """Asks the worker that listens on *subject*. Raises TransferFailed, NoAnswer, Disconnected."""
    reply = await within(connection.ask(subject, _encode(ask)), ANSWER_S, subject)
    if reply.status:
        raise TransferFailed(f"nobody listens on {subject}")
    try:
        answer: Page | Refused = _answer.decode(reply.payload)
    except msgspec.MsgspecError as error:
        raise TransferFailed(f"{subject} answered what is no page: {error}") from None
    if isinstance(answer, Refused):
        raise TransferFailed(f"{subject}: {answer.why}")
    return answer
