"""The view of the fleet against whatever may stand in a bucket, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any, cast

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from runtime.bucket import Entry
from runtime.config import Settings
from runtime.fleet_view import FleetView
from runtime.identity import Claim
from runtime.membership import Heartbeat, State
from runtime.ownership_record import Record
from runtime.records import Frozen, Member, RingRecord, Tracks

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = [
    "ring",
    "tracks",
    "frozen",
    "leader",
    "forget.x",
    "forget.",
    "partition.0",
    "partition.²",
    "partition.",
]
GOOD: list[Any] = [
    Claim("defender-0", "uid", "pod", "stable", "r", NOW, "s"),
    Heartbeat("uid", "pod", "stable", "r", State.ACTIVE, NOW, "defender-0"),
    RingRecord(1, 64, {"defender-0": Member("stable")}, {"canary": [1, 2]}),
    Tracks({"blue": True}, {"blue": ["c"]}),
    Frozen("me", NOW),
    Record(),
]


def view() -> FleetView:
    return FleetView(cast(Any, None), Settings(pod_uid="uid"), random=Random(1), clock=lambda: 1.0)


def damaged(value: bytes, at: int, byte: int) -> bytes:
    at %= len(value)
    return value[:at] + bytes([byte]) + value[at + 1 :]


values = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=5,
    ).map(msgspec.json.encode),
    st.builds(
        damaged, st.sampled_from([*map(msgspec.json.encode, GOOD)]), st.integers(0), st.integers(0, 255)
    ),
)
events = st.lists(
    st.tuples(
        st.sampled_from(["claim", "beat", "assignment", "leader"]),
        st.sampled_from([*KEYS, "defender-0", "uid"]),
        values,
        st.integers(0, 9),
    ),
    max_size=12,
)


@given(events)
def test_whatever_stands_in_a_bucket_is_read_or_left_out_and_never_raises(arrived: list[Any]) -> None:
    seen = view()
    for kind, key, value, revision in arrived:
        getattr(seen, f"_on_{kind}")(Entry(key, value, revision))
        assert all(claim.value.stable_id == one for one, claim in seen.claims.items())
        held = sorted(one for ids in seen.held.values() for one in ids)
        assert held == sorted(seen.claims)
        assert all(seen.claims[one].value.pod_uid == uid for uid, ids in seen.held.items() for one in ids)
        assert seen.layout is None or seen.ring is not None
        if seen.layout is not None:
            assert len(seen.layout.owners) == 64


def test_an_unreadable_freeze_freezes_and_its_deletion_ends_that() -> None:
    seen = view()
    seen._on_assignment(Entry("frozen", b"yes please", 1))
    assert seen.frozen is not None
    assert "unfreeze" in seen.frozen.reason
    seen._on_assignment(Entry("frozen", None, 2))
    assert seen.frozen is None
    assert seen.problems == {}


def test_a_problem_is_forgotten_when_the_value_is_good_again() -> None:
    seen = view()
    seen._on_claim(Entry("defender-0", b"?", 1))
    assert list(seen.problems) == ["stable-ids/defender-0"]
    seen._on_claim(Entry("defender-0", msgspec.json.encode(GOOD[0]), 2))
    assert seen.problems == {}
    assert seen.held == {"uid": ["defender-0"]}


def test_a_forgotten_id_is_remembered_until_its_key_is_deleted() -> None:
    seen = view()
    seen._on_assignment(Entry("forget.defender-3", b"", 1))
    seen._on_assignment(Entry("forget.fab.pod-7", b"{}", 2))
    assert seen.forget == {"defender-3", "fab.pod-7"}
    seen._on_assignment(Entry("forget.defender-3", None, 3))
    assert seen.forget == {"fab.pod-7"}
