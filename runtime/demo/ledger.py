"""The accounts of a show: what the server took from the publisher against what a subscriber got. Pure.

The two sides come in any order. A message is *settled* when everything that must come of it has come:

    verdict   a verdict with as many samples; an alarm besides, when the verdict says so (`runtime.alarms`)
    partly    the same, and the original bytes in REJECTED
    rejected  the original bytes in REJECTED, for the reason that it was broken for
    reset     a verdict that says so

What is never settled is lost; what comes more than once is duplicated; what nobody published, or should
not have come of what was published, is unexpected.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from runtime.alarms import charts_told
from runtime.demo.plan import Stored
from runtime.fab import Expect
from runtime.wire import Alarm, Verdict

_JUDGED: Final = (Expect.VERDICT, Expect.PARTLY, Expect.RESET)
_REJECTED: Final = (Expect.REJECTED, Expect.PARTLY)


@dataclass(slots=True)
class _Account:
    """One message, by its sequence in SAMPLES."""

    stored: Stored | None = None
    verdicts: int = 0
    alarms: int = 0
    rejections: int = 0
    chamber: str = ""
    samples: int = 0
    alarmed: bool = False
    reset: bool = False
    reason: str = ""
    beyond: frozenset[str] = frozenset()
    """Charts whose alarm names rule 1, or that are beyond their limits while an earlier alarm stands open."""
    told: frozenset[str] = frozenset()
    """Charts whose alarm begins by rule 1."""
    seen_ns: int = 0

    def settled(self) -> bool:
        sent = self.stored
        if sent is None:
            return False
        if sent.expect in _REJECTED and (not self.rejections or self.reason != sent.reason):
            return False
        if sent.expect not in _JUDGED:
            return True
        whole = self.chamber == sent.chamber and self.samples == sent.samples
        return bool(self.verdicts) and whole and (bool(self.alarms) or not self.alarmed)

    def strange(self) -> bool:
        """Something came that should not have."""
        if self.stored is None:
            return bool(self.verdicts or self.alarms or self.rejections)
        expect = self.stored.expect
        return (
            (bool(self.verdicts) and (expect not in _JUDGED or self.reset != (expect is Expect.RESET)))
            or (bool(self.rejections) and expect not in _REJECTED)
            or (bool(self.alarms) and not self.alarmed)
        )

    @property
    def repeats(self) -> int:
        return sum(max(0, count - 1) for count in (self.verdicts, self.alarms, self.rejections))


@dataclass
class Excursions:
    """Points of each planted excursion, and how many of them were found: beyond the limits, by an alarm that
    begins with them or stands open."""

    points: Counter[int] = field(default_factory=Counter)
    found_points: Counter[int] = field(default_factory=Counter)

    @property
    def planted(self) -> int:
        return len(self.points)

    @property
    def found(self) -> int:
        """Excursions of which every point so far was found."""
        return sum(self.found_points[number] == points for number, points in self.points.items())


class Ledger:
    """Feed it with `stored`, `verdict`, `alarm` and `rejected`; times are CLOCK_MONOTONIC in ns."""

    def __init__(self) -> None:
        self.excursions = Excursions()
        self.reports = self.verdicts = self.alarms = self.rejected = 0
        self.samples = self.resets = self.chart_alarms = self.planted_alarms = 0
        self.unsettled = 0
        self.first_sent_ns = self.last_seen_ns = 0
        self._accounts: dict[int, _Account] = {}
        self._latencies_ms = array("d")

    # --- the publisher's side -------------------------------------------------------------------

    def stored(self, message: Stored) -> None:
        """The server acknowledged *message*."""
        account = self._accounts.setdefault(message.seq, _Account())
        assert account.stored is None, f"sequence {message.seq} was acknowledged twice"
        account.stored = message
        self.reports += 1
        self.first_sent_ns = min(self.first_sent_ns or message.sent_ns, message.sent_ns)
        for number, _, chart in message.planted:
            self.excursions.points[number] += 1
            self.excursions.found_points[number] += chart in account.beyond
            self.planted_alarms += chart in account.told
        if account.verdicts:
            self._time(account)
        self.unsettled += not account.settled()

    # --- the subscriber's side ------------------------------------------------------------------

    def verdict(self, verdict: Verdict, seen_ns: int) -> None:
        account, was = self._open(verdict.seq)
        self.verdicts += 1
        self.last_seen_ns = max(self.last_seen_ns, seen_ns)
        account.verdicts += 1
        if account.verdicts == 1:
            account.chamber, account.seen_ns = verdict.chamber, seen_ns
            account.samples = len(verdict.counts)
            account.alarmed, account.reset = bool(charts_told(verdict)), verdict.reset is not None
            self._found(account, _still_beyond(verdict))
            self.samples += account.samples
            self.resets += account.reset
            if account.stored is not None:
                self._time(account)
        self._close(account, was)

    def alarm(self, alarm: Alarm) -> None:
        account, was = self._open(alarm.seq)
        self.alarms += 1
        account.alarms += 1
        if account.alarms == 1:
            beyond = frozenset(chart.chart for chart in alarm.charts if 1 in chart.rules)
            begun = frozenset(chart.chart for chart in alarm.charts if chart.event in ("", "begin"))
            self.chart_alarms += len(begun)
            self._found(account, beyond)
            account.told = begun & beyond
            for _, _, chart in account.stored.planted if account.stored else ():
                self.planted_alarms += chart in account.told
        self._close(account, was)

    def rejection(self, seq: int, reason: str) -> None:
        account, was = self._open(seq)
        self.rejected += 1
        account.rejections += 1
        account.reason = account.reason or reason
        self._close(account, was)

    # --- the balance ----------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Messages that were taken and of which something is missing, broken ones apart."""
        return sum(
            not account.settled()
            for account in self._accounts.values()
            if account.stored is not None and account.stored.expect is not Expect.REJECTED
        )

    @property
    def duplicated(self) -> int:
        """Verdicts, alarms and rejections beyond the first one of a message."""
        return sum(account.repeats for account in self._accounts.values())

    @property
    def unexpected(self) -> int:
        return sum(account.strange() for account in self._accounts.values())

    @property
    def broken(self) -> tuple[int, int]:
        """(broken messages taken, those of them that are in REJECTED for the right reason)."""
        broken = [a for a in self._accounts.values() if a.stored and a.stored.expect in _REJECTED]
        right = sum(
            bool(a.rejections) and a.stored is not None and a.reason == a.stored.reason for a in broken
        )
        return len(broken), right

    @property
    def planted(self) -> int:
        return self.excursions.planted

    @property
    def planted_found(self) -> int:
        return self.excursions.found

    @property
    def chance_alarms(self) -> int:
        """Alarms of charts that began where nothing was planted."""
        return self.chart_alarms - self.planted_alarms

    def is_planted(self, seq: int, chart: str) -> bool:
        """Whether *chart* of this message is a point of an excursion, as far as is known."""
        account = self._accounts.get(seq)
        sent = account.stored if account else None
        return sent is not None and any(chart == name for _, _, name in sent.planted)

    def latency_ms(self, *quantiles: float) -> list[float]:
        """Quantiles (1.0: the longest) from publish to verdict, over every verdict; zeros while none came."""
        if not self._latencies_ms:
            return [0.0] * len(quantiles)
        # a copy: an array that shares its memory with NumPy cannot grow
        found: list[float] = np.quantile(np.array(self._latencies_ms), quantiles).tolist()
        return found

    def examples(self, most: int = 5) -> list[str]:
        """Some messages that do not add up, for a person."""
        wrong = [
            (seq, a)
            for seq, a in sorted(self._accounts.items())
            if a.repeats or a.strange() or not a.settled()
        ]
        return [_described(seq, account) for seq, account in wrong[:most]]

    # --- the inside -----------------------------------------------------------------------------

    def _open(self, seq: int) -> tuple[_Account, bool]:
        account = self._accounts.setdefault(seq, _Account())
        return account, account.settled()

    def _close(self, account: _Account, was: bool) -> None:
        if account.stored is not None:
            self.unsettled += was - account.settled()

    def _found(self, account: _Account, charts: frozenset[str]) -> None:
        account.beyond |= charts
        for number, _, chart in account.stored.planted if account.stored else ():
            self.excursions.found_points[number] += chart in charts

    def _time(self, account: _Account) -> None:
        assert account.stored is not None
        self._latencies_ms.append((account.seen_ns - account.stored.sent_ns) / 1e6)


def _still_beyond(verdict: Verdict) -> frozenset[str]:
    """Charts beyond their limits of whose alarm, open since an earlier report, this one says nothing."""
    told = charts_told(verdict)
    still = (i for i, episode in enumerate(verdict.episode) if episode and i not in told)
    return frozenset(verdict.charts[i] for i in still if i < len(verdict.flags) and verdict.flags[i] & 1)


def _described(seq: int, account: _Account) -> str:
    sent = account.stored
    what = f"{sent.chamber} {sent.run}, expected: {sent.expect}" if sent else "never acknowledged"
    if sent and sent.reason:
        what += f" ({sent.reason})"
    reason = f" ({account.reason})" if account.reason else ""
    return (
        f"sequence {seq} ({what}): {account.verdicts} verdicts with {account.samples} samples, "
        f"{account.alarms} alarms, {account.rejections} rejections{reason}"
    )
