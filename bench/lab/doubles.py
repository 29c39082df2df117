"""Two owners at a time, told from claims and heartbeats alone. Pure.

Ownership records cannot tell: each has one owner. What tells is that two pods *act* as the owner:

- The heartbeats of two pods say, in unbroken rows that overlap for a renewal or longer, that they serve one
  partition, or that they are one active ID. A row breaks where a heartbeat is missing: what a frozen pod says
  once when it wakes up is no row, and a healthy one is fenced before it says it again.
- A process writes its claim over another's, though it had the ID before. A lost lease is lost for ever, so
  that was no compare-and-set.
- A process holds two IDs for a renewal or longer.

Heartbeats are placed by the time that their pod wrote in them, not by their arrival: after a restart of the
server that of an old one may be late.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from msgspec import Struct

ROW_BEATS: Final = 2.5
"""A row is broken when so many renewals pass without a heartbeat."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Held(Struct, frozen=True):
    """A claim as an auditor reads it."""

    pod_uid: str
    track: str = ""
    session: str = ""


class Beat(Struct, frozen=True):
    """A heartbeat as an auditor reads it."""

    pod_uid: str
    state: str
    at: datetime
    pod_name: str = ""
    stable_id: str | None = None
    partitions: list[int] = []


class _Row(Struct):
    """The unbroken heartbeats in which a pod says one thing."""

    first_ns: int
    last_ns: int


class _Claimed(NamedTuple):
    """Since when a process holds an ID."""

    process: tuple[str, str]
    since_ns: int


class Doubles:
    """Takes claims and heartbeats as they come, *renew_s* apart."""

    def __init__(self, renew_s: float) -> None:
        self._renew_ns = int(renew_s * 1e9)
        self._rows: dict[str, dict[str, _Row]] = defaultdict(dict)
        """By what is said, then by the pod that says it."""
        self._says: dict[str, set[str]] = {}
        self._held: dict[str, _Claimed] = {}
        self._had: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._names: dict[str, str] = {}
        self._found: dict[tuple[str, ...], tuple[int, str]] = {}

    def beaten(self, beat: Beat) -> None:
        """A heartbeat came."""
        at_ns = (beat.at - _EPOCH) // timedelta(microseconds=1) * 1_000
        uid, row_ns = beat.pod_uid, int(ROW_BEATS * self._renew_ns)
        self._names[uid] = beat.pod_name or uid
        says = {f"partition {partition}" for partition in beat.partitions}
        if beat.stable_id and beat.state == "active":  # while it drains, its successor has the ID already
            says.add(beat.stable_id)
        for gone in self._says.get(uid, set()) - says:
            self._rows[gone].pop(uid, None)
        self._says[uid] = says
        for said in says:
            rows = self._rows[said]
            row = rows.get(uid)
            if row is None or at_ns - row.last_ns > row_ns:
                row = rows[uid] = _Row(at_ns, at_ns)
            row.last_ns = max(row.last_ns, at_ns)
            for other, its in rows.items():
                both_ns = min(row.last_ns, its.last_ns) - max(row.first_ns, its.first_ns)
                if other != uid and both_ns >= self._renew_ns:
                    self._note_rows(said, uid, other, max(row.first_ns, its.first_ns), both_ns)

    def claimed(self, stable_id: str, claim: Held | None, at_ns: int) -> None:
        """An ID's claim came; None when it was deleted or expired."""
        before = self._held.get(stable_id)
        process = (claim.pod_uid, claim.session) if claim is not None else None
        if before is not None and before.process == process:
            return
        if before is not None:
            self._note_two_ids(before.process, at_ns)
            del self._held[stable_id]
        if process is None:
            return
        if before is not None and process in self._had[stable_id]:
            two = f"{self._name(process[0])} over {self._name(before.process[0])}'s claim"
            words = f"{stable_id}: claimed again by {two}, to which it had lost it"
            self._found.setdefault(("again", stable_id, *process), (at_ns, words))
        self._had[stable_id].add(process)
        self._held[stable_id] = _Claimed(process, at_ns)

    def found(self) -> list[str]:
        """What was doubled, in words, by its time; each pair of pods once for each partition or ID."""
        if self._held:
            newest_ns = max([row.last_ns for rows in self._rows.values() for row in rows.values()], default=0)
            for held in list(self._held.values()):
                self._note_two_ids(held.process, newest_ns)
        return [f"{_clock(at_ns)} {words}" for at_ns, words in sorted(self._found.values())]

    def _note_rows(self, said: str, uid: str, other: str, since_ns: int, both_ns: int) -> None:
        first, second = sorted((uid, other))
        at_ns, _ = self._found.get((said, first, second), (since_ns, ""))
        whose = f"{self._name(first)} and {self._name(second)}"
        words = f"{said}: both {whose} say that they have it, for {both_ns / 1e9:.1f} s and longer"
        self._found[said, first, second] = (at_ns, words)

    def _note_two_ids(self, process: tuple[str, str], at_ns: int) -> None:
        """If *process* has held two IDs for a renewal by then."""
        both = {one: held.since_ns for one, held in self._held.items() if held.process == process}
        since_ns = max(both.values())
        if len(both) > 1 and at_ns - since_ns >= self._renew_ns:
            ids = " and ".join(sorted(both))
            words = f"{self._name(process[0])} holds {ids}, for {(at_ns - since_ns) / 1e9:.1f} s and longer"
            self._found[("two", *process, ids)] = (since_ns, words)

    def _name(self, uid: str) -> str:
        return self._names.get(uid, uid)


def _clock(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns / 1e9, UTC):%H:%M:%S.%f}"[:-3]
