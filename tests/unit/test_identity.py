"""Who takes which stable ID: the decision, without a server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import SettingsError
from runtime.identity import Claim, Decision, Pod, Standby, candidates, decide, stable_id

IDS = [stable_id(number) for number in range(4)]
ME = Pod("uid-me", "pod-me", "stable", "r1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claim(
    number: int, uid: str = "uid-other", track: str = "stable", revision: str = "r1", name: str = ""
) -> Claim:
    return Claim(stable_id(number), uid, name or f"pod-{uid}", track, revision, NOW, "s")


def claims(*held: Claim) -> dict[str, Claim]:
    return {one.stable_id: one for one in held}


def test_the_lowest_free_id_is_taken() -> None:
    assert decide({}, ME, IDS, holders_max=4) == Decision("defender-0")
    assert decide(claims(claim(0), claim(2)), ME, IDS, holders_max=4) == Decision("defender-1")


def test_a_pod_takes_its_own_id_back_before_anything_else() -> None:
    mine = claims(claim(0, revision="r2"), claim(3, uid="uid-me", name="pod-me"))
    assert decide(mine, ME, IDS, holders_max=1) == Decision("defender-3")


def test_a_uid_that_another_pod_claims_by_is_an_error_that_names_both_and_the_remedy() -> None:
    with pytest.raises(SettingsError, match=r"POD_UID: 'uid-me'.*'twin'.*'pod-me'.*metadata.uid"):
        decide(claims(claim(3, uid="uid-me", name="twin")), ME, IDS, holders_max=4)


def test_a_pod_that_is_held_back_takes_its_own_id_and_no_other() -> None:
    assert decide({}, ME, IDS, holders_max=4, hold=Standby.DRAINED).standby is Standby.DRAINED
    mine = claims(claim(2, uid="uid-me", name="pod-me"))
    assert decide(mine, ME, IDS, holders_max=4, hold=Standby.RESERVED) == Decision("defender-2")


def test_a_vacancy_of_the_ring_is_taken_before_a_lower_id_whatever_the_revision() -> None:
    held = claims(claim(1, revision="r0"))
    ring = ["defender-1", "defender-2", "defender-3", "defender-99"]
    taken = [
        decide(held, Pod(uid, uid, "stable", "r1"), IDS, holders_max=4, waiting=["a", "b"], ring_members=ring)
        for uid in ("a", "b")
    ]
    assert taken == [Decision("defender-2"), Decision("defender-3")]
    full = decide(held, ME, IDS, holders_max=1, ring_members=ring)
    assert full.standby is Standby.ROLLING_UPDATE


def test_pods_beyond_what_is_free_are_of_a_later_rank() -> None:
    queue = ["a", "b", "uid-me"]
    assert decide({}, ME, IDS, holders_max=2, waiting=queue) == Decision("defender-0", rank=1)
    assert decide({}, ME, IDS, holders_max=2, waiting=["a", "b"]) == Decision("defender-0", rank=1)


@pytest.mark.parametrize("identity", ["ordinal", "pod"])
def test_a_pod_with_one_candidate_minds_neither_revisions_nor_the_fleets_size(identity: str) -> None:
    held = claims(claim(0, revision="r0"), claim(1, revision="r0"))
    assert decide(held, ME, IDS[3:], holders_max=1, identity=identity) == Decision("defender-3")
    assert decide(held, ME, IDS[1:2], holders_max=1, identity=identity).standby is Standby.NONE_FREE


def test_an_id_that_its_holder_lost_with_the_bucket_is_kept_for_it() -> None:
    assert decide({}, ME, IDS, holders_max=4, kept={"defender-0"}) == Decision("defender-1")
    assert decide({}, ME, IDS, holders_max=1, kept={"defender-0"}).standby is Standby.ENOUGH_HOLDERS


def test_a_pod_stands_by_while_another_revision_of_its_track_holds_ids() -> None:
    assert decide(claims(claim(0, revision="r0")), ME, IDS, holders_max=4).standby is Standby.ROLLING_UPDATE


def test_another_revision_of_another_track_is_no_rolling_update() -> None:
    held = claims(claim(100, track="canary", revision="r2"))
    assert decide(held, ME, IDS, holders_max=1) == Decision("defender-0")


def test_a_pod_stands_by_when_there_are_enough_holders() -> None:
    assert decide(claims(claim(0)), ME, IDS, holders_max=1).standby is Standby.ENOUGH_HOLDERS
    in_range_of_other_track = claims(claim(1, track="canary"))
    assert decide(in_range_of_other_track, ME, IDS, holders_max=1).standby is Standby.ENOUGH_HOLDERS


def test_a_pod_stands_by_when_no_id_of_its_range_is_free() -> None:
    held = claims(*(claim(number, uid=f"uid-{number}") for number in range(4)))
    assert decide(held, ME, IDS, holders_max=9).standby is Standby.NONE_FREE


@given(st.integers(1, 40), st.integers(1, 40))
def test_pods_that_wait_together_try_different_ids(pods: int, ids: int) -> None:
    names = [stable_id(number) for number in range(ids)]
    order = [f"uid-{number}" for number in range(pods)]
    tried = [
        decide({}, Pod(uid, uid, "stable", "r1"), names, holders_max=ids, waiting=order).stable_id
        for uid in order
    ]
    assert len(set(tried)) == min(pods, ids)


@given(st.sets(st.integers(0, 9)), st.integers(1, 12))
def test_a_decision_never_takes_a_held_id_nor_one_too_many(held: set[int], holders_max: int) -> None:
    ids = [stable_id(number) for number in range(10)]
    living = claims(*(claim(number, uid=f"uid-{number}") for number in held))
    decision = decide(living, ME, ids, holders_max=holders_max)
    if decision.stable_id is None:
        assert len(held) >= min(holders_max, 10)
    else:
        assert decision.stable_id not in living
        assert len(held) < holders_max


def test_the_source_of_identity_decides_the_candidates() -> None:
    assert candidates("claim", range(2, 4), "web-x7") == ["defender-2", "defender-3"]
    assert candidates("ordinal", range(10), "fab-7") == ["defender-7"]
    assert candidates("pod", range(10), "web-x7") == ["web-x7"]


def test_an_ordinal_that_is_none_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(SettingsError, match="POD_NAME"):
        candidates("ordinal", range(10), "web-x7")
    with pytest.raises(SettingsError, match="ID_RANGE"):
        candidates("ordinal", range(10), "fab-10")
