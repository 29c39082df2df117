"""The history in memory: implements `runtime.history.History`, and keeps what a NATS server would keep.

It passes the contract tests of the real stores. Streams drop repeats by message ID, and a subject
of VERDICTS keeps its last D messages.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence

from runtime.bus import Reply
from runtime.frames import Message
from runtime.history import Last, Loaded, Rest, Span, Take
from runtime.names import Names
from runtime.stored import StoredVerdict, decode_stored
from runtime.wire import Verdict, decode_verdict
from tests.oracle import Stored


class MemoryStream:
    """A stream: everything that was ever stored in it, and of each subject the last *depth* on request."""

    def __init__(self, name: str, depth: int | None = None) -> None:
        self.name, self.depth = name, depth
        self.messages: list[Stored] = []
        self._ids: set[str] = set()
        self._by_subject: dict[str, list[tuple[int, bytes]]] = {}

    def store(self, message: Message, headers: dict[str, str] | None = None) -> bool:
        """False when a message of this ID is there already."""
        subject, message_id, payload = message
        if message_id in self._ids:
            return False
        self._ids.add(message_id)
        self.messages.append(Stored(self.name, len(self.messages) + 1, subject, payload, headers or {}, 0))
        kept = self._by_subject.setdefault(subject, [])
        kept.append((len(self.messages), payload))
        if self.depth is not None:
            del kept[: -self.depth]
        return True

    def of_subject(self, subject: str) -> list[bytes]:
        return [payload for _, payload in self._by_subject.get(subject, [])]

    def kept_after(self, prefix: str, seq: int) -> list[tuple[int, bytes]]:
        """(sequence, payload) of what is kept of all subjects with *prefix*, in the stream's order."""
        kept = [pairs for subject, pairs in self._by_subject.items() if subject.startswith(prefix)]
        return sorted(pair for pairs in kept for pair in pairs if pair[0] > seq)

    @property
    def subjects(self) -> list[str]:
        return list(self._by_subject)

    async def call_several(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 5.0
    ) -> list[Reply]:
        """A direct get of last messages, as the server answers it."""
        assert subject == f"$JS.API.DIRECT.GET.{self.name}", subject
        found = [self.of_subject(one)[-1:] for one in json.loads(payload)["multi_last"]]
        replies = [Reply(one, b"NATS/1.0\r\n\r\n") for rows in found for one in rows]
        end = b"NATS/1.0 204 EOB\r\n\r\n" if replies else b"NATS/1.0 404 No Results\r\n\r\n"
        return [*replies, Reply(b"", end)]


class MemoryHistory:
    """`runtime.history.History` over the verdicts' stream in memory (one shard)."""

    def __init__(self, names: Names, depth: int, rows_at_once: int = 7) -> None:
        self.stream = MemoryStream(names.verdicts, depth)
        self._names, self.rows_at_once = names, rows_at_once

    reads_chambers = False
    down = ""

    async def append(self, verdicts: Sequence[Message]) -> None:
        """Appending is publishing, as with JetStream."""

    async def make_up(self, chambers: Mapping[str, int]) -> None:
        """What is published is stored, as with JetStream."""

    async def chambers(self, partition: int) -> list[str]:
        rows = self.stream.kept_after(self._names.verdict(partition, ""), 0)
        newest = {decode_stored(payload).chamber: seq for seq, payload in rows}
        return sorted(newest, key=newest.__getitem__, reverse=True)

    async def verdicts(self, partition: int, chamber: str, span: Span) -> AsyncIterator[list[Verdict]]:
        rows = self.stream.of_subject(self._names.verdict(partition, chamber))
        found = [verdict for verdict in map(decode_verdict, rows) if span.has(verdict.at)]
        for first in range(0, len(found), self.rows_at_once):
            yield found[first : first + self.rows_at_once]

    async def load_partition(
        self, partition: int, take: Take, *, after: int | None = None, rest: Rest | None = None
    ) -> Loaded:
        rows = self.stream.kept_after(self._names.verdict(partition, ""), after or 0)
        given, last = 0, after or 0
        for first in range(0, len(rows), self.rows_at_once):
            some = rows[first : first + self.rows_at_once]
            given, last = given + len(some), some[-1][0]
            if not take([decode_stored(payload) for _, payload in some]):
                break
            if rest is not None:
                await rest(0.0)
        return Loaded(given, last)

    async def position(self, partition: int) -> int:
        return len(self.stream.messages)

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        return [decode_stored(row) for row in self.stream.of_subject(self._names.verdict(partition, chamber))]

    async def verdicts_after(self, partition: int, chamber: str, seq: int) -> list[Verdict]:
        rows = self.stream.of_subject(self._names.verdict(partition, chamber))
        return [verdict for verdict in map(decode_verdict, rows) if verdict.seq > seq]

    async def last_stored(self, chambers: Mapping[str, int]) -> dict[str, Last]:
        last = {}
        for chamber, partition in chambers.items():
            rows = await self.load_chamber(partition, chamber)
            last[chamber] = Last(rows[-1].seq, rows[-1].epoch) if rows else Last(0, 0)
        return last
