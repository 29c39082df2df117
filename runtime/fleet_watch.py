"""The fleet as this pod's view has it, told again and again: for the page ``/ring``, metrics and alarms."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from runtime.fleet_report import RingReport, report
from runtime.fleet_snapshot import Since, Snapshot, View, of_view

if TYPE_CHECKING:
    from runtime.config import Settings

FRESH_S: Final = 0.5
"""A snapshot that is younger is told again: 200 pods with 1,024 partitions cost milliseconds each time."""


class Viewer(Protocol):
    """Who has a view of the fleet; None until it is connected. `runtime.pod_status.PodStatus` is one."""

    @property
    def settings(self) -> Settings: ...

    @property
    def view(self) -> View | None: ...


class FleetWatch:
    """Looks at the fleet when asked, and remembers since when partitions have been in trouble.

    Call `look` at least every few seconds, or "since when" is known no better than that. *clock* is the
    view's, monotonic seconds.
    """

    def __init__(
        self,
        viewer: Viewer,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._viewer, self._clock, self._now = viewer, clock, now
        self._seen: Snapshot | None = None
        self._seen_s = 0.0
        self._unowned, self._unserved, self._doubly_owned = Since(), Since(), Since()

    @property
    def pod_uid(self) -> str:
        """Of the pod whose view it is."""
        return self._viewer.settings.pod_uid

    def look(self) -> Snapshot:
        """The fleet now, or a moment ago; an empty one while there is no view."""
        settings, view, now_s = self._viewer.settings, self._viewer.view, self._clock()
        if self._seen is not None and now_s - self._seen_s < FRESH_S:
            return self._seen
        if view is None:
            return Snapshot(self._now(), settings.partitions, silence_s=settings.silence_s)
        self._seen = of_view(
            view,
            partitions=settings.partitions,
            silence_s=settings.silence_s,
            now=self._now(),
            now_s=now_s,
        )
        self._seen_s = now_s
        self._unowned.note(self._seen.unowned, now_s)
        self._unserved.note(self._seen.unserved, now_s)
        self._doubly_owned.note(self._seen.doubly_owned, now_s)
        return self._seen

    def longest_s(self) -> tuple[float, float, float]:
        """For how long the longest has been unowned, unserved, doubly owned; 0 without any."""
        now_s = self._seen_s
        return (
            self._unowned.longest_s(now_s),
            self._unserved.longest_s(now_s),
            self._doubly_owned.longest_s(now_s),
        )

    def ring(self) -> RingReport:
        """For the page."""
        return report(self.look())
