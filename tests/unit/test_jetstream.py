"""JetStream's answers as errors that say whether to try again."""

from __future__ import annotations

import pytest

from runtime.errors import DefenderError, JetStreamOff, ServerStorageFull
from runtime.jetstream import (
    ApiError,
    NotFound,
    Reply,
    WrongLastSequence,
    api_error,
    checked_ack,
    checked_answer,
)


@pytest.mark.parametrize(
    ("err_code", "error", "temporary"),
    [
        (10002, ServerStorageFull, True),
        (10023, ServerStorageFull, True),
        (10047, ServerStorageFull, True),
        (10077, ServerStorageFull, True),
        (10039, JetStreamOff, True),
        (10076, JetStreamOff, True),
        (10014, NotFound, False),
        (10037, NotFound, False),
        (10059, NotFound, False),
        (10071, WrongLastSequence, False),
        (10003, ApiError, False),
    ],
)
def test_an_error_code_has_its_class(err_code: int, error: type[DefenderError], temporary: bool) -> None:
    made = api_error("what was asked", 400, err_code, "what went wrong")
    assert type(made) is error
    assert made.temporary is temporary
    assert "what was asked: what went wrong" in str(made)


def test_an_answer_without_an_error_is_passed_on() -> None:
    assert checked_answer("INFO", Reply(b'{"streams": 3}', None)) == {"streams": 3}
    ack = checked_ack("s", Reply(b'{"stream":"S","seq":7,"count":2}', None))
    assert (ack.stream, ack.seq, ack.duplicate) == ("S", 7, False)


def test_no_responder_is_a_server_without_jetstream() -> None:
    nobody = Reply(b"", b"NATS/1.0 503\r\n\r\n")
    with pytest.raises(JetStreamOff):
        checked_answer("INFO", nobody)
    with pytest.raises(JetStreamOff):
        checked_ack("s", nobody)
