"""Heartbeats: each defender tells every 2 s that it lives, who it is and how it fares.

The key is the pod's UID, written by that pod alone and gone when its bucket's TTL passes. Nothing is
decided by a heartbeat here: IDs by claims, partitions by ownership records. People see it in
``defender status``, and pods that wait find their order in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import platform
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec

from runtime import log
from runtime.bucket import Bucket
from runtime.bus import TRANSIENT

_LOG = log.get("membership")
_PACKAGES: Final = ("tfdc-defender", "nats-py", "msgspec")


class State(StrEnum):
    """What a defender is doing."""

    STARTING = "starting"
    STANDBY = "standby"
    ACTIVE = "active"
    DRAINING = "draining"
    """Finishes, hands over to a successor or releases."""
    LEAVING = "leaving"
    """Goes without a successor: the ring is to go on without it; it serves until its partitions are taken."""
    DRAINED = "drained"
    """Idle by an operator's word; claims nothing."""


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a defender fares; sums over its workers."""

    workers: int = 0
    partitions: int = 0
    reports: int = 0
    samples: int = 0
    lag: int = 0
    slots_used: int = 0
    slots_total: int = 0
    history_down: bool = False
    """Whether the history of a worker takes nothing, so that its reports wait in NATS."""
    rebuild_left: int = 0
    """Chambers that are served, and whose charts are still to be read from the history."""


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a heartbeat's key. Readers ignore what they do not know."""

    pod_uid: str
    pod_name: str
    track: str
    revision: str
    state: State
    at: datetime
    stable_id: str | None = None
    standby: str = ""
    warm: bool = False
    """A standby that could take over at once: connected, kernels loaded, history reachable."""
    session: str = ""
    """Tells a pod's restarted process from the one before."""
    joined: int = 0
    """Revision of this process's first heartbeat, by which pods queue; 0 in that one itself."""
    ring_version: int = 0
    partitions: list[int] = []
    """Those that its workers serve."""
    load: Load = Load()
    versions: dict[str, str] = {}


@functools.cache  # it reads files: a sixth of what an idle supervisor did, asked at every heartbeat
def versions() -> dict[str, str]:
    """Versions of Python and of what decides how we behave."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Heart:
    """Writes the heartbeat of one pod every *every_s*: what *beat* returns at that time."""

    def __init__(self, bucket: Bucket, beat: Callable[[], Heartbeat], *, every_s: float) -> None:
        self._bucket = bucket
        self._beat = beat
        self._every_s = every_s
        self._joined = 0
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_beating())

    async def beat_now(self) -> int:
        """One heartbeat, for a change of state that others should see at once. Its revision."""
        beat = self._beat()
        if self._joined:
            beat = msgspec.structs.replace(beat, joined=self._joined)
        revision = await self._bucket.put(beat.pod_uid, msgspec.json.encode(beat))
        self._joined = self._joined or revision
        return revision

    async def stop(self) -> None:
        """Beat no more, and take the key away: who left on purpose is not missed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(*TRANSIENT):
            await self._bucket.change(self._beat().pod_uid, lambda _: None)

    async def _keep_beating(self) -> None:
        cause = ""
        while True:
            try:
                await self.beat_now()
                cause = ""
            except TRANSIENT as error:
                if str(error) != cause:
                    cause = str(error)
                    _LOG.warning("heartbeat not written", cause=cause)
            await asyncio.sleep(self._every_s)
