"""What the leader does about the ring: who is let in, who is taken out, who is declared dead. Pure.

`Policy.step` is called with what the leader sees, at each change and at least every second, and returns
what to write; each write is a compare-and-set, and an order comes again until its effect is seen. A policy
lives as long as its leader's term: the clocks of joins and vacancies start anew with it. Silence is counted
by the pod's own view from when that began, so that the death of a leader costs no second wait. When one of
the pod's own heartbeats was missing, everybody has silence_s anew: the bucket took no writes for a moment.

    holder of an admitted track ──waits settle_s, with those that come meanwhile──► member
    member, its holder LEAVING ──0.3 settle_s, likewise──► out
    member without a holder (vacancy) ──hold_down_s; none if its holder was LEAVING, or by `forget`──► out
    member whose track an operator took out ──at once, with those who come in──► out
    holder silent for silence_s ──deposed──► its ID is a vacancy

Whatever is due takes along all that waits: one version. Nothing is written while an operator's freeze, an
outage or a loss of many holders at once lasts, and the time of vacancies stands still.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from runtime.names import Names
from runtime.records import Member, RingRecord, Tracks
from runtime.ring import ALGORITHM

LEAVE_SETTLE: Final = 0.3
"""The share of settle_s that leaves wait for each other: they are sure, and their pods wait to end."""
SETTLE_MOST: Final = 3.0
"""Newcomers prolong the waiting up to this many times its length."""
STEP_S_MAX: Final = 1.0
"""A vacancy grows by at most this in a step: when this process was paused, its IDs were not vacant longer."""
NAMES_SHOWN: Final = 4


class Limits(NamedTuple):
    """The leader's settings that its policy needs, in seconds."""

    holders_max: int = 100
    settle_s: float = 1.0
    hold_down_s: float = 10.0
    silence_s: float = 6.0
    renew_s: float = 2.0


class Holder(NamedTuple):
    """Who holds a stable ID. *silent_s*: since the last heartbeat or renewal arrived at the leader."""

    stable_id: str
    pod_uid: str
    track: str = "stable"
    weight: float = 1.0
    joins: bool = True
    leaving: bool = False
    silent_s: float = 0.0
    claim_revision: int = 0


class Situation(NamedTuple):
    """What the leader sees at *now_s* of its monotonic clock.

    *holders* are the living claims by stable ID. *ring* is the last record that could be read; *is_stored*
    says whether it stands in the bucket: it does not when the key was deleted or overwritten by nonsense.
    """

    now_s: float
    holders: Mapping[str, Holder]
    ring: RingRecord | None = None
    is_stored: bool = True
    tracks: Tracks = Tracks()
    frozen: str = ""
    """An operator's freeze: by whom and why; empty: none."""
    forget: Collection[str] = frozenset()
    outage: bool = False
    aftermath: bool = False
    """An outage has ended lately (`OutageWatch`): whoever is silent may only not be back yet."""
    version_seen: int = 0
    """The highest version of the ring that any defender has told of."""
    watched_s: float | None = None
    """For how long this pod has noted who is silent; None: since the policy's first step."""
    steady_s: float = math.inf
    """For how long no heartbeat of this pod's own has been missing (`OutageWatch`): what kept ours from the
    bucket kept others' from it, too, and they beat at other moments."""


class Commit(NamedTuple):
    """Write *record* as the ring (its leader and time are the driver's), if the key is as it was seen."""

    record: RingRecord


class Depose(NamedTuple):
    """Delete the claim of *stable_id*, if it is still at *claim_revision*."""

    stable_id: str
    pod_uid: str
    claim_revision: int
    silent_s: float


class Forgotten(NamedTuple):
    """Delete the operator's ``forget.<stable_id>``: it is done, or moot."""

    stable_id: str


Order = Commit | Depose | Forgotten


class OutageWatch:
    """Whether the buckets' news reach this pod: its own heartbeat must come back to it.

    Every pod keeps one, leading or not: who is elected just after an outage knows of it. *missed_s*: the
    age of the own heartbeat by which one is missing; *limit_s*: that is an outage; *after_s*: how long its
    aftermath lasts.
    """

    def __init__(self, *, missed_s: float, limit_s: float, after_s: float) -> None:
        self.outage = False
        self._missed_s, self._limit_s, self._after_s = missed_s, limit_s, after_s
        self._steady_since_s = -math.inf
        self._heard_s: float | None = None
        self._now_s = 0.0
        self._calm_s = -math.inf

    def step(self, now_s: float, own_silent_s: float) -> None:
        """*own_silent_s*: since the own heartbeat arrived; inf: there is none now, the last one counts."""
        if math.isfinite(own_silent_s):
            heard_s = now_s - own_silent_s
            if self._heard_s is not None and heard_s - self._heard_s > self._missed_s:
                self._steady_since_s = heard_s
            self._heard_s = heard_s
        elif self._heard_s is None:
            self._heard_s = now_s
        self._now_s = now_s
        self.outage = self._heard_s is not None and now_s - self._heard_s > self._limit_s
        if self.outage:
            self._calm_s = now_s + self._after_s

    @property
    def steady_s(self) -> float:
        """For how long no own heartbeat has been missing; 0 while one is."""
        if self._heard_s is not None and self._now_s - self._heard_s > self._missed_s:
            return 0.0
        return self._now_s - self._steady_since_s

    @property
    def aftermath(self) -> bool:
        return self.aftermath_s > 0

    @property
    def aftermath_s(self) -> float:
        """What is left of the aftermath of an outage; 0 when there is none."""
        return max(0.0, self._calm_s - self._now_s)


class _Gathering:
    """IDs that wait to be changed together."""

    def __init__(self) -> None:
        self._ids: frozenset[str] = frozenset()
        self._first_s = self._last_s = 0.0

    def hold(self, ids: Iterable[str], now_s: float) -> None:
        """Who waits now."""
        waiting = frozenset(ids)
        if not self._ids:
            self._first_s = now_s
        if waiting - self._ids:
            self._last_s = now_s
        self._ids = waiting

    def is_due(self, now_s: float, settle_s: float) -> bool:
        quiet = now_s - self._last_s >= settle_s
        return bool(self._ids) and (quiet or now_s - self._first_s >= SETTLE_MOST * settle_s)


class _Change(NamedTuple):
    """A ring's next members and pins, and who is the cause."""

    members: dict[str, Member]
    pins: dict[str, list[int]]
    joins: set[str]
    leaves: set[str]
    crossed: set[str]
    """Members that go because an operator took their track out."""


class Policy:
    """The decisions of one term of leadership. *names* tells the partitions and where chambers belong."""

    def __init__(self, names: Names, limits: Limits) -> None:
        self.mass_loss = False
        self.remarks: list[str] = []
        """For people: why nothing happens though something should."""
        self._names, self._limits = names, limits
        self._began_s: float | None = None
        self._stepped_s = 0.0
        self._highest = 0
        self._vacant_s: dict[str, float] = {}
        self._left: set[str] = set()
        self._joins, self._leaves = _Gathering(), _Gathering()
        self._forget_since_s: dict[str, float] = {}
        self._tracks: Tracks | None = None
        self._pins_of: tuple[Tracks, dict[str, list[int]]] = (Tracks(), {})

    def step(self, seen: Situation) -> list[Order]:
        """What is to be written now. Sets `mass_loss` and `remarks`."""
        now_s = seen.now_s
        if self._began_s is None:
            self._began_s = self._stepped_s = now_s
        passed_s = min(max(now_s - self._stepped_s, 0.0), STEP_S_MAX)
        self._stepped_s = now_s
        self.remarks = []
        silent = self._silent(seen)
        stands_still = self._stands_still(seen)
        self._note_vacancies(seen, 0.0 if stands_still or seen.aftermath else passed_s)
        if stands_still:
            return []
        orders: list[Order] = []
        if silent and seen.aftermath:
            self._spare(silent, "after an outage")
        elif silent and seen.steady_s < self._limits.silence_s:
            self._spare(silent, "after a heartbeat of our own was missing")
        else:
            orders += [Depose(h.stable_id, h.pod_uid, h.claim_revision, h.silent_s) for h in silent]
        orders += self._forgotten(seen)
        record = self._next_record(seen)
        if record is not None:
            orders.append(Commit(record))
        return orders

    def _silent(self, seen: Situation) -> list[Holder]:
        """Those to depose; tells a loss of many apart.

        What takes many away at once makes them silent one after the other, within the time between two
        heartbeats. So whoever has missed one counts when the first has been silent for long enough.
        """
        limits = self._limits
        known_s = seen.now_s - (self._began_s or 0.0) if seen.watched_s is None else seen.watched_s
        suspect_s = max(limits.silence_s - limits.renew_s, 1.25 * limits.renew_s)
        if known_s < suspect_s:
            self.mass_loss = False
            return []
        suspects = [h for h in seen.holders.values() if h.silent_s >= suspect_s]
        silent = [h for h in suspects if h.silent_s >= limits.silence_s and known_s >= limits.silence_s]
        many = len(suspects) >= 2 and 3 * len(suspects) > len(seen.holders)
        self.mass_loss = bool(silent) and many
        if self.mass_loss:
            self.remarks.append(
                f"mass loss: {len(suspects)} of {len(seen.holders)} holders are silent "
                f"({_some(h.stable_id for h in suspects)}): a fault of the network or of NATS? Nothing is "
                "changed until they are back or their claims expire"
            )
        return silent

    def _spare(self, silent: list[Holder], when: str) -> None:
        names = _some(h.stable_id for h in silent)
        self.remarks.append(f"{names} silent; {when} nobody is deposed for a while")

    def _stands_still(self, seen: Situation) -> bool:
        if seen.frozen:
            self.remarks.append(f"frozen by an operator: {seen.frozen}")
        if seen.outage:
            self.remarks.append("outage: our own heartbeat does not come back from NATS")
        return bool(seen.frozen) or seen.outage or self.mass_loss

    def _note_vacancies(self, seen: Situation, passed_s: float) -> None:
        members = seen.ring.members if seen.ring is not None else {}
        vacant = [name for name in members if name not in seen.holders]
        if len(vacant) == len(members):
            # Nobody could take over; who comes back first must not find the others' time over.
            self._vacant_s.clear()
        self._vacant_s = {
            name: self._vacant_s[name] + passed_s if name in self._vacant_s else 0.0 for name in vacant
        }
        gone = {name for name in self._left if name in self._vacant_s}
        self._left = gone | {name for name, holder in seen.holders.items() if holder.leaving}

    def _forgotten(self, seen: Situation) -> list[Order]:
        """Operators' words that are done: the ID is not in the ring, or somebody has held it for long."""
        self._forget_since_s = {name: self._forget_since_s.get(name, seen.now_s) for name in seen.forget}
        members = seen.ring.members if seen.ring is not None else {}
        return [
            Forgotten(name)
            for name, since_s in self._forget_since_s.items()
            if name not in members
            or (name in seen.holders and seen.now_s - since_s >= self._limits.hold_down_s)
        ]

    def _next_record(self, seen: Situation) -> RingRecord | None:
        """The record to commit, None when none is due."""
        ring = seen.ring
        self._highest = max(self._highest, seen.version_seen)
        if ring is not None:
            problem = problem_of(ring, self._names)
            if problem:
                self.remarks.append(problem)
                return None
            self._highest = max(self._highest, ring.version)
            if not seen.is_stored:
                self._vacant_s.clear()
                self.remarks.append("the ring's record was gone or cannot be read; it is written again")
                return self._record(ring.members, ring.pins, "the record was gone or could not be read")
        change = self._change(seen)
        if change is None:
            self._tracks = seen.tracks
            return None
        if not self._is_due(seen, change):
            return None
        return self._record(change.members, change.pins, _reason(change))

    def _record(self, members: Mapping[str, Member], pins: dict[str, list[int]], reason: str) -> RingRecord:
        return RingRecord(
            version=self._highest + 1,
            partitions=self._names.partitions,
            members=dict(sorted(members.items())),
            pins=pins,
            reason=reason,
        )

    def _change(self, seen: Situation) -> _Change | None:
        """What the ring lacks, due or not; None when it is as it should be."""
        members = seen.ring.members if seen.ring is not None else {}
        pins = self._pins(seen.tracks)
        refused = self._refuses(seen, members)
        tracks_in = {member.track for member in members.values()}

        def admits(track: str, joins: bool) -> bool:
            if seen.tracks.chambers.get(track):
                return track in pins
            if refused and track in seen.tracks.in_ring:
                return track in tracks_in
            return seen.tracks.in_ring.get(track, joins)

        wanted = {
            holder.stable_id: Member(holder.track, holder.weight)
            for holder in seen.holders.values()
            if not holder.leaving and admits(holder.track, holder.joins)
        }
        leaves, crossed = set(), set()
        for name, member in members.items():
            if name in wanted:
                continue
            holder = seen.holders.get(name)
            if (holder is not None and holder.leaving) or self._is_over(name, holder, seen):
                leaves.add(name)
            elif holder is not None or not admits(member.track, True):
                crossed.add(name)
        after = {name: one for name, one in members.items() if name not in leaves | crossed} | wanted
        if (leaves or crossed) and not _covers(after, pins):
            self.remarks.append(
                "all members would go: the ring stays as it is until another can take their partitions"
            )
            self._vacant_s = dict.fromkeys(self._vacant_s, 0.0)
            after, leaves, crossed = {**members, **wanted}, set(), set()
        joins = {name for name, member in wanted.items() if members.get(name) != member}
        self._joins.hold(joins | crossed, seen.now_s)
        self._leaves.hold(leaves, seen.now_s)
        if after == members and pins == (seen.ring.pins if seen.ring is not None else {}):
            return None
        if not _covers(after, pins):
            if after:
                self.remarks.append(
                    "only tracks with chambers of their own have holders: no ring for the rest"
                )
            return None
        return _Change(after, pins, joins, leaves, crossed)

    def _is_over(self, name: str, holder: Holder | None, seen: Situation) -> bool:
        """Whether the ID is vacant and not kept for a successor any more."""
        if holder is not None:
            return False
        kept = name not in seen.forget and name not in self._left
        return not kept or self._vacant_s.get(name, 0.0) >= self._limits.hold_down_s

    def _is_due(self, seen: Situation, change: _Change) -> bool:
        settle_s = self._limits.settle_s
        holders = sum(1 for name in change.members if name in seen.holders)
        if self._tracks is None:
            self._tracks = seen.tracks
        return (
            seen.tracks != self._tracks
            or (seen.ring is not None and seen.ring.pins != change.pins)
            or (bool(change.joins) and holders == self._limits.holders_max)
            or self._joins.is_due(seen.now_s, settle_s)
            or self._leaves.is_due(seen.now_s, LEAVE_SETTLE * settle_s)
        )

    def _refuses(self, seen: Situation, members: Mapping[str, Member]) -> bool:
        """Whether a track is to go out while one that is to come in has nobody: they stay as they are."""
        in_ring = seen.tracks.in_ring
        tracks_in = {member.track for member in members.values()}
        if not any(in_ring.get(track) is False for track in tracks_in):
            return False
        alive = {holder.track for holder in seen.holders.values() if not holder.leaving}
        missing = sorted(
            track for track, comes in in_ring.items() if comes and track not in tracks_in | alive
        )
        if missing:
            self.remarks.append(
                f"cutover refused: nobody of track {', '.join(missing)} holds an ID; start its pods, "
                "or take the track out of the record `tracks`"
            )
        return bool(missing)

    def _pins(self, tracks: Tracks) -> dict[str, list[int]]:
        if self._pins_of[0] is not tracks:
            pins = {track: partitions for track, partitions in tracks.pins(self._names).items() if partitions}
            self._pins_of = tracks, pins
        return self._pins_of[1]


def problem_of(ring: RingRecord, names: Names) -> str:
    """Why this pod must not change *ring*; "" when it may."""
    if ring.algorithm != ALGORITHM:
        return (
            f"the ring's algorithm is {ring.algorithm}, this version knows {ALGORITHM}: "
            "a newer version has to lead; update this pod"
        )
    if ring.partitions != names.partitions:
        return (
            f"PARTITIONS: is {names.partitions}, the ring has {ring.partitions}: "
            "it must be the same in the whole fleet; correct it"
        )
    return ""


def _covers(members: Mapping[str, Member], pins: Mapping[str, list[int]]) -> bool:
    """Whether every partition has somebody to go to."""
    return any(member.track not in pins for member in members.values())


def _reason(change: _Change) -> str:
    fresh = change.joins - change.leaves
    parts = [(fresh, "in"), (change.leaves, "out"), (change.crossed, "out with its track")]
    told = [f"{_some(names)} {what}" for names, what in parts if names]
    return "; ".join(told) or "chambers of tracks changed"


def _some(names: Iterable[str]) -> str:
    """A few names, and how many there are: ``defender-1, defender-2 and 13 more``."""
    shown = sorted(names)
    rest = len(shown) - NAMES_SHOWN
    return ", ".join(shown) if rest <= 0 else f"{', '.join(shown[:NAMES_SHOWN])} and {rest} more"
