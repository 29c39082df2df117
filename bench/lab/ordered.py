"""A stream from its beginning, live: every message once and in its order, over lost connections and restarts.

    begin ──► following ──a message is missing, the server falls silent, a new session──► made anew
                  ▲                                                                           │
                  └───────────────────── from the last sequence seen ─────────────────────────┘

The consumer is the server's to forget: ephemeral, in memory, without acknowledgements. That nothing was left
out is told by the consumer's own numbers, which have no gaps; flow control keeps a backlog from drowning us.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from runtime.bus import TRANSIENT, ApiError, Connection, Disconnected, frame_pub, header, status_of

BEAT_S: Final = 1.0
SILENT_S_MAX: Final = 3.5
"""The server beats every second; after three that did not come the consumer is gone."""
CHECK_S: Final = 0.25

Take = Callable[[bytes, int, int, bytes, bytes | None], None]
"""(subject, sequence, time of storage in ns, payload, headers)"""


class OrderedReading:
    """Follows one stream; *take* gets each message once. With *headers_only* without its payload."""

    def __init__(
        self, connection: Connection, stream: str, take: Take, *, headers_only: bool, timeout_s: float = 5.0
    ) -> None:
        self.stream = stream
        self.seq = 0
        """Of the newest message; 0 before the first."""
        self.time_ns = 0
        """When that one was stored."""
        self.behind = 0
        """Messages that the stream had beyond it when the server sent it."""
        self.missed = 0
        """Messages that the stream dropped before they were read."""
        self.made = 0
        """How often the consumer was made."""
        self.trouble = ""
        """Why it is not followed at the moment."""
        self._connection, self._take = connection, take
        self._headers_only, self._timeout_s = headers_only, timeout_s
        self._loop = asyncio.get_running_loop()
        self._sid, self._consumer, self._reconnects = 0, "", 0
        self._expected, self._heard_s, self._is_lost = 1, 0.0, False
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Raises NotFound for a stream that is not there, and the TRANSIENT errors."""
        await self._make()
        self._task = self._loop.create_task(self._keep())

    async def stop(self) -> None:
        """Nothing is taken after this."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._forget()

    async def last_seq(self) -> int:
        """The newest sequence that the stream has. Raises the TRANSIENT errors."""
        answer = await self._connection.api(f"STREAM.INFO.{self.stream}", timeout_s=self._timeout_s)
        return int(answer["state"]["last_seq"])

    async def _make(self) -> None:
        await self._forget()
        inbox = self._connection.new_inbox()
        self._reconnects = self._connection.stats["reconnects"]
        self._expected, self._is_lost, self._heard_s = 1, False, self._loop.time()
        self._sid = await self._connection.tap(inbox, self._deliver)
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence" if self.seq else "all",
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "headers_only": self._headers_only,
            "flow_control": True,
            "idle_heartbeat": int(BEAT_S * 1e9),
        }
        if self.seq:
            config["opt_start_seq"] = self.seq + 1
        request = {"stream_name": self.stream, "config": config}
        name = f"CONSUMER.CREATE.{self.stream}"
        answer = await self._connection.api(name, request, timeout_s=self._timeout_s)
        self._consumer = str(answer["name"])
        if self._expected == 1:  # the first messages may come before the answer
            self.behind = int(answer["num_pending"])
        self.made += 1

    async def _forget(self) -> None:
        if not self._sid:
            return
        await self._connection.untap(self._sid)
        self._sid = 0
        if self._consumer:
            with contextlib.suppress(Disconnected):
                self._connection.ask(f"$JS.API.CONSUMER.DELETE.{self.stream}.{self._consumer}").cancel()
            self._consumer = ""

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            is_silent = self._loop.time() - self._heard_s > SILENT_S_MAX
            is_same = self._reconnects == self._connection.stats["reconnects"]
            if self._consumer and is_same and not is_silent and not self._is_lost:
                continue
            try:
                await self._make()
                self.trouble = ""
            except (ApiError, *TRANSIENT) as error:
                self.trouble = f"{self.stream} cannot be followed: {error}"

    def _deliver(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and (status := status_of(headers)):
            self._on_status(status, reply, headers)
            return
        tokens = reply.split(b".")
        first = 4 if len(tokens) == 9 else 6  # as in runtime.frames.delivery_of, which makes a tuple of all
        if self._is_lost or int(tokens[first + 2]) != self._expected:
            self._is_lost = True
            return
        self._expected += 1
        seq, time_ns = int(tokens[first + 1]), int(tokens[first + 3])
        if self.seq:
            self.missed += seq - self.seq - 1
        self.seq, self.time_ns, self.behind = seq, time_ns, int(tokens[first + 4])
        self._heard_s = self._loop.time()
        self._take(subject, seq, time_ns, payload, headers)

    def _on_status(self, status: bytes, reply: bytes, headers: bytes) -> None:
        self._heard_s = self._loop.time()
        if status != b"100":
            self._is_lost = True
            return
        stalled = reply or header(headers, b"Nats-Consumer-Stalled")
        if stalled:
            with contextlib.suppress(Disconnected):  # a new session makes a new consumer
                self._connection.write(frame_pub(stalled, b""))
        last = header(headers, b"Nats-Last-Consumer")
        if last is not None and int(last) != self._expected - 1:
            self._is_lost = True
