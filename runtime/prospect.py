"""How the plan of handoffs sees the fleet: the view, and the ring as it will be after a cutover."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runtime.fleet_report import admitted
from runtime.handoff import Standing
from runtime.records import Layout, Member

if TYPE_CHECKING:
    from runtime.fleet_view import FleetView
    from runtime.ownership_record import Owner


class Outlook:
    """The protocol `runtime.handoff.FleetSeen` over a view, for the holder *me*."""

    def __init__(self, view: FleetView, me: Owner, silence_s: float) -> None:
        self._view, self._me, self._silence_s = view, me, silence_s
        self._prospect: tuple[object, Layout] | None = None

    @property
    def layout(self) -> Layout | None:
        return self._view.layout

    @property
    def prospect(self) -> Layout | None:
        """The ring of our track's holders, while we are not in the ring and wait for a cutover."""
        layout, claims = self._view.layout, self._view.claims
        mine = claims.get(self._me.stable_id)
        if layout is None or mine is None or self._me.stable_id in layout.members:
            return None
        if admitted(self._view.tracks, mine.value):
            return None  # it joins with the next change, not instead of the others
        track = mine.value.track
        members = {
            stable_id: Member(track, seen.value.weight)
            for stable_id, seen in sorted(claims.items())
            if seen.value.track == track
        }
        key = (layout.version, members)
        if self._prospect is None or self._prospect[0] != key:
            record = msgspec.structs.replace(layout.record, members=members, pins={})
            self._prospect = key, Layout(record)
        return self._prospect[1]

    def standing(self, partition: int) -> Standing:
        return Standing(*self._view.standing(partition))

    def holder(self, stable_id: str) -> str | None:
        seen = self._view.claims.get(stable_id)
        return seen.value.pod_uid if seen is not None else None

    def holds_claim(self, pod_uid: str) -> bool:
        return pod_uid in self._view.held

    def is_gone(self, pod_uid: str) -> bool:
        return self._view.is_gone(pod_uid, silence_s=self._silence_s)
