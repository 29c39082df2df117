"""Which pod a scale-down takes first: this pod's annotation `controller.kubernetes.io/pod-deletion-cost`.

A ReplicaSet deletes, of the pods that are Ready, those of the lowest cost first. A holder's cost falls with
the number of its stable ID: the highest IDs go first, as a StatefulSet's do, and the ring loses members at
its end. A pod without an ID goes before any of them.

    idle: -1        not said yet: 0, the platform's default        defender-9999: 1  ...  defender-0: 10000

The pod says it when it has taken an ID, or stands by, and again when that changes, never more often than
every PACE_S. It is a hint: whatever comes of it, the pod serves on. A refusal is logged once and asked about
again much later, an overloaded API server is left alone for longer and longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from runtime import log
from runtime.config import ID_MAX, Identity, PodDeletionCost
from runtime.errors import DefenderError
from runtime.frames import backoff_s
from runtime.kubernetes_api import ApiRefused, ApiServer, ApiUnanswered, ApiUnusable

if TYPE_CHECKING:
    from runtime.config import Settings

ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
COST_IDLE: Final = -1
REQUEST_S: Final = 5.0
"""What a request may take, connection and handshake included."""
SPREAD_S: Final = 2.0
"""A change is said after a time drawn from 0 to this: a fleet's start does not come at once, and what changes
again meanwhile is said once."""
PACE_S: Final = 5.0
"""At least this between two requests."""
RETRY_FIRST_S: Final = 5.0
RETRY_MOST_S: Final = 300.0
REFUSED_S: Final = 600.0
"""To the next request after a refusal that waiting does not heal, unless somebody grants the permission."""
PASSING: Final = frozenset({401, 408, 409, 429})
"""Refusals that may pass by themselves, besides 5xx: a token that is being rotated, a busy server."""
_REMEDIES: Final = {
    403: "grant its service account the verb patch on pods, by a Role and a RoleBinding, or set"
    " POD_DELETION_COST=off",
    404: "set POD_NAME by the downward API (metadata.name), or POD_DELETION_COST=off",
    422: "set POD_NAME and POD_UID by the downward API (metadata.name, metadata.uid)",
}
_NO_ACCOUNT: Final = "set automountServiceAccountToken to true, or POD_DELETION_COST=off"
_LOG = log.get("deletion_cost")


class Outcome(StrEnum):
    """What came of a request, for the metrics."""

    SET = "set"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


def cost(stable_id: str | None) -> int:
    """Of a pod that holds *stable_id*, None for none; within int32, and above 0 for every holder. Pure."""
    if stable_id is None:
        return COST_IDLE
    return ID_MAX + 1 - int(stable_id.rpartition("-")[2])


def pause_s(error: DefenderError, attempt: int, random: Random) -> float:
    """Seconds to the next request after the *attempt*-th failure (0, 1, ...) in a row. Pure."""
    if isinstance(error, ApiUnusable) or (
        isinstance(error, ApiRefused) and error.status < 500 and error.status not in PASSING
    ):
        return backoff_s(0, REFUSED_S, REFUSED_S, random)
    wait_s = backoff_s(attempt, RETRY_FIRST_S, RETRY_MOST_S, random)
    if isinstance(error, ApiRefused):
        asked_s = min(error.retry_after_s, RETRY_MOST_S)
        wait_s = max(wait_s, asked_s + random.uniform(0.0, SPREAD_S))
    return max(wait_s, PACE_S)


class DeletionCost:
    """Keeps the annotation of one pod. `want` says what it should be; `run` is the task that writes it.

    *environ* tells of the cluster. Outside of one, with IDs that are not claimed (a StatefulSet does not read
    the annotation), and with POD_DELETION_COST=off nothing is done.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], random: Random) -> None:
        self.written: int | None = None
        """What the API server has taken from this process."""
        self.requests = dict.fromkeys(Outcome, 0)
        self._settings, self._environ, self._random = settings, environ, random
        self._wanted: int | None = None
        self._changed = asyncio.Event()
        self._told = ""
        """The kind of failure that was logged, "" after a success."""

    def want(self, stable_id: str | None) -> None:
        """The pod holds this ID now, or none."""
        if self._settings.identity is Identity.CLAIM:
            self._wanted = cost(stable_id)
            self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled, or at once where there is nothing to do. It never fails."""
        try:
            server = self._server()
            if server is not None:
                await self._keep(server)
        except ApiUnusable as error:
            _LOG.warning("pod deletion cost not set", cause=str(error))
        except Exception as error:  # a hint to the platform is no reason to end a pod, whatever breaks
            _LOG.error("pod deletion cost is kept no more", exc=error)

    def _server(self) -> ApiServer | None:
        settings = self._settings
        if settings.pod_deletion_cost is PodDeletionCost.OFF or settings.identity is not Identity.CLAIM:
            _LOG.debug("pod deletion cost is off", identity=settings.identity.value)
            return None
        server = ApiServer.discovered(self._environ, Path(settings.service_account_dir))
        if server is None:
            _LOG.debug("pod deletion cost is off: not in Kubernetes")
        return server

    async def _keep(self, server: ApiServer) -> None:
        failures = 0
        while True:
            self._changed.clear()
            if self._wanted is None or self._wanted == self.written:
                await self._changed.wait()
                await asyncio.sleep(self._random.uniform(0.0, SPREAD_S))
                continue
            error = await self._write(server, self._wanted)
            if error is None:
                failures = 0
                await asyncio.sleep(PACE_S)
            else:
                self._tell(error)
                await asyncio.sleep(pause_s(error, failures, self._random))
                failures += 1

    async def _write(self, server: ApiServer, value: int) -> DefenderError | None:
        metadata: dict[str, object] = {"annotations": {ANNOTATION: str(value)}}
        if self._environ.get("POD_UID"):  # so that no other pod of the same name is ever meant
            metadata["uid"] = self._settings.pod_uid
        try:
            await server.patch_pod(self._settings.pod_name, {"metadata": metadata}, timeout_s=REQUEST_S)
        except ApiRefused as error:
            self.requests[Outcome.REFUSED] += 1
            return error
        except ApiUnanswered as error:
            self.requests[Outcome.UNANSWERED] += 1
            return error
        except ApiUnusable as error:
            return error
        self.requests[Outcome.SET] += 1
        self.written, self._told = value, ""
        _LOG.info("pod deletion cost set", cost=value)
        return None

    def _tell(self, error: DefenderError) -> None:
        """Once for each kind of failure; the texts of one kind differ."""
        kind = str(error.status) if isinstance(error, ApiRefused) else type(error).__name__
        if kind == self._told:
            return
        self._told = kind
        remedy = _NO_ACCOUNT if isinstance(error, ApiUnusable) else "it is tried again"
        if isinstance(error, ApiRefused):
            remedy = _REMEDIES.get(error.status, remedy)
        _LOG.warning("pod deletion cost not set", cause=str(error), remedy=remedy, serves="as ever")
