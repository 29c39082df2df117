"""A fleet of real defenders is updated, scaled, cut over and given a canary, under load."""

from __future__ import annotations

from runtime.config import Identity
from runtime.embedded import NatsServer
from tests.fleets.shows import (
    SMALL,
    assert_nothing_went_wrong,
    blue_green,
    canary,
    ordered_update,
    rolling_update,
    scaling,
)


async def test_a_rolling_update_with_surge_changes_no_stable_id(nats_server: NatsServer) -> None:
    """Each partition goes to another pod once, under the ID that it has; nothing is lost or doubled."""
    update = await rolling_update(nats_server, SMALL._replace(replicas=4), surge=2, unavailable=0)
    assert_nothing_went_wrong(update)
    assert not update.reassigned
    assert set(update.taken_over) == set(range(SMALL.partitions))
    assert not update.rings


async def test_a_rolling_update_without_surge_changes_no_stable_id(nats_server: NatsServer) -> None:
    """The pod that leaves waits for the one that comes."""
    update = await rolling_update(nats_server, SMALL, surge=0, unavailable=1)
    assert_nothing_went_wrong(update)
    assert not update.reassigned
    assert set(update.taken_over) == set(range(SMALL.partitions))


async def test_scaling_moves_only_what_must_move(nats_server: NatsServer) -> None:
    """Partitions move from former members to new ones, and back from those that leave."""
    grown, shrunk = await scaling(nats_server, SMALL, counts=(2, 4, 3))
    for figures in (grown, shrunk):
        assert_nothing_went_wrong(figures)
        assert figures.reassigned
        assert figures.rings == 1
        assert not figures.taken_over


async def test_a_cutover_moves_every_partition_once_there_and_once_back(nats_server: NatsServer) -> None:
    """Green takes nothing until it is told to; then one ring version gives it all."""
    started, there, back, ended = await blue_green(nats_server, SMALL)
    for figures in (started, there, back, ended):
        assert_nothing_went_wrong(figures)
    for figures in (started, ended):
        assert not figures.changes
    for figures in (there, back):
        assert figures.reassigned == list(range(SMALL.partitions))
        assert figures.rings == 1


async def test_a_canary_takes_its_share_and_gives_it_back(nats_server: NatsServer) -> None:
    """Only the canary's share moves, to it and back to where it was."""
    joined, left = await canary(nats_server, SMALL)
    for figures in (joined, left):
        assert_nothing_went_wrong(figures)
        assert figures.reassigned
    assert {change.after.owner for change in joined.changes} == {"defender-60"}
    assert {change.before.owner for change in left.changes} == {"defender-60"}


async def test_an_update_of_a_stateful_set_changes_no_stable_id(nats_server: NatsServer) -> None:
    """IDENTITY=ordinal: each pod is replaced by one of its name, which takes its ID."""
    update = await ordered_update(nats_server, SMALL)
    assert_nothing_went_wrong(update)
    assert not update.reassigned


async def test_an_update_of_pods_without_stable_ids_reassigns_every_partition(
    nats_server: NatsServer,
) -> None:
    """IDENTITY=pod: what claimed IDs are worth. Nothing is lost or doubled even so."""
    update = await rolling_update(nats_server, SMALL, surge=1, unavailable=0, identity=Identity.POD)
    assert not update.lost
    assert not update.doubled
    assert set(update.reassigned) == set(range(SMALL.partitions))
