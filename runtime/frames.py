"""Protocol frames of NATS as bytes, and what the headers of a message say. Pure functions.

A frame is made with one formatting of bytes: `frame_hpub` takes about 0.5 µs, where nats-py builds a
dictionary of headers and joins it line by line.
"""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

_CRLF: Final = b"\r\n"
_PULL_DONE: Final = (b"Batch Completed", b"Message Size Exceeds MaxBytes")

Message = tuple[str, str, bytes]
"""(subject, message ID, payload); an empty ID leaves the message without one."""


def status_of(headers: bytes | None) -> bytes:
    """The status code in a header block: ``NATS/1.0 503`` has b"503"."""
    return headers[9:12] if headers is not None and headers[8:9] == b" " else b""


def pull_left(headers: bytes) -> int | None:
    """How many messages a pull left undelivered when it ended as it should: by its time, its bytes or its
    number. None when it ended otherwise: the consumer was deleted, lost its leader, and so on."""
    status = status_of(headers)
    if status == b"408" or (status == b"409" and headers[13:].startswith(_PULL_DONE)):
        return int(header(headers, b"Nats-Pending-Messages") or 0)
    return None


def is_unheard(headers: bytes) -> bool:
    """Whether nobody listened for the pull: in a cluster a new consumer's leader answers its making before
    every other server has heard that it listens. Nothing was taken; the pull may be sent again."""
    return status_of(headers) == b"503"


def header(headers: bytes | None, name: bytes) -> bytes | None:
    """The value of one header, by its exact name; None when it is not there."""
    if headers is None:
        return None
    start = headers.find(_CRLF + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return headers[start : headers.index(_CRLF, start)].strip()


def frame_pub(subject: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """One PUB frame."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def frame_hpub(subject: bytes, headers: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """One HPUB frame; *headers* are lines ``Name:value`` that each end in CR LF."""
    size = len(headers) + 12
    return b"HPUB %b %b %d %d\r\nNATS/1.0\r\n%b\r\n%b\r\n" % (
        subject,
        reply,
        size,
        size + len(payload),
        headers,
        payload,
    )


def frame_stored(subject: bytes, msg_id: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """A message with the ID by which its stream drops repeats."""
    return frame_hpub(subject, b"Nats-Msg-Id:%b\r\n" % msg_id, payload, reply)


def frames_stored(messages: list[Message], reply: bytes) -> bytes:
    """The frames of messages with IDs that are all answered on *reply*; one formatting a message."""
    frames = []
    for subject, identity, payload in messages:
        headers = f"NATS/1.0\r\nNats-Msg-Id:{identity}\r\n\r\n".encode()
        size = len(headers)
        frames.append(
            b"HPUB %b %b %d %d\r\n%b%b\r\n"
            % (subject.encode(), reply, size, size + len(payload), headers, payload)
        )
    return b"".join(frames)


def backoff_s(attempt: int, first_s: float, most_s: float, random: Random) -> float:
    """Pause before try *attempt* (0, 1, …): doubling up to *most_s*, its upper half drawn at random."""
    whole_s = min(most_s, first_s * 2.0 ** min(attempt, 30))
    return whole_s * (0.5 + 0.5 * random.random())


class Delivery(NamedTuple):
    """What the reply subject of a delivered message says: ``$JS.ACK.…``."""

    seq: int
    delivered: int
    time_ns: int
    pending: int


def delivery_of(reply: bytes) -> Delivery:
    """Sequence in the stream, times delivered, time of storage, messages left. Raises ValueError."""
    tokens = reply.split(b".")
    # 9 tokens, or 11 and more: with domain and account before the stream, and perhaps one random at the end.
    first = 4 if len(tokens) == 9 else 6
    if tokens[:2] != [b"$JS", b"ACK"] or len(tokens) < first + 5:
        raise ValueError(f"{reply!r} is not the reply subject of a JetStream message")
    delivered, seq, _, time_ns, pending = map(int, tokens[first : first + 5])
    return Delivery(seq, delivered, time_ns, pending)
