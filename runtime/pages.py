"""The pod's HTTP pages, put together from its status. Imports what is slow to import; the supervisor waits
with it until the claim is through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from runtime import http
from runtime.config import Settings
from runtime.counters import Board
from runtime.fleet_watch import FleetWatch
from runtime.membership import State
from runtime.metrics import Metrics, PodState, Role
from runtime.pod_status import PodStatus

ROLES = {
    State.STARTING: Role.STARTING,
    State.STANDBY: Role.STANDBY,
    State.ACTIVE: Role.HOLDER,
    State.DRAINING: Role.DRAINING,
    State.LEAVING: Role.DRAINING,
    State.DRAINED: Role.STANDBY,
}


LOOK_S: Final = 2.0
"""Between two looks at the fleet: by them it is known since when something is wrong."""


async def run(settings: Settings, board: Board, status: PodStatus, on_port: Callable[[int], None]) -> None:
    """Serves the pages until it is cancelled. *on_port* hears where. Raises SettingsError."""
    watch = FleetWatch(status)
    state = PodState(settings.pod_name, settings.track, settings.revision)

    def refresh() -> None:
        state.stable_id, state.role = status.stable_id or "", ROLES[status.state]
        state.lease_renewed_ns = int(status.lease.renewed_s * 1e9) if status.lease else 0
        state.rebuild_s, state.claims = status.rebuild_s, status.claims
        state.renewals, state.epoch_changes = status.renewals, status.tally.acquired
        state.tally, state.leader = status.tally, status.leader
        state.deletion_cost = status.deletion_cost
        if status.pool is not None:
            state.worker_restarts = {h.index: h.restarts for h in status.pool.handles}

    metrics = Metrics(board, state, refresh=refresh, watch=watch)
    server = await http.serve(settings.http_host, settings.http_port, status, metrics, watch)
    on_port(server.port)
    try:
        while True:
            watch.look()
            await asyncio.sleep(LOOK_S)
    finally:
        await server.close()
