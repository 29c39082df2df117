"""The history: the last D reports of each chamber with their verdicts, from which a cache is rebuilt.

Two stores keep it behind one protocol: JetStream (the stream VERDICTS with its depth a subject) and, in
production, Cassandra. Both pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from runtime.frames import Message
from runtime.wire import StoredVerdict, Verdict

Take = Callable[[list[StoredVerdict]], bool]
"""Takes some rows, of each chamber oldest first; False: no more, the cache is full."""


class History(Protocol):
    """What a worker needs of a store. Errors are `runtime.errors.DefenderError`."""

    async def append(self, verdicts: Sequence[Message]) -> None:
        """Returns when the reports of these verdicts are stored; storing one again changes nothing."""

    async def load_partition(self, partition: int, take: Take) -> int:
        """Gives every chamber's last D reports of one partition to *take*; returns how many it gave."""

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        """A chamber's last D reports, oldest first; empty for a chamber that was never judged."""

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        """A chamber's verdicts of samples after sequence *seq* that the history still has, oldest first."""

    async def last_sequences(self, chambers: Mapping[str, int]) -> dict[str, int]:
        """The last stored sample sequence of each chamber (name -> partition); 0 for one without."""
