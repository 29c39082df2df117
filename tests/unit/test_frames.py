"""Protocol frames and headers as bytes."""

from __future__ import annotations

from random import Random

import pytest

from runtime.frames import (
    backoff_s,
    delivery_of,
    frame_hpub,
    frame_pub,
    frame_stored,
    frames_stored,
    header,
    status_of,
)


def test_a_frame_counts_its_bytes() -> None:
    assert frame_pub(b"a.b", b"xyz") == b"PUB a.b  3\r\nxyz\r\n"
    assert frame_pub(b"a.b", b"", b"r.1") == b"PUB a.b r.1 0\r\n\r\n"
    assert frame_hpub(b"a", b"K:v\r\n", b"xyz") == b"HPUB a  17 20\r\nNATS/1.0\r\nK:v\r\n\r\nxyz\r\n"
    assert b"Nats-Msg-Id:7\r\n" in frame_stored(b"a", b"7", b"")


def test_frames_of_messages_with_ids_are_those_of_each_by_itself() -> None:
    messages = [("a.1", "S:7", b"x" * 300), ("ä", "S:8", b"")]
    one_by_one = [frame_stored(s.encode(), i.encode(), payload, b"r.1") for s, i, payload in messages]
    assert frames_stored(messages, b"r.1") == b"".join(one_by_one)


def test_headers_are_found_by_their_whole_name() -> None:
    block = b"NATS/1.0\r\nNats-Sequence: 12\r\nX-Nats-Sequence:99\r\nEmpty:\r\n\r\n"
    assert header(block, b"Nats-Sequence") == b"12"
    assert header(block, b"Empty") == b""
    assert header(block, b"Sequence") is None
    assert header(None, b"Nats-Sequence") is None


def test_a_status_is_told_from_a_header_block_without_one() -> None:
    assert status_of(b"NATS/1.0 503\r\n\r\n") == b"503"
    assert status_of(b"NATS/1.0 100 Idle Heartbeat\r\n\r\n") == b"100"
    assert status_of(b"NATS/1.0\r\nK:v\r\n\r\n") == b""
    assert status_of(None) == b""


def test_both_forms_of_the_reply_subject_of_a_delivery_are_read() -> None:
    short = delivery_of(b"$JS.ACK.S.C.1.22.3.1700000000000000000.5")
    assert short == (22, 1, 1700000000000000000, 5)
    assert delivery_of(b"$JS.ACK.hub.HASH.S.C.1.22.3.1700000000000000000.5") == short
    assert delivery_of(b"$JS.ACK._.HASH.S.C.1.22.3.1700000000000000000.5.rnd") == short
    with pytest.raises(ValueError, match="not the reply"):
        delivery_of(b"_INBOX.x.1")


def test_backoff_doubles_to_its_bound_and_keeps_half_of_it() -> None:
    random = Random(1)
    for attempt in range(100):
        pause_s = backoff_s(attempt, 0.1, 5.0, random)
        whole_s = min(5.0, 0.1 * 2**attempt)
        assert whole_s / 2 <= pause_s <= whole_s
