"""The random streams reach what they are for: else the tests that draw them would prove little."""

from __future__ import annotations

import random
from collections import Counter

from tests.kernels.arena import NaiveArena
from tests.kernels.oracle import SELF_STARTING
from tests.kernels.streams import SECOND_NS, random_events, reports

SEEDS = 40


def test_the_streams_reach_every_rule_phase_mark_and_event() -> None:
    """Forty fixed streams have each of them many times over."""
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        rng = random.Random(seed)
        window, more = rng.choice([(8, 60), (20, 7), (40, 60)])
        events = random_events(rng, slots=4, window=window, depth=window + more, length=400)
        naive = NaiveArena(4, window, window + more)
        for report in reports(events):
            for event, verdict in zip(
                report, naive.report(report, report[0].ordinal * SECOND_NS), strict=True
            ):
                if event.spec is None:
                    seen[f"reset {verdict.detail.event}"] += 1
                    continue
                detail, limits = verdict.detail, event.spec.limits
                seen.update(f"rule {rule}" for rule in range(1, 13) if verdict.flags & 1 << (rule - 1))
                seen[f"{event.spec.baseline} phase {verdict.phase}"] += 1
                seen[f"{limits} {'beyond' if verdict.flags & 1 else 'within'}"] += 1
                seen[f"mark {detail.mark}"] += 1
                seen[f"event {detail.event}"] += 1
                seen[f"froze {detail.froze} {limits}"] += 1
                seen[f"sigma_z {detail.sigma_z == 1.0}"] += detail.sigma_z is not None
                seen["prediction beyond"] += verdict.phase == SELF_STARTING and verdict.flags & 1
    for number in range(1, 13):
        assert seen[f"rule {number}"] >= 30, number
    expected = {"given": [2], "frozen": [0, 1, 2, 3], "moving": [0, 2, 3]}
    for baseline, phases in expected.items():
        for phase in phases:
            assert seen[f"{baseline} phase {phase}"] >= 30, (baseline, phase)
    for limits in ("three_sigma", "laney", "exact", "auto"):
        assert min(seen[f"{limits} beyond"], seen[f"{limits} within"]) >= 100, limits
        assert seen[f"froze True {limits}"] >= 5, limits
    assert min(seen[f"mark {mark}"] for mark in (0, 1, 2)) >= 10
    assert min(seen[f"event {event}"] for event in (0, 1, 2, 3)) >= 100
    assert min(seen["reset 0"], seen["reset 3"]) >= 5
    assert min(seen["sigma_z True"], seen["sigma_z False"]) >= 100
    assert seen["prediction beyond"] >= 10
