"""The messages: decoding, times, alarms, and what a rebuild reads of a verdict."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from runtime import wire
from runtime.wire import OutgoingVerdict, Verdict

VERDICT: dict[str, Any] = {
    "chamber": "ETCH-01",
    "seq": 7,
    "ordinal": 3,
    "epoch": 2,
    "spec": 4,
    "run": "R",
    "at": 1_700_000_000_123_456_789,
    "charts": ["a", "b", "c"],
    "counts": [30, 0, 2],
    "units": [10.0, 2.5, 1 / 3],
    "u": [3.0, 0.0, 6.0],
    "centre": [0.3, 0.1 + 0.2, None],
    "lcl": [0.0, 0.1, None],
    "ucl": [0.8, 0.5, None],
    "flags": [0b101, 1, 0],
    "phase": [1, 2, 0],
    "basis": [5, 2**32 - 1, 5],
    "stage": [1, 1, 3],
}


def test_the_verdict_that_is_sent_has_the_fields_of_the_one_that_is_read() -> None:
    assert OutgoingVerdict.__struct_fields__ == Verdict.__struct_fields__


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_a_report_is_told_by_its_first_byte(encode: Any) -> None:
    payload = encode({"charts": ["a"], "counts": [3], "units": [2.5], "unknown": 1})
    incoming = wire.decode_incoming(payload)
    assert (incoming.counts, incoming.units) == ([3.0], [2.5])
    is_json = wire.is_json(payload)
    assert is_json is (encode is msgspec.json.encode)
    assert wire.decode_names(bytes(incoming.charts), json=is_json) == ["a"]


def test_white_space_before_json_is_json() -> None:
    assert wire.decode_incoming(b' \n{"run": "R1"}').run == "R1"


def test_a_time_is_nanoseconds_or_has_an_offset() -> None:
    east = datetime(2025, 3, 1, 9, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=1)))
    assert wire.time_ns(east, 0) == 1_740_816_000_250_000_000
    assert wire.time_ns(77, 0) == 77
    assert wire.time_ns(None, 5) == 5
    with pytest.raises(msgspec.ValidationError):
        wire.decode_incoming(b'{"at": "2025-03-01T08:00:00"}')
    before = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert wire.to_datetime(wire.time_ns(before, 0)) == before


def test_flags_name_their_rules() -> None:
    assert wire.rules_of(0) == []
    assert wire.rules_of(0b1011) == [1, 2, 4]


def test_an_alarm_has_the_charts_that_signal_and_says_why() -> None:
    payload = wire.encode_alarm(Verdict(**VERDICT))
    assert payload is not None
    alarm = wire.decode_alarm(payload)
    assert [chart.chart for chart in alarm.charts] == ["a", "b"]
    assert alarm.charts[0].rules == [1, 3]
    assert alarm.charts[0].text == (
        "a: u 3 is above UCL 0.8; 6 points in a row steadily rising or falling (trial limits)"
    )
    assert alarm.charts[1].text == "b: u 0 is below LCL 0.1"
    assert alarm.at == datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC)


def test_a_verdict_without_signals_makes_no_alarm() -> None:
    assert wire.encode_alarm(Verdict(**VERDICT | {"flags": [0, 0, 0]})) is None


def test_what_a_rebuild_reads_is_what_was_judged_bit_by_bit() -> None:
    stored = wire.decode_stored(wire.msgpack_encoder.encode(Verdict(**VERDICT)))
    assert (stored.chamber, stored.seq, stored.ordinal, stored.reset) == ("ETCH-01", 7, 3, None)
    assert msgspec.msgpack.decode(stored.charts) == ["a", "b", "c"]
    assert [list(column) for column in stored.columns] == [
        [30.0, 0.0, 2.0],
        [10.0, 2.5, 1 / 3],
        [0.3, 0.1 + 0.2, 0.0],
        [0b101, 1, 0],
        [1, 2, 0],
        [5, 2**32 - 1, 5],
        [1, 1, 3],
    ]


def test_a_stored_reset_has_no_columns() -> None:
    reset = Verdict(chamber="E", seq=1, ordinal=1, epoch=1, spec=0, charts=["a"], reset="clean")
    stored = wire.decode_stored(wire.msgpack_encoder.encode(reset))
    assert stored.reset == "clean"
    assert all(len(column) == 0 for column in stored.columns)
