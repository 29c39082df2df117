"""The subscriber outside of the defender: reads VERDICTS, ALARMS and REJECTED as anybody may, and counts.

It reads the streams, not the bare subjects: what the server dropped as a repeat was never delivered to a
subscriber either. Each stream has a push consumer without acknowledgements, in order; a gap in the
sequences is a fault of the observer and is told as such, not booked as the defender's loss.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from runtime import wire
from runtime.connection import Connection
from runtime.demo.checks import BookCheck, Outage
from runtime.demo.ledger import Ledger
from runtime.frames import delivery_of, header, status_of
from runtime.names import Names
from runtime.wire import Alarm, Verdict

ALARMS_KEPT: Final = 8
_FORGET_NS: Final = 60_000_000_000
_Take = Callable[[bytes, bytes, bytes | None, int], None]


class Observer:
    """Begin it before the first report. ``alarms`` are the newest ones; ``resets`` the newest reset."""

    def __init__(self, connection: Connection, names: Names, ledger: Ledger, book: BookCheck) -> None:
        self.outage = Outage()
        self.alarms: deque[Alarm] = deque(maxlen=ALARMS_KEPT)
        self.last_reset: Verdict | None = None
        self.missed = 0
        self._connection, self._names, self._ledger, self._book = connection, names, ledger, book
        self._seen: dict[str, int] = {}

    async def begin(self) -> None:
        """Raises NotFound where the streams are missing."""
        names = self._names
        await self._read(names.verdicts_stream(0), f"{names.root}.verdict.*.*", self._verdict)
        await self._read(names.alarms, names.alarm(), self._alarm)
        await self._read(names.rejected, names.reject(), self._rejection)

    async def caught_up(self) -> bool:
        """Whether everything that the streams hold has been read."""
        for stream, seen in self._seen.items():
            state = (await self._connection.api(f"STREAM.INFO.{stream}"))["state"]
            if state["last_seq"] > seen:
                return False
        return True

    async def _read(self, stream: str, subject: str, take: _Take) -> None:
        inbox = self._connection.inbox().decode()
        self._seen[stream] = 0

        def deliver(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            seen_ns = time.monotonic_ns()
            if not reply or (not payload and status_of(headers)):
                return
            seq = delivery_of(reply).seq
            self.missed += seq - self._seen[stream] - 1
            self._seen[stream] = seq
            take(subject, payload, headers, seen_ns)

        await self._connection.tap(inbox, deliver)
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "all",
            "ack_policy": "none",
            "filter_subject": subject,
            "replay_policy": "instant",
            "inactive_threshold": _FORGET_NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        await self._connection.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})

    def _verdict(self, subject: bytes, payload: bytes, headers: bytes | None, seen_ns: int) -> None:
        verdict = wire.decode_verdict(payload)
        self._ledger.verdict(verdict, seen_ns)
        self.outage.verdict(int(subject.split(b".")[-2]), verdict.epoch, seen_ns)
        if verdict.reset is None:
            self._book.verdict(verdict)
        else:
            self.last_reset = verdict

    def _alarm(self, subject: bytes, payload: bytes, headers: bytes | None, seen_ns: int) -> None:
        alarm = wire.decode_alarm(payload)
        self._ledger.alarm(alarm)
        self.alarms.append(alarm)

    def _rejection(self, subject: bytes, payload: bytes, headers: bytes | None, seen_ns: int) -> None:
        seq = int(header(headers, b"Tfdc-Seq") or 0)
        self._ledger.rejection(seq, (header(headers, b"Tfdc-Reason") or b"").decode())
