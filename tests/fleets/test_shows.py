"""A fleet of real defenders under load is updated without surge, and cut over.

Other updates, scaling and canaries are played by the lab (`defender lab`), which `.ci/run` calls.
"""

from __future__ import annotations

from runtime.embedded import NatsServer
from tests.fleets.shows import (
    SMALL,
    assert_nothing_went_wrong,
    blue_green,
    rolling_update,
)


async def test_a_rolling_update_without_surge_changes_no_stable_id(nats_server: NatsServer) -> None:
    """The pod that leaves waits for the one that comes."""
    update = await rolling_update(nats_server, SMALL, surge=0, unavailable=1)
    assert_nothing_went_wrong(update)
    assert not update.reassigned
    assert set(update.taken_over) == set(range(SMALL.partitions))


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
