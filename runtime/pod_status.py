"""What a pod says of itself: its heartbeat, its probes, its figures. The supervisor keeps it up to date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from runtime import pipes
from runtime.counters import Board, Counter
from runtime.fleet_report import admitted
from runtime.membership import Heartbeat, Load, State, versions
from runtime.pool import WorkerState
from runtime.tally import Tally

if TYPE_CHECKING:
    from runtime.bus import Connection
    from runtime.config import Settings
    from runtime.deletion_cost import DeletionCost
    from runtime.fleet_view import FleetView
    from runtime.identity import Lease
    from runtime.leader import Leader
    from runtime.pool import Pool
    from runtime.steward import Steward


class PodStatus:
    """The state of one pod. Implements `runtime.http.Probes`."""

    def __init__(self, settings: Settings, board: Board, session: str) -> None:
        self.settings, self.board, self.session = settings, board, session
        self.state = State.STARTING
        self.standby = ""
        self.loaded = False
        """Whether the kernels are loaded."""
        self.served = False
        """Whether it was ready once as a holder."""
        self.tally = Tally()
        self.renewals = 0
        self.claims = 0
        self.rebuild_s = 0.0
        self.rebuilt_reports = 0
        self.connection: Connection | None = None
        self.view: FleetView | None = None
        self.leader: Leader | None = None
        self.lease: Lease | None = None
        self.pool: Pool | None = None
        self.steward: Steward | None = None
        self.deletion_cost: DeletionCost | None = None

    def hold(self, lease: Lease) -> None:
        """An ID is held."""
        self.lease, self.state, self.standby = lease, State.ACTIVE, ""
        self.claims += 1
        self._tell_cost()

    def stand_by(self, reason: str) -> None:
        """No ID is held, for this reason."""
        self.state, self.standby = State.STANDBY, reason
        self._tell_cost()

    def let_go(self) -> None:
        """No ID is held any more, and the workers have left: their gauges are no longer true."""
        self.lease = self.pool = self.steward = None
        for index in range(self.board.workers):
            self.board.worker(index).reset_gauges()
        self._tell_cost()

    def _tell_cost(self) -> None:
        if self.deletion_cost is not None:
            self.deletion_cost.want(self.stable_id)

    def rebuilt(self, word: pipes.Serving) -> None:
        """A worker serves partitions."""
        self.rebuild_s = max(self.rebuild_s, word.rebuild_s)
        self.rebuilt_reports += word.reports

    @property
    def stable_id(self) -> str | None:
        return self.lease.stable_id if self.lease is not None else None

    @property
    def warm(self) -> bool:
        """Whether it could take over at once: a standby an ID, a holder outside the ring its partitions."""
        if not self.loaded or self.state is not State.ACTIVE:
            return self.loaded
        if self.steward is None or not self._workers_ready() or self.history_down:
            return False
        return not self.steward.not_copied()

    def _workers_ready(self) -> bool:
        return self.pool is not None and all(h.state is WorkerState.READY for h in self.pool.handles)

    @property
    def history_down(self) -> list[int]:
        """The workers whose history takes nothing at the moment."""
        workers = self.board.workers if self.pool is not None else 0
        return [index for index in range(workers) if self.board.worker(index).get(Counter.HISTORY_DOWN)]

    # --- probes ---------------------------------------------------------------------------------

    def live(self) -> list[str]:
        """Why the platform should restart this pod: never, while its loop turns (a failure ends it)."""
        return []

    def started(self) -> list[str]:
        """A history that takes nothing ends the start, too: the restart that would follow mends nothing."""
        if self.served or (self.state is State.STANDBY and self.loaded) or self.history_down:
            return []
        return self._not_started()

    def ready(self) -> list[str]:
        """A warm standby is ready; a holder when all that falls to it is served, and its history takes it."""
        nodes = self.settings.cassandra_contact_points
        return self._not_started() + [
            f"worker {index}: the history takes nothing (Cassandra at {nodes}); reports wait in NATS"
            for index in self.history_down
        ]

    def _not_started(self) -> list[str]:
        why: list[str] = []
        if self.connection is None or not self.connection.is_connected:
            why.append(f"no connection to NATS at {self.settings.nats_servers}")
        if self.view is not None and self.view.ring_problem:
            why.append(f"the ring cannot be used: {self.view.ring_problem}")
        if self.state is State.STARTING:
            why.append("no stable ID is claimed yet")
        if self.state in (State.DRAINING, State.LEAVING):
            why.append(self.state.value)
        if self.state is State.STANDBY and not self.loaded:
            why.append("the kernels are being loaded")
        if self.state is State.ACTIVE:
            why += self._not_serving()
        return why

    def _not_serving(self) -> list[str]:
        pool, steward, view, stable_id = self.pool, self.steward, self.view, self.stable_id
        if pool is None or steward is None or view is None or stable_id is None:
            return ["the workers are being started"]
        why = [
            f"worker {handle.index} is {handle.state.value}"
            for handle in pool.handles
            if handle.state is not WorkerState.READY
        ]
        layout = view.layout
        claim = view.claims.get(stable_id)
        joins = claim is None or admitted(view.tracks, claim.value)
        if layout is None:
            why.append("no ring is committed yet")
        elif stable_id not in layout.members and joins:
            why.append(f"{stable_id} is not in the ring yet")
        if missing := steward.not_copied():
            why.append(f"{missing} partitions are not copied yet, for a cutover")
        if unserved := steward.not_served():
            why.append(f"{len(unserved)} partitions are not served yet, the first is {unserved[0]}")
        return why

    # --- the heartbeat --------------------------------------------------------------------------

    def beat(self) -> Heartbeat:
        settings, board = self.settings, self.board
        owned = board.partitions_owned()
        load = Load(
            workers=settings.workers if self.pool is not None else 0,
            partitions=len(owned),
            reports=board.total(Counter.REPORTS),
            samples=board.total(Counter.SAMPLES),
            lag=sum(lag for _, lag in owned.values()),
            slots_used=board.total(Counter.SLOTS_USED),
            slots_total=board.total(Counter.SLOTS_TOTAL),
            history_down=bool(self.history_down),
            rebuild_left=board.total(Counter.REBUILD_LEFT),
        )
        layout = self.view.layout if self.view is not None else None
        return Heartbeat(
            pod_uid=settings.pod_uid,
            pod_name=settings.pod_name,
            track=settings.track,
            revision=settings.revision,
            state=self.state,
            at=datetime.now(UTC),
            stable_id=self.stable_id,
            standby=self.standby,
            warm=self.warm,
            session=self.session,
            ring_version=layout.version if layout is not None else 0,
            partitions=sorted(owned),
            load=load,
            versions=versions(),
        )
