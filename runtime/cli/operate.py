"""``defender drain``, ``forget``, ``freeze``, ``unfreeze``: a word to one pod, or to the leader."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from runtime import control
from runtime.bucket import KEEP, Conflict, Keep
from runtime.cli import terminal
from runtime.cli.command import Json, NotDone, NoWait, Target, Timeout, asker, bucket, target, wait
from runtime.cli.snapshot import entries, read_snapshot
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import InputError
from runtime.fleet_report import admitted, named
from runtime.fleet_snapshot import Snapshot, natural
from runtime.membership import State
from runtime.records import FORGET_PREFIX, FROZEN_KEY, Frozen

Force = Annotated[bool, typer.Option("--force", help="Also where it is refused otherwise.")]


# --- drain ----------------------------------------------------------------------------------------


def drain(
    whom: Annotated[str, typer.Argument(metavar="POD|ID", help="Stable ID, pod name or pod UID.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take part again.")] = False,
    force: Force = False,
    no_wait: NoWait = False,
    timeout: Timeout = 300,
    json: Json = False,
) -> None:
    """Have a defender hand over everything and stay idle; its ID goes to a standby, or out of the ring."""
    wait_s = 0.0 if no_wait or undo else timeout
    done = terminal.run(_drain(terminal.settings(), whom, undo, force, wait_s))
    if json:
        terminal.print_json(done)
    elif undo:
        terminal.stdout().print(f"{done['pod']} takes part again")
    elif no_wait:
        terminal.stdout().print(f"{done['pod']} drains; it has {done['partitions']} partitions")
    else:
        terminal.stdout().print(f"{done['pod']} has no partition any more, after {done['seconds']:.1f} s")


async def _drain(settings: Settings, whom: str, undo: bool, force: bool, wait_s: float) -> dict[str, Any]:
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        pod = target(snapshot, whom)
        if not undo and not force:
            require_heirs(snapshot, pod)
        await _order(connection, settings, pod, control.Drain(undo))
        took_s = 0.0
        if wait_s:
            snapshot, took_s = await wait(
                connection,
                settings,
                lambda seen: _partitions_left(seen, pod),
                what=f"draining {pod.shown}",
                timeout_s=wait_s,
            )
        return {
            "pod": pod.pod_name,
            "pod_uid": pod.pod_uid,
            "stable_id": pod.stable_id,
            "undo": undo,
            "partitions": len(snapshot.owned_by.get(pod.pod_uid, [])),
            "seconds": round(took_s, 3),
        }


def require_heirs(snapshot: Snapshot, pod: Target) -> None:
    """Raises NotDone when nobody could take over what the pod has."""
    if pod.stable_id is None:
        return
    others = [
        claim
        for claim in snapshot.claims.values()
        if claim.pod_uid != pod.pod_uid and snapshot.lives(claim.pod_uid) and admitted(snapshot.tracks, claim)
    ]
    standbys = [beat for beat in snapshot.standbys if beat.track == pod.track and beat.state is State.STANDBY]
    if not others and not standbys:
        problem = "is the only one that lives, and no standby of its track is there: nobody could take over"
        raise NotDone(f"{pod.shown} {problem}; start another defender first, or insist with --force")


async def _order(connection: Connection, settings: Settings, pod: Target, request: control.Request) -> None:
    subject = settings.names.pod(pod.pod_uid)
    try:
        answer = await control.ask(connection, subject, request, timeout_s=settings.request_timeout_s)
    except control.NobodyListens:
        remedy = f"defender forget {pod.stable_id}" if pod.stable_id else "nothing, it holds no ID"
        raise NotDone(
            f"{pod.shown} does not listen: it is gone or cut off. If it is dead: {remedy}"
        ) from None
    if isinstance(answer, control.Refused):
        raise NotDone(f"{pod.shown} refuses: {answer.why}")


def _partitions_left(snapshot: Snapshot, pod: Target) -> str:
    count = len(snapshot.owned_by.get(pod.pod_uid, []))
    return f"{count} partitions left" if count else ""


# --- forget ---------------------------------------------------------------------------------------


def forget(
    stable_id: Annotated[str, typer.Argument(metavar="ID", help="A stable ID whose pod will not come back.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Take an ID out of the ring at once, without the hold-down; and its claim from a silent pod."""
    done = terminal.run(_forget(terminal.settings(), stable_id, force))
    if json:
        terminal.print_json(done)
        return
    claim = f"; the claim of {done['pod']} is deleted" if done["claim_deleted"] else ""
    terminal.stdout().print(f"{stable_id} is to be forgotten{claim}")


async def _forget(settings: Settings, stable_id: str, force: bool) -> dict[str, Any]:
    async with terminal.session(settings) as connection:
        snapshot = await read_snapshot(connection, settings)
        stored = (await entries(connection, settings, settings.nats_kv_stable_ids)).get(stable_id)
        claim = snapshot.claims.get(stable_id)
        members = snapshot.layout.members if snapshot.layout else {}
        if claim is None and stable_id not in members:
            known = named(sorted(members.keys() | snapshot.claims.keys(), key=natural)) or "none"
            raise InputError(f"{stable_id} is neither held nor in the ring; there are {known}")
        if claim is not None and snapshot.lives(claim.pod_uid) and not force:
            raise NotDone(
                f"{stable_id} is held by {claim.pod_name}, which lives (heartbeat "
                f"{snapshot.age_s(claim.pod_uid):.1f} s ago); defender drain {stable_id} hands it over; "
                "--force fences the pod instead"
            )
        note = Frozen(asker(), datetime.now(UTC), "forget")
        assignments = bucket(connection, settings, settings.nats_kv_assignments)
        await assignments.change(FORGET_PREFIX + stable_id, lambda _: msgspec.json.encode(note))
        if claim is not None and stored is not None:
            await _delete_claim(connection, settings, stable_id, stored.revision, force=force)
        return {
            "stable_id": stable_id,
            "pod": claim.pod_name if claim else None,
            "claim_deleted": claim is not None and stored is not None,
        }


async def _delete_claim(
    connection: Connection, settings: Settings, stable_id: str, revision: int, *, force: bool
) -> None:
    """By compare-and-set on what was seen: a holder that renewed meanwhile lives. Raises NotDone."""
    claims = bucket(connection, settings, settings.nats_kv_stable_ids)
    if force:
        await claims.change(stable_id, lambda _: None)
        return
    try:
        await claims.delete(stable_id, revision)
    except Conflict:
        assignments = bucket(connection, settings, settings.nats_kv_assignments)
        await assignments.change(FORGET_PREFIX + stable_id, lambda _: None)
        raise NotDone(
            f"{stable_id}: its claim was renewed just now, so its holder lives; look again"
        ) from None


# --- freeze ---------------------------------------------------------------------------------------


def freeze(
    reason: Annotated[str, typer.Option(help="Why, for those who wonder.")] = "",
    json: Json = False,
) -> None:
    """Forbid changes of the ring: no join, no departure, no cutover; a dead pod's ID stays vacant."""
    wanted = Frozen(asker(), datetime.now(UTC), reason)
    before = terminal.run(_set_frozen(terminal.settings(), wanted))
    if json:
        terminal.print_json({"frozen": before or wanted, "changed": before is None})
    elif before is not None:
        terminal.stdout().print(f"was frozen already, by {terminal.clean(before.by)}: {shown_reason(before)}")
    else:
        terminal.stdout().print("the ring is frozen; defender unfreeze ends it")


def unfreeze(json: Json = False) -> None:
    """Allow changes of the ring again."""
    before = terminal.run(_set_frozen(terminal.settings(), None))
    if json:
        terminal.print_json({"frozen": None, "changed": before is not None})
    elif before is None:
        terminal.stdout().print("the ring was not frozen")
    else:
        who = terminal.clean(before.by)
        terminal.stdout().print(f"the ring may change again; {who} had frozen it: {shown_reason(before)}")


def shown_reason(frozen: Frozen) -> str:
    """The reason as a line may have it."""
    return terminal.clean(frozen.reason) or "no reason given"


async def _set_frozen(settings: Settings, wanted: Frozen | None) -> Frozen | None:
    """Writes the key, unless it is as wanted; what it was before."""
    before: list[Frozen | None] = []

    def update(value: bytes | None) -> bytes | Keep | None:
        before.append(_frozen(value))
        if wanted is None:
            return None
        return KEEP if before[-1] is not None else msgspec.json.encode(wanted)

    async with terminal.session(settings) as connection:
        await read_snapshot(connection, settings)  # says in clear words where no fleet is
        await bucket(connection, settings, settings.nats_kv_assignments).change(FROZEN_KEY, update)
    return before[-1]


def _frozen(value: bytes | None) -> Frozen | None:
    """None also for a value that is none of ours: it freezes nothing."""
    if value is not None:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(value, type=Frozen)
    return None
