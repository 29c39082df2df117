"""A partition's reports: pulled ahead within a bound, acknowledged as far as everything is stored.

Pulls overlap (a second one is asked for while the first is being delivered), on one inbox, without a task
or a queue a message. What was delivered and is not done is in ``pending``; the acknowledgement goes to
just below the oldest of it, for a chamber that waits for the history holds the position back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from runtime.frames import frame_pub

PULL_BYTES_MAX: Final = 8_000_000
"""Of one pull; above the server's largest message, so that no message can block it."""
PULL_REPORTS_MIN: Final = 16


class Intake:
    """One partition's consumer, as its worker sees it."""

    def __init__(
        self, partition: int, stream: str, consumer: str, position: int, window: int, expires_s: float
    ) -> None:
        self.partition, self.stream, self.consumer = partition, stream, consumer
        self.position = position
        """Everything up to here is stored."""
        self.lag = 0
        self.pending: dict[int, int] = {}
        self.routes: dict[bytes, str] = {}
        """The chamber of each subject that came, decoded."""
        self.inbox = b""
        """What pulls ask the server to deliver to."""
        self.heard, self.heard_s = True, 0.0
        """Whether the server sent anything for the pulls since the last look, and the last time it had."""
        self.unheard_s: float | None = None
        """Since when nobody listens for the pulls; None when somebody does."""
        self._asked = 0
        self._last = (position, 0)
        self._acked = position
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
        self._ack = f"$JS.ACK.{stream}.{consumer}.1".encode()
        self._expires_ns = int(expires_s * 1e9)
        self.resize(window)

    def resize(self, window: int) -> None:
        """From now on so many reports may be asked for or in hand."""
        self._half = max(PULL_REPORTS_MIN, window // 2)
        self._request = msgspec.json.encode(
            {"batch": self._half, "expires": self._expires_ns, "max_bytes": PULL_BYTES_MAX}
        )

    def took(self, seq: int, consumer_seq: int, waiting: int) -> bool:
        """A message was delivered; False when it is in hand already (delivered again)."""
        self.unheard_s = None
        self._asked -= 1
        self.lag = waiting
        if seq in self.pending or seq <= self.position:
            return False
        self.pending[seq] = consumer_seq
        self._last = (seq, consumer_seq)
        return True

    def pull_ended(self, left: int) -> None:
        """The server ended a pull before it was filled."""
        self._asked = max(0, self._asked - left)

    def pull_unheard(self, now_s: float) -> float:
        """Nobody listened for a pull. Returns for how long that has been so."""
        self.pull_ended(self._half)
        if self.unheard_s is None:
            self.unheard_s = now_s
        return now_s - self.unheard_s

    @property
    def asks(self) -> bool:
        """Whether the server owes an answer: a pull is neither filled nor ended."""
        return self._asked > 0

    def pulls(self) -> list[bytes]:
        """Frames of the pulls that may be asked for now: at most two halves asked for or in hand."""
        frames = []
        while self._asked + len(self.pending) <= self._half:
            self._asked += self._half
            frames.append(frame_pub(self._next, self._request, self.inbox))
        return frames

    def done(self, seqs: Iterable[int]) -> None:
        """These are stored (or rejected): the position rises to just below what is still pending."""
        for seq in seqs:
            self.pending.pop(seq, None)
        self.position = next(iter(self.pending)) - 1 if self.pending else self._last[0]

    def ack(self) -> tuple[bytes, bytes] | None:
        """(subject, payload) of an acknowledgement up to the position; None when there is nothing new."""
        if self.position <= self._acked:
            return None
        self._acked = self.position
        consumer_seq = next(iter(self.pending.values())) - 1 if self.pending else self._last[1]
        return b"%b.%d.%d.0.0" % (self._ack, self.position, consumer_seq), b"+ACK"
