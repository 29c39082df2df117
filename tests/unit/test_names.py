"""What a chamber may be called, and where it goes."""

from __future__ import annotations

import pytest

from runtime.names import Names, fnv1a_32, name_problem, parse_consumer, partition_of


def test_the_hash_is_fnv_1a() -> None:
    """The published test vectors of the hash's authors."""
    assert fnv1a_32("") == 0x811C9DC5
    assert fnv1a_32("a") == 0xE40C292C
    assert fnv1a_32("foobar") == 0xBF9CF968


@pytest.mark.parametrize("name", ["ETCH-01", "Ätzer_3", "a" * 64, "x/y:z"])
def test_names_that_a_subject_can_carry(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("name", ["", "a b", "a.b", "*", "a>", "a\n", "\x7f", "a" * 65, "ä" * 33, "\udc80"])
def test_names_that_no_subject_can_carry(name: str) -> None:
    assert name_problem(name) is not None


def test_one_stream_up_to_64_partitions_and_a_shard_for_each_further_64() -> None:
    one, four = Names(partitions=64), Names(partitions=200)
    assert (one.shards, one.samples_stream(63), one.verdicts_stream(0)) == (1, "SAMPLES", "VERDICTS")
    assert (four.shards, four.samples_stream(64), four.verdicts_stream(199)) == (4, "SAMPLES-1", "VERDICTS-3")
    assert [len(four.partitions_of_shard(shard)) for shard in range(4)] == [64, 64, 64, 8]


def test_a_consumers_name_says_its_partition_and_epoch() -> None:
    assert parse_consumer(Names().consumer(7, 41)) == (7, 41)
    assert parse_consumer("somebody-else") is None
    assert 0 <= partition_of("ETCH-01", 7) < 7
