"""What the lab reports of fleets that are broken on purpose: its observers see each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.lab.pods import brisk
from bench.lab.result import Result
from bench.lab.run import run
from bench.lab.scenario import FleetOf, LoadOf, Scenario, Step
from runtime.config import Identity

BRISK = brisk(workers=1)
CRASH = (Step(do="crash", victim="worker", count=2),)
FREEZE = (Step(do="zombie", seconds=8.0),)
"""Longer than a pod is silent before another has its ID."""
SETTLED_S_MAX = 10.0
TARDY = {"lease_held_s": 12.0, "lease_ttl_s": 16.0, "heartbeat_ttl_s": 8.0}
"""With a lease that outlasts the freeze: the pod wakes and believes that it has its ID."""


async def played(out: Path, mode: str, steps: tuple[Step, ...], **changes: object) -> Result:
    """A run of two pods and a standby."""
    settings = {name.upper(): str(value) for name, value in {**BRISK, **changes}.items()}
    for ours in ("WORKERS", "PARTITIONS", "MAX_DEFENDERS"):  # the scenario's own
        del settings[ours]
    scenario = Scenario(
        what="a fault that the lab must see",
        fleet=FleetOf(defenders=2, standbys=1, partitions=16, settings=settings),
        load=LoadOf(reports_per_s=400, chambers=64),
        steps=steps,
        name="broken",
    )
    return await run(scenario, identity=Identity.CLAIM, out=out, broken=mode, settled_s_max=SETTLED_S_MAX)


@pytest.mark.limit_s(120)
async def test_reports_acknowledged_before_their_verdicts_are_seen_to_be_lost(tmp_path: Path) -> None:
    seen = await played(tmp_path, "ack-early", CRASH)
    assert 0 < seen.lost < seen.reports
    assert not next(promise.met for promise in seen.promises if promise.name == "lost")


@pytest.mark.limit_s(150)
async def test_verdicts_of_a_zombie_are_seen_to_be_doubled_and_stale(tmp_path: Path) -> None:
    seen = await played(tmp_path, "no-fencing", FREEZE)
    assert seen.doubled > 0
    assert seen.stale > 0
    assert seen.doubly_owned > 0


@pytest.mark.limit_s(120)
async def test_an_id_that_is_taken_back_by_a_plain_put_is_seen_to_have_two_holders(tmp_path: Path) -> None:
    seen = await played(tmp_path, "put-heartbeat", FREEZE, **TARDY)
    assert seen.doubly_owned > 0
    assert any("defender-" in problem for problem in seen.problems), seen.problems
