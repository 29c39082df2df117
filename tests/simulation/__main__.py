"""``python -m simulation [schedules] [--first SEED] [--json FILE] [--seed SEED]``: explore, on every core.

Progress and failing schedules go to stderr; a table, then one line of JSON, to stdout. With ``--seed`` one
schedule is told in full. Exit code 1 when anything was violated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from simulation.schedule import draw
from simulation.shrink import shrink, told
from simulation.world import simulate

SLICE = 200
FAILURES_SHOWN = 5


class Found(NamedTuple):
    """What a slice of seeds came to; the times are the longest of all."""

    sums: Counter[str]
    faults: Counter[str]
    failed: list[tuple[int, str]]
    gap_s: float
    graceful_gap_s: float
    settled_s: float
    cpu_s: float


def explore(first: int, count: int) -> Found:
    """Sums over the seeds *first* ... *first* + *count* - 1."""
    sums: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed, gap_s, graceful_gap_s, settled_s = [], 0.0, 0.0, 0.0
    begun_s = time.process_time()
    for seed in range(first, first + count):
        outcome = simulate(draw(seed))
        schedule = outcome.schedule
        faults.update(fault.kind.name.lower() for fault in schedule.faults)
        sums["samples"] += outcome.samples
        sums["events"] += outcome.events
        sums["ring_versions_again"] += outcome.versions_again
        sums["zombie_publishes"] += outcome.zombie_publishes
        sums["ring_versions"] += outcome.ring_versions
        sums["partitions_moved"] += outcome.moved
        sums["graceful"] += schedule.is_graceful
        for _, text in outcome.log:
            for word in ("passes", "is fenced", "deposes", "leads"):
                sums[word] += word in text
        gap_s = max(gap_s, outcome.gap_s)
        settled_s = max(settled_s, outcome.settled_s)
        if schedule.is_graceful:
            graceful_gap_s = max(graceful_gap_s, outcome.gap_s)
        if outcome.violation:
            failed.append((seed, outcome.violation))
    return Found(sums, faults, failed, gap_s, graceful_gap_s, settled_s, time.process_time() - begun_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description="A simulated fleet under faults.")
    parser.add_argument("schedules", nargs="?", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seed", type=int, help="tell one schedule in full")
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = simulate(draw(arguments.seed))
        print(told(outcome))
        return int(bool(outcome.violation))
    return _explore_all(arguments.first, arguments.schedules, arguments.json)


def _explore_all(first: int, schedules: int, path: Path | None) -> int:
    begun_s = time.monotonic()
    sums: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    gap_s = graceful_gap_s = settled_s = cpu_s = 0.0
    done = 0
    slices = [(at, min(SLICE, first + schedules - at)) for at in range(first, first + schedules, SLICE)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for (at, count), found in zip(slices, pool.map(explore, *zip(*slices, strict=True)), strict=True):
            sums.update(found.sums)
            faults.update(found.faults)
            for seed, violation in found.failed:
                failed.append((seed, violation))
                if len(failed) <= FAILURES_SHOWN:
                    small = shrink(simulate(draw(seed)))
                    print(f"\nseed {seed} fails: {violation}\nshrunk:\n{told(small)}\n", file=sys.stderr)
            gap_s, settled_s = max(gap_s, found.gap_s), max(settled_s, found.settled_s)
            graceful_gap_s = max(graceful_gap_s, found.graceful_gap_s)
            cpu_s += found.cpu_s
            done += count
            took_s = time.monotonic() - begun_s
            print(
                f"\r{done:,} of {schedules:,} schedules, {len(failed)} failed, {took_s:.0f} s "
                f"({done / took_s:.0f}/s), by seed {at + count - 1}",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    result = {
        "schedules": schedules,
        "first_seed": first,
        "failed": len(failed),
        "seconds": round(time.monotonic() - begun_s, 1),
        "cpu_ms_a_schedule": round(1e3 * cpu_s / schedules, 1),
        "longest_wait_s": round(gap_s, 2),
        "longest_wait_graceful_s": round(graceful_gap_s, 3),
        "settled_after_s_most": round(settled_s, 1),
        **sums,
        "faults": dict(faults.most_common()),
        "violations": failed[:50],
    }
    for name, value in result.items():
        if not isinstance(value, dict | list):
            print(f"{name:<28} {value:>14,}")
    for name, count in faults.most_common():
        print(f"  {name:<26} {count:>14,}")
    print(json.dumps(result))
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
