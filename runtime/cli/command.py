"""What the commands that change a fleet share: which pod is meant, consent, waiting with progress."""

from __future__ import annotations

import asyncio
import getpass
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Annotated, Final, NamedTuple

import typer

from runtime import fleet_report
from runtime.bucket import Bucket
from runtime.cli import terminal
from runtime.cli.snapshot import read_snapshot
from runtime.config import Settings
from runtime.connection import Connection
from runtime.errors import DefenderError, InputError
from runtime.fleet_snapshot import Snapshot

POLL_S: Final = 0.3

Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Give the order and leave.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for it; the order stands after that.")]


class NotDone(DefenderError):
    """A command was refused, or what it ordered did not happen in time; its message says what to do."""

    exit_code = 75


class Target(NamedTuple):
    """The pod that a person means; *stable_id* is None for one without an ID."""

    pod_uid: str
    pod_name: str
    track: str
    stable_id: str | None

    @property
    def shown(self) -> str:
        return f"{self.stable_id} ({self.pod_name})" if self.stable_id else self.pod_name


def target(snapshot: Snapshot, whom: str) -> Target:
    """The pod of a stable ID, a pod's name or a pod's UID. Raises InputError when none, or several, fit."""
    holds = {claim.pod_uid: claim for claim in snapshot.claims.values()}
    idle = {uid: beat for uid, beat in snapshot.heartbeats.items() if uid not in holds}
    pods = [Target(c.pod_uid, c.pod_name, c.track, c.stable_id) for c in holds.values()]
    pods += [Target(b.pod_uid, b.pod_name, b.track, None) for b in idle.values()]
    found = [pod for pod in pods if whom == pod.stable_id] or [
        pod for pod in pods if whom in (pod.pod_uid, pod.pod_name)
    ]
    if len(found) > 1:
        uids = ", ".join(pod.pod_uid for pod in found)
        raise InputError(f"{len(found)} pods are called {whom}: name one by its UID ({uids})")
    if found:
        return found[0]
    if whom in snapshot.vacancies:
        raise InputError(
            f"{whom} is in the ring, but nobody holds it; to take it out: defender forget {whom}"
        )
    known = fleet_report.named(sorted(pod.stable_id or pod.pod_name for pod in pods)) or "none at all"
    raise InputError(f"no defender has the ID, the pod name or the pod UID {whom!r}; there are {known}")


def asker() -> str:
    """Who gives the order, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def consent(question: str, yes: bool) -> None:
    """Asks on a terminal. Raises InputError where nobody can be asked, typer.Exit after a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here: add --yes to go on")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def bucket(connection: Connection, settings: Settings, name: str) -> Bucket:
    return Bucket(connection, name, random=Random(), timeout_s=settings.request_timeout_s)


async def wait(
    connection: Connection,
    settings: Settings,
    left: Callable[[Snapshot], str],
    *,
    what: str,
    timeout_s: float,
) -> tuple[Snapshot, float]:
    """Reads the fleet again and again until *left* says nothing more; tells on stderr what is left.

    Returns the last snapshot and the seconds that it took. Raises NotDone after *timeout_s*.
    """
    console = terminal.stderr()
    begun_s = time.monotonic()
    told = ""
    with console.status(what) if console.is_terminal else nullcontext() as spinner:
        while True:
            snapshot = await read_snapshot(connection, settings)
            still = left(snapshot)
            took_s = time.monotonic() - begun_s
            if not still:
                return snapshot, took_s
            if took_s > timeout_s:
                raise NotDone(f"{what}: after {took_s:.0f} s {still}{_why(snapshot)}")
            if spinner is not None:
                spinner.update(f"{what}: {still} ({took_s:.0f} s)")
            elif still != told:
                told = still
                console.print(f"{what}: {still}")
            await asyncio.sleep(POLL_S)


def _why(snapshot: Snapshot) -> str:
    """What may hold a change up."""
    reasons = []
    if snapshot.frozen is not None:
        reasons.append(f"the ring is frozen by {snapshot.frozen.by}: defender unfreeze")
    if snapshot.leader is None:
        reasons.append("nobody leads: defender status")
    else:
        reasons += snapshot.leader.remarks
    return f"; {'; '.join(terminal.clean(reason) for reason in reasons)}" if reasons else ""
