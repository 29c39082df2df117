"""The messages: decoding, times, and what a rebuild reads of a verdict."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from runtime import wire
from runtime.alarms import alarm_of
from runtime.stored import decode_stored, split
from runtime.wire import DetailedVerdict, OutgoingVerdict, Verdict

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
    assert DetailedVerdict.__struct_fields__ == Verdict.__struct_fields__
    plain = OutgoingVerdict.__struct_fields__
    assert Verdict.__struct_fields__[: len(plain)] == plain


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


def test_what_a_rebuild_reads_is_what_was_judged_bit_by_bit() -> None:
    stored = decode_stored(wire.msgpack_encoder.encode(Verdict(**VERDICT)))
    assert (stored.chamber, stored.seq, stored.ordinal, stored.reset) == ("ETCH-01", 7, 3, None)
    assert msgspec.msgpack.decode(stored.charts) == ["a", "b", "c"]
    assert [column.tolist() for column in split(stored.samples)] == [
        [30.0, 0.0, 2.0],
        [10.0, 2.5, 1 / 3],
        [0.3, 0.1 + 0.2, 0.0],
        [5, 2**32 - 1, 5],
        [1, 1, 3],
        [0b101, 1, 0],
        [1, 2, 0],
    ]


def test_a_stored_reset_has_no_columns() -> None:
    reset = Verdict(chamber="E", seq=1, ordinal=1, epoch=1, spec=0, charts=["a"], reset="clean")
    stored = decode_stored(wire.msgpack_encoder.encode(reset))
    assert stored.reset == "clean"
    assert stored.samples == b""


CARRIES: dict[str, Any] = {
    "p": [0.5, None, 1.0],
    "sigma_z": [1.25, None, None],
    "mark": [1, 0, 0],
    "cusum_up": [None, 0.1 + 0.2, None],
    "cusum_down": [None, 0.0, None],
    "typical_units": [None, 2.5, None],
    "event": [1, 0, 3],
    "episode": [3, 0, 2**32 - 1],
    "alerted": [3, 0, 2],
    "alerted_at": [1_700_000_000_123_456_789, 0, 5],
    "quiet": [0, 0, 3],
    "severity": ["critical", "", ""],
    "excluded": {"b": [1, 2]},
}


def test_what_charts_carry_comes_back_bit_by_bit() -> None:
    """NaN and 0 where a chart carries nothing; columns that the verdict does not have are empty."""
    verdict = Verdict(**VERDICT | CARRIES)
    assert wire.decode_verdict(wire.msgpack_encoder.encode(verdict)) == verdict
    carried = decode_stored(wire.msgpack_encoder.encode(verdict)).carried
    assert carried is not None
    for name, column in zip(carried._fields, carried, strict=True):
        expected = [math.nan if value is None else value for value in CARRIES.get(name, [])]
        assert repr(list(column)) == repr(expected), name


@pytest.mark.parametrize("name", ["sigma_z", "cusum_up", "ewma", "episode"])
def test_a_chart_that_carries_anything_has_one_of_four_fields(name: str) -> None:
    payload = wire.msgpack_encoder.encode(Verdict(**VERDICT | {name: [1, 1, 1]}))
    assert decode_stored(payload).carried is not None


def test_a_plain_verdict_has_no_other_fields_and_carries_nothing() -> None:
    payload = wire.msgpack_encoder.encode(Verdict(**VERDICT))
    assert set(msgspec.msgpack.decode(payload)) <= set(OutgoingVerdict.__struct_fields__)
    assert decode_stored(payload).carried is None


def test_the_carried_columns_of_a_reset_are_not_of_samples_and_not_read() -> None:
    reset = Verdict("E", 1, 1, 1, 0, charts=["a"], reset="clean", event=[3], episode=[1], alerted=[1])
    assert decode_stored(wire.msgpack_encoder.encode(reset)).carried is None


OF_A_FORMER_RELEASE = bytes.fromhex(
    "de0014a76368616d626572a7455443482d3031a373657107a76f7264696e616c03a565706f636802a47370656304a86465"
    "66656e646572aa646566656e6465722d30a372756ea152a26174cf17979cfe3d85cd15a8706f736974696f6e05a6636861"
    "72747392a161a162a6636f756e7473921e00a5756e69747392cb4024000000000000cb4004000000000000a17592cb4008"
    "000000000000cb0000000000000000a663656e74726592cb3fd3333333333333c0a36c636c92cb0000000000000000c0a3"
    "75636c92cb3fe999999999999ac0a5666c616773920500a57068617365920100a56261736973920505a573746167659201"
    "03"
)
"""A verdict byte by byte as it was written before charts carried anything."""


def test_a_verdict_of_a_former_release_reads_as_it_did() -> None:
    """For people, for a rebuild, and for the alarm, which is of every chart with flags."""
    payload = OF_A_FORMER_RELEASE
    verdict, stored = wire.decode_verdict(payload), decode_stored(payload)
    assert (verdict.flags, verdict.event, verdict.excluded) == ([5, 0], [], {})
    assert stored.carried is None
    assert [column.tolist() for column in split(stored.samples)[3:]] == [[5, 5], [1, 3], [5, 0], [1, 0]]
    alarm = alarm_of(verdict)
    assert alarm is not None
    assert [(one.chart, one.event, one.severity) for one in alarm.charts] == [("a", "", "critical")]
