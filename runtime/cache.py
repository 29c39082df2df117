"""The cache's directory: which chambers are in memory, and in which slots their charts are.

A chamber comes and goes as a whole: its charts are read from the history together (they lie in the same
rows there), and CLOCK evicts them together. What the directory knows is also in the arena, so that a
worker's successor builds the same directory from it (`Cache.__init__`).

A chamber with reports in flight is pinned: the flight log undoes by slot, so its slots must stay.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np

from runtime import arena as arenas
from runtime.arena import Arena
from runtime.names import Names
from runtime.specs import Specs
from runtime.wire import CHARTS_MAX, decode_names, msgpack_encoder, names_problems

CHART_LISTS_MAX: Final = 64
"""Chart lists remembered a chamber; a chamber has one or a few (one a recipe)."""


class CacheFull(Exception):
    """Every chamber that could leave is in flight; the report waits until some have landed."""


class ChartList:
    """A chamber's chart list, resolved: one look-up a report that brings the same list again."""

    __slots__ = ("names", "packed", "revision", "slots", "spec_ids")

    def __init__(self, names: list[str], slots: array[int]) -> None:
        self.names = names
        self.slots = slots
        self.packed = msgspec.Raw(msgpack_encoder.encode(names))
        self.spec_ids: array[int] = array("i")
        self.revision = -1


class Chamber:
    """A chamber in memory. ``seq`` and ``ordinal`` are those of its newest judged report, which may be
    ahead of its row in the arena (the newest confirmed one)."""

    __slots__ = (
        "lists",
        "name",
        "ordinal",
        "partition",
        "pins",
        "referenced",
        "row",
        "seq",
        "slots",
        "subject",
    )

    def __init__(self, name: str, partition: int, row: int, subject: str) -> None:
        self.name, self.partition, self.row, self.subject = name, partition, row, subject
        self.seq = 0
        self.ordinal = 0
        self.slots: dict[str, int] = {}
        self.lists: dict[bytes, ChartList] = {}
        self.pins = 0
        self.referenced = True


class Cache:
    """The directory over one arena."""

    def __init__(self, arena: Arena, names: Names, specs: Specs, revision: int, depth: int) -> None:
        """Finds again what *arena* holds; *depth* is the history's, in reports a chamber."""
        self.arena, self.names, self.depth = arena, names, depth
        self.chambers: dict[str, Chamber] = {}
        self.evictions = 0
        self.use_specs(specs, revision)
        self._free_rows: list[int] = []
        self._free_slots: list[int] = []
        self._find_again()

    def use_specs(self, specs: Specs, revision: int) -> None:
        """From here on charts are judged by these specs; lists are matched again when they come next."""
        self.specs, self.revision = specs, revision

    @property
    def slots_used(self) -> int:
        return self.arena.shape.slots - len(self._free_slots)

    def get(self, name: str) -> Chamber | None:
        return self.chambers.get(name)

    def add(self, name: str, partition: int) -> Chamber:
        """A chamber without charts, in state LOADING until `loaded`. Raises CacheFull."""
        if not self._free_rows:
            self._make_room(1)
        row = self._free_rows.pop()
        rows = self.arena.chambers
        rows[row] = (name.encode(), 0, 0, partition, arenas.LOADING)
        chamber = Chamber(name, partition, row, self.names.verdict(partition, name))
        self.chambers[name] = chamber
        return chamber

    def loaded(self, chambers: Iterable[Chamber]) -> None:
        """What these chambers hold now is what the history holds."""
        rows = self.arena.chambers
        for chamber in chambers:
            rows["seq"][chamber.row] = chamber.seq
            rows["ordinal"][chamber.row] = chamber.ordinal
            rows["used"][chamber.row] = arenas.USED

    def forget(self, partition: int) -> None:
        """Forgets all of a partition, of which nothing may be in flight. A successor that finds it half done
        drops the rest, for the partition is marked first."""
        self.arena.partitions[partition] = arenas.UNREAD
        self.arena.epochs[partition] = 0
        chambers = [chamber for chamber in self.chambers.values() if chamber.partition == partition]
        if not chambers:
            return
        rows = [chamber.row for chamber in chambers]
        self.arena.chambers["used"][rows] = arenas.FREE
        self._free([slot for chamber in chambers for slot in chamber.slots.values()])
        self._free_rows.extend(rows)
        for chamber in chambers:
            assert not chamber.pins, f"chamber {chamber.name!r} is in flight"
            del self.chambers[chamber.name]

    def begin_anew(self, chamber: Chamber) -> None:
        """Forgets a chamber's charts: it is as it was when it was added."""
        self._free(list(chamber.slots.values()))
        chamber.slots.clear()
        chamber.lists.clear()
        chamber.seq = chamber.ordinal = 0

    def drop(self, chamber: Chamber) -> None:
        """Forgets a chamber: first its row, then its slots, so that a death in between leaves no orphan."""
        self.arena.chambers["used"][chamber.row] = arenas.FREE
        self._free(list(chamber.slots.values()))
        self._free_rows.append(chamber.row)
        del self.chambers[chamber.name]

    def has_room(self, slots: int) -> bool:
        """Whether one chamber more with so many charts fits without an eviction."""
        return bool(self._free_rows) and len(self._free_slots) >= slots

    def resolve(
        self, chamber: Chamber, raw: bytes, *, length: int, json: bool, evict: bool = True
    ) -> ChartList | None:
        """The chart list that the bytes *raw* of a report name.

        None when a name in it cannot be, or it is not of *length* (1 to 4096): a report that will be
        rejected must not take slots from others. Raises msgspec.MsgspecError for bytes that are no
        list of strings, CacheFull when there is no room (without *evict*: none that is free).
        """
        found = chamber.lists.get(raw)
        if found is None:
            names = decode_names(raw, json=json)
            if len(names) != length or not 0 < length <= CHARTS_MAX or names_problems(names):
                return None
            found = self.resolve_names(chamber, names, evict=evict)
            if len(chamber.lists) >= CHART_LISTS_MAX:
                chamber.lists.clear()
            chamber.lists[raw] = found
        if found.revision != self.revision:
            self._match(chamber, found)
        return found

    def resolve_names(self, chamber: Chamber, names: list[str], *, evict: bool = True) -> ChartList:
        """The chart list of these names (all of them possible, none twice); new charts get a slot."""
        missing = [name for name in names if name not in chamber.slots]
        if missing:
            if not evict and len(self._free_slots) < len(missing):
                raise CacheFull
            self._allocate(chamber, missing)
        found = ChartList(names, array("i", [chamber.slots[name] for name in names]))
        self._match(chamber, found)
        return found

    def allot(self, chamber: Chamber, names: list[str]) -> list[int]:
        """Free slots for charts of a chamber that has none yet; the caller fills them. Raises CacheFull
        when there are not enough: it evicts nothing."""
        if len(self._free_slots) < len(names):
            raise CacheFull
        self._allocate(chamber, names)
        return [chamber.slots[name] for name in names]

    def resolve_reset(self, chamber: Chamber, names: list[str]) -> ChartList:
        """The charts in memory that a reset of *names* (none: of all) concerns, which are then the list's
        ``names``, while *names* are ``packed``; others forget nothing."""
        concerned = {name: slot for name, slot in chamber.slots.items() if not names or name in names}
        known = list(concerned.values())
        found = ChartList(names, array("i", known))
        found.names = list(concerned)
        found.spec_ids = array("i", bytes(4 * len(known)))  # not read
        found.revision = self.revision
        return found

    def _match(self, chamber: Chamber, charts: ChartList) -> None:
        charts.spec_ids = array("i", [self.specs.match(chamber.name, name)[0] for name in charts.names])
        charts.revision = self.revision

    def _allocate(self, chamber: Chamber, names: list[str]) -> None:
        if len(self._free_slots) < len(names) and chamber.pins <= 1:
            self._forget_stale(chamber)
        if len(self._free_slots) < len(names):
            chamber.pins += 1  # not this one
            try:
                self._make_room(len(names))
            finally:
                chamber.pins -= 1
        slots = [self._free_slots.pop() for _ in names]
        keys, state = self.arena.keys, self.arena.state
        state[slots] = np.zeros(1, dtype=state.dtype)[0]
        for name, slot in zip(names, slots, strict=True):
            keys[slot] = (name.encode(), chamber.row, 1)
            chamber.slots[name] = slot

    def _forget_stale(self, chamber: Chamber) -> None:
        """Frees the charts that a chamber's last *depth* reports did not bring: they would start anew anyhow.

        Nothing of the chamber may be in flight, nor resolved already in the batch that is being made.
        """
        state = self.arena.state
        stale = {
            name: slot
            for name, slot in chamber.slots.items()
            if state["length"][slot] and int(state["newest"][slot]) + self.depth <= chamber.ordinal
        }
        if stale:
            self._free(list(stale.values()))
            for name in stale:
                del chamber.slots[name]
            chamber.lists.clear()

    def _free(self, slots: list[int]) -> None:
        if slots:
            self.arena.keys["used"][slots] = 0
            self._free_slots.extend(slots)

    def _make_room(self, slots: int) -> None:
        """CLOCK: the oldest chamber leaves, unless it was used since the hand last passed it."""
        for _ in range(2 * len(self.chambers)):
            if len(self._free_slots) >= slots and self._free_rows:
                return
            name, chamber = next(iter(self.chambers.items()))
            if chamber.pins or chamber.referenced:
                chamber.referenced = False
                del self.chambers[name]
                self.chambers[name] = chamber
            else:
                self.drop(chamber)
                self.evictions += 1
                if self.arena.partitions[chamber.partition] == arenas.WHOLE:
                    self.arena.partitions[chamber.partition] = arenas.PARTLY
        if len(self._free_slots) < slots or not self._free_rows:
            raise CacheFull

    def _find_again(self) -> None:
        rows, keys = self.arena.chambers, self.arena.keys
        rows["used"][rows["used"] == arenas.LOADING] = arenas.FREE
        # Of partitions that were being forgotten, or whose last rows were still to come.
        rows["used"][self.arena.partitions[rows["partition"]] == arenas.UNREAD] = arenas.FREE
        by_row: dict[int, Chamber] = {}
        for row in np.flatnonzero(rows["used"] == arenas.USED).tolist():
            found = rows[row]
            name, partition = found["name"].decode(), int(found["partition"])
            chamber = Chamber(name, partition, row, self.names.verdict(partition, name))
            chamber.seq, chamber.ordinal = int(found["seq"]), int(found["ordinal"])
            chamber.referenced = False
            by_row[row] = self.chambers[name] = chamber
        used = np.flatnonzero(keys["used"])
        orphans = []
        for slot, row, chart in zip(
            used.tolist(), keys["chamber"][used].tolist(), keys["chart"][used].tolist(), strict=True
        ):
            owner = by_row.get(row)
            if owner is None:
                orphans.append(slot)
            else:
                owner.slots[chart.decode()] = slot
        self._free_rows = np.flatnonzero(rows["used"] == arenas.FREE)[::-1].tolist()
        self._free_slots = np.flatnonzero(keys["used"] == 0)[::-1].tolist()
        self._free(orphans)
