"""Schedules: a fleet's size and the faults that befall it, drawn from a seed. Values only."""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import Final, NamedTuple


class Kind(StrEnum):
    """What may befall a fleet. *target* chooses the pod (or what is named); *extra* in [0, 1) a variant."""

    CRASH = "a pod dies with its node; a new one is made"
    RESTART = "a supervisor is killed; its container starts again"
    WORKER_CRASH = "a worker is killed"
    PAUSE = "a whole pod is frozen"
    PAUSE_SUPERVISOR = "a supervisor alone is frozen"
    PAUSE_WORKER = "a worker alone is frozen"
    CUT = "a pod is cut off from NATS"
    SLOW = "a pod's way to NATS is slow"
    LOSS = "requests and answers are lost"
    DEAF = "half of a pod's watched changes are lost until it reads anew"
    OUTAGE = "the server is down"
    NO_LEADER = "the buckets take no writes"
    BUCKET_LOST = "a bucket is deleted and made anew"
    COMMIT_CRASH = "the leader dies around its next commit"
    TERM = "a pod is evicted; a new one is made"
    ROLLING = "a rolling update"
    SCALE = "the number of replicas changes"
    CUTOVER = "green takes over from blue"
    FREEZE = "an operator freezes the ring for a while"
    FORGET = "an operator forgets an ID"
    TWINS = "a second process runs for a while under a pod's UID and name"
    HAND = "somebody writes or deletes a record by hand"


GRACEFUL: Final = (Kind.TERM, Kind.ROLLING, Kind.SCALE, Kind.CUTOVER)


class Fault(NamedTuple):
    at_s: float
    kind: Kind
    target: int
    length_s: float
    extra: float

    def told(self) -> str:
        return (
            f"at {self.at_s:6.2f} s  {self.kind.name:<16} pod {self.target}, "
            f"{self.length_s:5.2f} s, variant {self.extra:.2f}: {self.kind.value}"
        )


class Schedule(NamedTuple):
    """*seed* draws delays and losses; the faults are listed. *until_s*: when the last fault has ended."""

    seed: int
    replicas: int
    partitions: int
    lag_s: float
    green: int
    holders_max: int
    until_s: float
    faults: tuple[Fault, ...]

    @property
    def is_graceful(self) -> bool:
        """Only what operators and controllers do, one thing at a time."""
        return len(self.faults) == 1 and self.faults[0].kind in GRACEFUL

    def told(self) -> str:
        head = (
            f"seed {self.seed}: {self.replicas} replicas, {self.partitions} partitions, "
            f"lag {self.lag_s * 1e3:.0f} ms"
            + (f", {self.green} green" if self.green else "")
            + (f", at most {self.holders_max} holders" if self.holders_max < HOLDERS_MAX else "")
        )
        return "\n".join([head, *(f"  {fault.told()}" for fault in self.faults)])


WEIGHTS: Final = {
    Kind.CRASH: 5, Kind.RESTART: 5, Kind.WORKER_CRASH: 4, Kind.PAUSE: 6, Kind.PAUSE_SUPERVISOR: 3,
    Kind.PAUSE_WORKER: 2, Kind.CUT: 5, Kind.SLOW: 2, Kind.LOSS: 4, Kind.DEAF: 2, Kind.OUTAGE: 3,
    Kind.NO_LEADER: 2, Kind.BUCKET_LOST: 2, Kind.COMMIT_CRASH: 3, Kind.TERM: 4, Kind.ROLLING: 5,
    Kind.SCALE: 5, Kind.CUTOVER: 3, Kind.FREEZE: 1, Kind.FORGET: 1, Kind.TWINS: 1, Kind.HAND: 2,
}  # fmt: skip
LENGTH_S: Final = {
    Kind.PAUSE: (0.5, 18.0), Kind.PAUSE_SUPERVISOR: (0.5, 14.0), Kind.PAUSE_WORKER: (0.5, 12.0),
    Kind.CUT: (0.3, 16.0), Kind.SLOW: (2.0, 10.0), Kind.LOSS: (1.0, 10.0), Kind.DEAF: (2.0, 12.0),
    Kind.OUTAGE: (0.3, 10.0), Kind.NO_LEADER: (0.3, 5.0), Kind.RESTART: (0.3, 3.0), Kind.CRASH: (0.5, 8.0),
    Kind.FREEZE: (2.0, 12.0), Kind.ROLLING: (12.0, 12.0), Kind.SCALE: (6.0, 6.0), Kind.TERM: (3.0, 3.0),
    Kind.CUTOVER: (6.0, 6.0), Kind.TWINS: (1.0, 8.0),
}  # fmt: skip
HOLDERS_MAX: Final = 20
FIRST_S: Final = 6.0
"""The fleet has started and settled by then; one in four schedules begins its faults at once."""


def draw(seed: int) -> Schedule:
    """The schedule of a seed. One in eight is graceful: a single event without faults."""
    random = Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    graceful = random.random() < 0.125
    early = not graceful and random.random() < 0.25
    first_s, last_s = (0.0 if early else FIRST_S), random.uniform(14.0, 32.0)
    count = 1 if graceful else random.choice((1, 2, 2, 3, 3, 4, 5, 6))
    chosen = [random.choice(GRACEFUL)] if graceful else random.choices(kinds, weights, k=count)
    faults = []
    near_s = random.uniform(first_s, last_s)
    for kind in chosen:
        # Faults that coincide find more than faults that come one after the other.
        at_s = (
            max(0.1, near_s + random.gauss(0.0, 2.0))
            if random.random() < 0.6
            else random.uniform(first_s, last_s)
        )
        length_s = random.uniform(*LENGTH_S.get(kind, (0.0, 0.0)))
        faults.append(
            Fault(
                round(at_s, 2),
                kind,
                random.randrange(16),
                round(length_s, 2),
                min(round(random.random(), 3), 0.999),
            )
        )
    faults.sort()
    replicas = random.randint(2, 6)
    # In one schedule of four some pods are spares.
    spares = random.randint(1, 2) if random.random() < 0.25 else 0
    return Schedule(
        seed,
        replicas,
        partitions=random.choice((6, 8, 8, 12)),
        lag_s=random.choice((0.001, 0.003, 0.01, 0.01, 0.05, 0.2)) if not graceful else 0.003,
        green=random.randint(1, 3) if any(fault.kind is Kind.CUTOVER for fault in faults) else 0,
        holders_max=max(1, replicas - spares) if spares else HOLDERS_MAX,
        until_s=max(fault.at_s + fault.length_s for fault in faults),
        faults=tuple(faults),
    )
