"""The hot parser cuts the same messages out of the bytes as nats-py's, wherever the reads are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from runtime import connection  # noqa: F401  (nats is imported as the connection wants it)
from runtime.parser import HotParser

Heard = tuple[int, bytes, bytes, bytes, bytes]
TAPPED = 2


class Recorder:
    """What both parsers call, and what they heard."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.control: list[str] = []
        self.taps: dict[int, Any] = {TAPPED: lambda *_: None}

    def dispatch(self, deliver: Any, subject: bytes, reply: bytes, payload: bytes, headers: Any) -> None:
        self.heard.append((TAPPED, subject, reply, payload, headers or b""))

    async def pass_on(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        self.heard.append((sid, subject, reply, payload, headers))

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: Any
    ) -> None:
        self.heard.append((sid, subject, reply, payload, headers or b""))

    async def _process_ping(self) -> None:
        self.control.append("ping")

    async def _process_pong(self) -> None:
        self.control.append("pong")

    async def _process_err(self, error: str) -> None:
        self.control.append(error)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.control.append(str(info))


words = st.text("abc.$_*", min_size=1, max_size=12).map(str.encode)
payloads = st.binary(max_size=40) | st.sampled_from([b"MSG a 1 0\r\n", b"\r\n", b"PING\r\n"])


@st.composite
def frames(draw: Any) -> bytes:
    kind = draw(st.sampled_from(["MSG", "HMSG", "PING", "PONG", "+OK", "-ERR", "INFO"]))
    if kind in ("MSG", "HMSG"):
        head = [draw(words), b"%d" % draw(st.integers(1, 3))]
        if draw(st.booleans()):
            head.append(draw(words))
        payload, headers = draw(payloads), b""
        if kind == "HMSG":
            headers = b"NATS/1.0\r\nA: %b\r\n\r\n" % draw(words)
            head.append(b"%d" % len(headers))
        head.append(b"%d" % (len(headers) + len(payload)))
        return b"%b %b\r\n%b%b\r\n" % (kind.encode(), b" ".join(head), headers, payload)
    rest = {"-ERR": b" 'slow consumer'", "INFO": b' {"port": 4222}'}.get(kind, b"")
    return kind.encode() + rest + b"\r\n"


async def heard_by(parser: Any, reads: list[bytes]) -> None:
    for read in reads:
        await parser.parse(read)


@given(st.lists(frames(), max_size=12).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_of_the_stream_gives_what_nats_py_hears(stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reads = [stream[a:b] for a, b in itertools.pairwise(edges)]
    ours, theirs = Recorder(), Recorder()
    asyncio.run(heard_by(HotParser(ours), reads))  # type: ignore[arg-type]
    asyncio.run(heard_by(Parser(theirs), [stream]))
    assert ours.heard == theirs.heard
    assert ours.control == theirs.control


@pytest.mark.parametrize("read", [b"MSG a 2 5\r\nhel", b"MSG a", b"PIN"])
def test_half_a_message_of_one_connection_is_forgotten_for_the_next(read: bytes) -> None:
    recorder = Recorder()
    parser = HotParser(recorder)  # type: ignore[arg-type]
    asyncio.run(heard_by(parser, [read]))
    parser.reset()
    asyncio.run(heard_by(parser, [b"MSG b 2 2\r\nok\r\n"]))
    assert recorder.heard == [(TAPPED, b"b", b"", b"ok", b"")]
