"""Batches in flight: judged, but not yet known to be stored.

    EMPTY ── begin ──► JUDGING ── judged ──► JUDGED ── confirm ──► EMPTY
                          └────────── settle ──┴───────────────────► EMPTY

The kernels change slots in place. Until a batch's verdicts are stored, the flight log keeps what it
changed (an undo journal) and what each of its reports will have confirmed. After the death of a worker,
or the loss of its connection, nobody knows which of the batches in flight were stored; `settle` asks
what VERDICTS has of each chamber and keeps or undoes accordingly, so that memory is again exactly what
is stored. That is one code path for every kind of failure, and it reads a few hundred sequences instead
of the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kernels import judge as kernel
from runtime import arena as arenas
from runtime.arena import Arena
from runtime.cache import Chamber
from runtime.history import Last


class FlightState(IntEnum):
    EMPTY = 0
    JUDGING = 1
    JUDGED = 2


@dataclass
class Flight:
    """One region of the flight log, in use by one batch."""

    region: int
    number: int
    reports: list[tuple[Chamber, int, int]]
    """(chamber, its sequence and its ordinal after the report), in the order of judging."""


@dataclass
class FlightLog:
    """The regions of an arena's flight log that are free and in use."""

    arena: Arena
    _number: int = 0
    _free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert not np.any(self.arena.flights["state"]), "settle first"
        self._free = list(range(self.arena.shape.flights))

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def in_flight(self) -> int:
        return self.arena.shape.flights - len(self._free)

    def begin(
        self, reports: list[tuple[Chamber, int, int]], lengths: list[int], slots: NDArray[np.int32]
    ) -> Flight:
        """Writes down what the batch is about to change, and pins its chambers. *slots* are those of its
        samples, *lengths* how many each report has."""
        region = self._free.pop()
        self._number += 1
        arena, samples = self.arena, len(slots)
        log = arena.flight_reports[region, : len(reports)]
        log["seq"] = [seq for _, seq, _ in reports]
        log["chamber"] = [chamber.row for chamber, _, _ in reports]
        log["ordinal"] = [ordinal for _, _, ordinal in reports]
        log["samples"] = lengths
        arena.flight_slots[region, :samples] = slots
        arena.journal["index"][region, :samples] = -1
        arena.flights[region] = (self._number, len(reports), samples, FlightState.JUDGING)
        for chamber, _, _ in reports:
            chamber.pins += 1
        return Flight(region, self._number, reports)

    def judged(self, flight: Flight) -> None:
        self.arena.flights["state"][flight.region] = FlightState.JUDGED

    def confirm(self, flight: Flight) -> None:
        """The batch is stored: what it changed is what is confirmed."""
        arena, reports = self.arena, flight.reports
        rows = [chamber.row for chamber, _, _ in reports]
        # of a chamber that comes twice, the later report is written later
        arena.chambers["seq"][rows] = [seq for _, seq, _ in reports]
        arena.chambers["ordinal"][rows] = [ordinal for _, _, ordinal in reports]
        arena.flights["state"][flight.region] = FlightState.EMPTY
        for chamber, _, _ in reports:
            chamber.pins -= 1
        self._free.append(flight.region)


def in_doubt(arena: Arena) -> dict[str, int]:
    """The chambers (name -> partition) of which nobody knows whether their last reports are stored."""
    chambers: dict[str, int] = {}
    for region in np.flatnonzero(arena.flights["state"]).tolist():
        reports = int(arena.flights["reports"][region])
        rows = np.unique(arena.flight_reports["chamber"][region, :reports])
        for found in arena.chambers[rows]:
            chambers[found["name"].decode()] = int(found["partition"])
    return chambers


@dataclass(frozen=True)
class Settled:
    """What `settle` did, in chambers: all reports kept, some or all undone, dropped (to be read again)."""

    kept: int
    undone: int
    dropped: int


def settle(arena: Arena, stored: Mapping[str, Last]) -> Settled:
    """Makes memory what is stored. *stored*: what was published last of each chamber in doubt.

    Reports up to it are kept, later ones undone. A chamber whose stored sequence is neither the confirmed
    one nor that of a report in flight is dropped (another must have published). So is one of which another
    owner's verdict of a report in flight is stored, by its epoch (it may have judged by other specs), and one
    whose slot was being written; they are read from the history when they are needed.
    """
    regions = np.flatnonzero(arena.flights["state"])
    regions = regions[np.argsort(arena.flights["number"][regions])]
    have = np.zeros(len(arena.chambers), dtype=np.uint64)
    last: dict[int, Last] = {}
    ends: dict[int, list[tuple[int, int]]] = {}  # row -> (sequence, ordinal), confirmed and after each report
    for region in regions.tolist():
        for seq, row, ordinal, _ in arena.flight_reports[region, : arena.flights["reports"][region]].tolist():
            if row not in ends:
                found = arena.chambers[row]
                ends[row] = [(int(found["seq"]), int(found["ordinal"]))]
                last[row] = stored[found["name"].decode()]
                have[row] = last[row].seq
            ends[row].append((seq, ordinal))
    dropped = _torn(arena, regions)
    for region in regions[::-1].tolist():
        _undo(arena, region, have)
    for row, after in ends.items():
        at = [end for end in after if end[0] == int(have[row])]
        epoch = int(arena.epochs[arena.chambers["partition"][row]])
        if at and (at[-1] == after[0] or last[row].epoch == epoch):
            arena.chambers["seq"][row], arena.chambers["ordinal"][row] = at[-1]
        else:
            dropped.add(row)
    for row in dropped:
        arena.chambers["used"][row] = arenas.FREE
        arena.partitions[arena.chambers["partition"][row]] = arenas.PARTLY
    arena.flights["state"] = FlightState.EMPTY
    kept = sum(int(have[row]) == after[-1][0] for row, after in ends.items() if row not in dropped)
    return Settled(kept, len(ends.keys() - dropped) - kept, len(dropped))


def _valid_entries(arena: Arena, region: int) -> int:
    """How many journal entries the batch wrote before its worker died."""
    samples = int(arena.flights["samples"][region])
    unwritten = np.flatnonzero(arena.journal["index"][region, :samples] < 0)
    return int(unwritten[0]) if len(unwritten) else samples


def _torn(arena: Arena, regions: NDArray[np.int64]) -> set[int]:
    """Rows of chambers whose slot was being written when the worker died in the midst of a kernel."""
    rows: set[int] = set()
    for region in regions.tolist():
        if arena.flights["state"][region] == FlightState.JUDGING:
            at, samples = _valid_entries(arena, region), int(arena.flights["samples"][region])
            near = arena.flight_slots[region, max(0, at - 1) : min(samples, at + 2)]
            rows.update(arena.keys["chamber"][near].tolist())
    return rows


def _undo(arena: Arena, region: int, have: NDArray[np.uint64]) -> None:
    """Undoes the samples of the region whose report is later than what its chamber has stored."""
    entries = _valid_entries(arena, region)
    reports = arena.flight_reports[region, : arena.flights["reports"][region]]
    keep = (reports["seq"] <= have[reports["chamber"]]).astype(np.uint8)
    skip = np.repeat(keep, reports["samples"])[:entries].copy()
    memory = (arena.state, arena.sums, arena.carried, arena.window)
    kernel.undo(arena.journal[region], 0, entries, skip, *memory)
