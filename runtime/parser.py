"""The hot half of NATS' wire protocol: messages, cut out of what was read without copying the rest.

nats-py's parser matches a regular expression a message and deletes each from the front of a bytearray; a
message then passes two coroutines. Here a read is scanned once, and a tapped message goes to its function in
the same loop: a worker parses twice as many messages a second (one report in, one acknowledgement in).
Everything that is no message (PING, INFO, -ERR, ...) is left to nats-py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nats.protocol.parser import Parser

if TYPE_CHECKING:
    from runtime.connection import Connection

_M: Final = ord("M")
_H: Final = ord("H")


class HotParser(Parser):
    """A drop-in for nats-py's parser on one connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._connection = connection
        self._rest = b""

    def reset(self) -> None:
        """Forget what is half-read: a new connection begins."""
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """Takes what was read; a message that is not complete waits for the next call."""
        read = self._rest + data if self._rest else data
        at, end = 0, len(read)
        dispatch, taps = self._connection.dispatch, self._connection.taps
        while at < end:
            line_end = read.find(b"\r\n", at)
            if line_end < 0:
                break
            kind = read[at]
            if kind != _M and kind != _H:
                await super().parse(read[at : line_end + 2])
                at = line_end + 2
                continue
            words = read[at:line_end].split()
            body = line_end + 2
            body_end = body + int(words[-1])
            if body_end + 2 > end:
                break
            at = body_end + 2
            headers = None
            if kind == _H:
                payload_at = body + int(words[-2])
                headers, body = read[body:payload_at], payload_at
                reply = words[3] if len(words) == 6 else b""
            else:
                reply = words[3] if len(words) == 5 else b""
            sid = int(words[2])
            deliver = taps.get(sid)
            if deliver is None:
                await self._connection.pass_on(sid, words[1], reply, read[body:body_end], headers or b"")
            else:
                dispatch(deliver, words[1], reply, read[body:body_end], headers)
        self._rest = read[at:]
