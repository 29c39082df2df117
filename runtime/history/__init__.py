"""The history: the last D reports of each chamber with their verdicts, from which a cache is rebuilt.

Two stores keep it behind one protocol: JetStream (the stream VERDICTS with its depth a subject) and, in
production, Cassandra. Both pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from runtime.frames import Message
from runtime.stored import StoredVerdict
from runtime.wire import Verdict

Take = Callable[[list[StoredVerdict]], bool]
"""Takes some rows, of each chamber oldest first; False: no more, the cache is full."""
Rest = Callable[[float], Awaitable[None]]
"""Awaited between two portions of work, with the time that the last one took, s."""


class Loaded(NamedTuple):
    """How many reports of a partition were given, and the store's position behind the last of them."""

    reports: int
    last: int


class Last(NamedTuple):
    """A chamber's last stored verdict: its sample's sequence, and the epoch of the owner that judged it."""

    seq: int
    epoch: int


class Span(NamedTuple):
    """A part of a chamber's reports, by their time ``at`` (ns since 1970): first inclusive, end exclusive."""

    first_ns: int | None = None
    end_ns: int | None = None

    def has(self, at_ns: int) -> bool:
        return (self.first_ns is None or at_ns >= self.first_ns) and (
            self.end_ns is None or at_ns < self.end_ns
        )


class History(Protocol):
    """What a worker needs of a store. Errors are `runtime.errors.DefenderError`."""

    @property
    def reads_chambers(self) -> bool:
        """Whether a chamber is read as cheaply by itself as with its partition. Workers then serve a
        partition at once and read its chambers beside, first those whose reports wait."""

    @property
    def down(self) -> str:
        """Why nothing can be stored or read at the moment, which waits until it can; "" when it can."""

    async def append(self, verdicts: Sequence[Message]) -> None:
        """Returns when the reports of these verdicts are stored; storing one again changes nothing. Waits
        while the store is down."""

    async def make_up(self, chambers: Mapping[str, int]) -> None:
        """Stores what a failure may have kept from it: the last published verdict of each of these chambers
        (name -> partition)."""

    async def chambers(self, partition: int) -> list[str]:
        """The chambers of a partition that have reports, the one judged last first."""

    def verdicts(self, partition: int, chamber: str, span: Span) -> AsyncIterator[list[Verdict]]:
        """Everything that is stored of a chamber within *span*, oldest first, in pages; also what is older
        than its last D reports, where the store has it."""

    async def load_partition(
        self, partition: int, take: Take, *, after: int | None = None, rest: Rest | None = None
    ) -> Loaded:
        """Gives every chamber's last D reports of one partition to *take*.

        *after*: the ``last`` of an earlier call, for only what was stored since. It is the store's own (a
        sequence of its stream, a time): callers keep it and compare nothing. A store that cannot tell
        exactly gives more, rows that it gave before too; *take* passes over what it has. What was stored
        before the call is given, wherever it was stored from. With nothing new it takes one round trip.

        With *rest* it is background work: small portions, with a rest between them.
        """

    async def position(self, partition: int) -> int:
        """Where the store stands now: `load_partition` with this as *after* gives all of the partition that
        is stored from here on, whatever else it gives."""

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        """A chamber's last D reports, oldest first; empty for a chamber that was never judged."""

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        """A chamber's verdicts of samples after sequence *seq* that the history still has, oldest first."""

    async def last_stored(self, chambers: Mapping[str, int]) -> dict[str, Last]:
        """What was stored last of each chamber (name -> partition); zeros for one without."""
