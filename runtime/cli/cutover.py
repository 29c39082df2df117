"""``defender cutover`` and ``track``: which tracks make up the ring, and which chambers a canary gets.

Both write the key ``tracks``; the leader commits the ring that follows from it, in one version.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

from runtime.bucket import KEEP, Bucket, Entry, Keep
from runtime.cli import ring, terminal
from runtime.cli.command import Json, NotDone, NoWait, Timeout, Yes, bucket, consent, wait
from runtime.cli.ring import Plan, plan_lines, planned
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.fleet_report import admitted, named, numbers
from runtime.fleet_snapshot import Snapshot
from runtime.identity import Claim
from runtime.membership import State
from runtime.names import Names, name_problem
from runtime.ownership_record import State as Ownership
from runtime.ownership_record import decode, partition_of_key
from runtime.records import TRACKS_KEY, Member, RingRecord, Tracks

# --- what follows from tracks ---------------------------------------------------------------------


def future(snapshot: Snapshot, tracks: Tracks, names: Names) -> RingRecord:
    """The ring record that the leader is to commit under *tracks*, with the holders of now. Pure."""
    members = {
        stable_id: Member(claim.track, claim.weight)
        for stable_id, claim in snapshot.claims.items()
        if admitted(tracks, claim) and _stays(snapshot, claim)
    }
    ring = snapshot.ring or RingRecord(0, snapshot.partitions)
    return msgspec.structs.replace(ring, members=members, pins=tracks.pins(names))


def _stays(snapshot: Snapshot, claim: Claim) -> bool:
    beat = snapshot.heartbeats.get(claim.pod_uid)
    return beat is None or beat.state is not State.LEAVING


def only(snapshot: Snapshot, track: str) -> Tracks:
    """Tracks under which *track* alone makes up the ring. Pure."""
    known = {claim.track for claim in snapshot.claims.values()} | snapshot.tracks.in_ring.keys()
    known |= snapshot.tracks.chambers.keys() | {track}
    if snapshot.layout:
        known |= {member.track for member in snapshot.layout.members.values()}
    return Tracks(in_ring={one: one == track for one in sorted(known)})


def objections(snapshot: Snapshot, track: str) -> list[str]:
    """Why *track* should not make up the ring alone now; empty when nothing speaks against it. Pure."""
    holders = [claim for claim in snapshot.claims.values() if claim.track == track]
    alive = [claim for claim in holders if snapshot.lives(claim.pod_uid)]
    members = snapshot.layout.members if snapshot.layout else {}
    ready = [
        claim
        for claim in alive
        for beat in [snapshot.heartbeats[claim.pod_uid]]
        if beat.state is State.ACTIVE and (beat.warm or claim.stable_id in members)
    ]
    found = []
    if not alive:
        found.append(f"no living defender of track {track} holds an ID: start some, with RING_JOIN=manual")
    elif len(ready) < len(members):
        few = f"{len(alive)} of track {track} hold an ID, {len(ready)} of them warm"
        found.append(f"{few}; the ring has {len(members)} members: start more, or wait until they are warm")
    if snapshot.frozen is not None:
        found.append(f"the ring is frozen by {snapshot.frozen.by}: defender unfreeze")
    return found


# --- cutover --------------------------------------------------------------------------------------


def cutover(
    track: Annotated[str, typer.Argument(help="The track that is to have the whole ring.")],
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Also with too few warm defenders.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = 300,
    json: Json = False,
) -> None:
    """Give the whole ring to one track: one ring version, every partition handed over warm."""
    done = terminal.run(_cutover(terminal.settings(), track, yes, force, 0.0 if no_wait else timeout))
    if json:
        terminal.print_json(done)
    elif done["seconds"] is None:
        terminal.stdout().print(f"track {track} is to have the ring; defender status tells how far it is")
    else:
        terminal.stdout().print(
            f"track {track} has all {done['partitions']} partitions "
            f"after {done['seconds']:.1f} s{_gaps(done)}"
        )


async def _cutover(settings: Settings, track: str, yes: bool, force: bool, wait_s: float) -> dict[str, Any]:
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        layout = ring.committed(snapshot)
        against = objections(snapshot, track)
        if against and not force:
            raise NotDone(f"no cutover to {track}: {'; '.join(against)}; --force does it all the same")
        tracks = only(snapshot, track)
        plan = planned(layout, future(snapshot, tracks, settings.names))
        _show(plan)
        consent(f"give the ring to track {track}?", yes)
        assignments = bucket(connection, settings, settings.nats_kv_assignments)
        gaps = Gaps()
        watching = await assignments.watch(gaps.note, pattern="partition.*")
        try:
            await assignments.change(TRACKS_KEY, lambda _: msgspec.json.encode(tracks))
            took_s = None
            if wait_s:
                _, took_s = await wait(
                    connection,
                    settings,
                    lambda seen: left_for(seen, track),
                    what=f"cutover to {track}",
                    timeout_s=wait_s,
                )
        finally:
            await watching.stop()
        return {
            "track": track,
            "partitions": snapshot.partitions,
            "joins": plan.joins,
            "leaves": plan.leaves,
            "moves": len(plan.moves),
            "seconds": took_s if took_s is None else round(took_s, 3),
            "gaps_ms": sorted(gaps.closed_ms),
        }


def left_for(snapshot: Snapshot, track: str) -> str:
    """What is missing until *track* has every partition; empty when it has. Pure."""
    layout = snapshot.layout
    strangers = [one for one, member in layout.members.items() if member.track != track] if layout else []
    if layout is None or strangers:
        return "the leader has not committed the ring yet"
    missing = 0
    for partition in range(snapshot.partitions):
        record = snapshot.owner(partition)
        missing += record is None or record.owner not in layout.members
    return f"{missing} of {snapshot.partitions} partitions left" if missing else ""


class Gaps:
    """How long each partition was between two owners, by when its records arrived here."""

    def __init__(self) -> None:
        self.closed_ms: list[float] = []
        self._released_s: dict[int, float] = {}

    def note(self, entry: Entry) -> None:
        partition, now_s = partition_of_key(entry.key), time.monotonic()
        if partition is None:
            return
        with contextlib.suppress(msgspec.MsgspecError):
            state = decode(entry.value).state
            if state is Ownership.RELEASED:
                self._released_s[partition] = now_s
            elif state is Ownership.OWNED and partition in self._released_s:
                self.closed_ms.append(round((now_s - self._released_s.pop(partition)) * 1e3, 1))


def _gaps(done: dict[str, Any]) -> str:
    gaps = done["gaps_ms"]
    if not gaps:
        return ""
    return f"; between owners: {gaps[len(gaps) // 2]:.0f} ms in the middle, {gaps[-1]:.0f} ms at most"


def _show(plan: Plan) -> None:
    for line in plan_lines(plan):
        terminal.stderr().print(line)


# --- track ----------------------------------------------------------------------------------------


class Pinned(Struct, frozen=True):
    """A partition of a canary's chambers, and the other chambers that go with it."""

    partition: int
    chambers: list[str]
    others: list[str]


def track(
    track: Annotated[str, typer.Argument(help="The track, as in TRACK of its defenders.")],
    chambers: Annotated[
        str | None, typer.Option(help="It gets these chambers and no others, such as ETCH-01,ETCH-02.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="It gets no chambers by name any more.")] = False,
    into: Annotated[bool, typer.Option("--in", help="Its defenders are in the ring.")] = False,
    out: Annotated[bool, typer.Option("--out", help="Its defenders are not in the ring.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Nothing is said of it: RING_JOIN decides.")] = False,
    json: Json = False,
) -> None:
    """Say what a track gets: a share of the ring, some chambers by name (a canary), or nothing."""
    if sum((chambers is not None, clear, into, out, auto)) != 1:
        raise InputError("say one thing of the track: --chambers, --clear, --in, --out or --auto")
    wanted = [name for name in (chambers or "").split(",") if name]
    _check_chambers(wanted, chambers)

    def ruled(tracks: Tracks) -> Tracks:
        in_ring, pinned = dict(tracks.in_ring), dict(tracks.chambers)
        if wanted or clear or auto:
            pinned.pop(track, None)
        if wanted:
            pinned[track] = sorted(set(wanted))
        if auto:
            in_ring.pop(track, None)
        if into or out:
            in_ring[track] = into
        return Tracks(in_ring, pinned)

    done = terminal.run(_rule(terminal.settings(), track, wanted, ruled))
    if json:
        terminal.print_json(done)
        return
    for line in track_lines(done, track):
        terminal.stdout().print(line)


def _check_chambers(wanted: list[str], given: str | None) -> None:
    if given is not None and not wanted:
        raise InputError("--chambers names none: give names such as ETCH-01,ETCH-02, or --clear")
    for name in wanted:
        problem = name_problem(name)
        if problem:
            raise InputError(f"--chambers: {name!r} {problem}")


class Ruled(Struct, frozen=True):
    """What was said of tracks, and what follows."""

    tracks: Tracks
    changed: bool
    holders: int
    """Living defenders of the track that hold an ID."""
    pinned: list[Pinned]
    plan: Plan | None


async def _rule(
    settings: Settings, track: str, wanted: list[str], ruled: Callable[[Tracks], Tracks]
) -> Ruled:
    names = settings.names
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        tracks = ruled(snapshot.tracks)
        partitions = sorted({names.partition_of(name) for name in wanted})
        _check_pins(snapshot.tracks, track, partitions, names)
        pinned = [await _pinned(connection, names, partition, wanted) for partition in partitions]
        before = await _write(bucket(connection, settings, settings.nats_kv_assignments), ruled)
        layout = snapshot.layout
        return Ruled(
            tracks=tracks,
            changed=ruled(before) != before,
            holders=sum(
                claim.track == track and snapshot.lives(claim.pod_uid) for claim in snapshot.claims.values()
            ),
            pinned=pinned,
            plan=planned(layout, future(snapshot, tracks, names)) if layout else None,
        )


def _check_pins(tracks: Tracks, track: str, partitions: list[int], names: Names) -> None:
    """Raises InputError for a partition that another track has by name."""
    for other, taken in tracks.pins(names).items():
        both = sorted(set(taken) & set(partitions)) if other != track else []
        if both:
            raise InputError(
                f"partition {numbers(both)} goes to track {other} by the name of another chamber: "
                f"defender track {other} --clear first, or choose chambers of other partitions"
            )


async def _write(assignments: Bucket, ruled: Callable[[Tracks], Tracks]) -> Tracks:
    """Changes the key; what it said before."""
    before = [Tracks()]

    def update(value: bytes | None) -> bytes | Keep | None:
        before[0] = Tracks()
        with contextlib.suppress(msgspec.MsgspecError):
            before[0] = msgspec.json.decode(value or b"{}", type=Tracks)
        after = ruled(before[0])
        if after == before[0]:
            return KEEP
        return msgspec.json.encode(after) if after != Tracks() else None

    await assignments.change(TRACKS_KEY, update)
    return before[0]


async def _pinned(connection: Connection, names: Names, partition: int, wanted: list[str]) -> Pinned:
    """The partition with its chambers, as far as verdicts of them are stored."""
    subject = names.verdict(partition)
    told = await connection.api(
        f"STREAM.INFO.{names.verdicts_stream(partition)}", {"subjects_filter": subject}
    )
    known = {name.rpartition(".")[2] for name in told["state"].get("subjects") or ()}
    mine = [name for name in wanted if names.partition_of(name) == partition]
    return Pinned(partition, sorted(mine), sorted(known - set(mine)))


def track_lines(done: Ruled, track: str) -> list[str]:
    """What became of a track, for people."""
    lines = [] if done.changed else ["nothing changes: that is how it was"]
    if track in done.tracks.chambers:
        lines.append(f"track {track} gets these partitions, and no others:")
        for pin in done.pinned:
            others = f"; with it go {terminal.clean(', '.join(pin.others))}" if pin.others else ""
            lines.append(f"  {pin.partition}: {', '.join(pin.chambers)}{others}")
    elif track in done.tracks.in_ring:
        lines.append(f"track {track} is {'in' if done.tracks.in_ring[track] else 'out of'} the ring")
    else:
        lines.append(f"nothing is said of track {track}: RING_JOIN of its defenders decides")
    if not done.holders:
        lines.append(f"no living defender of track {track} holds an ID yet; until then the others have all")
    if done.plan is not None:
        lines.append(f"{len(done.plan.moves)} partitions move")
        lines += [f"enter: {named(done.plan.joins)}"] if done.plan.joins else []
        lines += [f"leave: {named(done.plan.leaves)}"] if done.plan.leaves else []
    return lines
