"""A scenario: a fleet, its load, and what is done to it, as a TOML file. Pure.

what = "A Deployment's update: 10 pods more at a time"

[fleet]
defenders = 30

[load]
reports_per_s = 1000

[[steps]]
do = "rolling-update"
surge = 10
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Do = Literal[
    "wait",
    "rolling-update",
    "scale",
    "crash",
    "zombie",
    "nats-restart",
    "partition",
    "blue-green",
    "canary",
    "migrate",
    "ramp",
]
Victim = Literal["worker", "container", "pod", "leader"]


class FleetOf(Struct, frozen=True, forbid_unknown_fields=True):
    """The defenders. ``settings`` are environment names of `defender config` with their values."""

    defenders: int = 30
    standbys: int = 0
    workers: int = 1
    partitions: int = 64
    history: Literal["jetstream", "cassandra"] = "jetstream"
    settings: dict[str, str] = {}


class LoadOf(Struct, frozen=True, forbid_unknown_fields=True):
    """What the chambers report. Rates are of all producers together."""

    reports_per_s: float = 1000.0
    chambers: int = 256
    samples: int = 10
    """Charts a report."""
    encoding: Literal["msgpack", "json", "mixed"] = "mixed"
    producers: int = 1
    skew: float = 0.0
    """0: all chambers alike; s: the k-th chamber's rate is proportional to k^-s."""
    burst: int = 1
    """Reports that come at one time."""
    excursion_every: int = 200
    """One report in so many has a chart far beyond its limits; 0: none."""
    seed: int = 1


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing done. Which fields count depends on ``do``; counts may be given as ``"50 %"`` of the
    defenders, so that a scenario has every size."""

    do: Do
    seconds: float = 0.0
    """wait: how long; zombie, nats-restart, partition: how long it lasts; ramp: of each rate."""
    to: int | str = 0
    """scale: replicas."""
    surge: int | str = 0
    unavailable: int | str = 0
    victim: Victim = "pod"
    count: int | str = 1
    """How many pods; crash, zombie: one after the other, partition: at the same time."""
    factor: float = 1.25
    """ramp: from one rate to the next."""


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """A run's plan."""

    what: str
    fleet: FleetOf = FleetOf()
    load: LoadOf = LoadOf()
    steps: tuple[Step, ...] = ()
    settle_s: float = 2.0
    """Of load before the first step and after the last."""
    name: str = ""
    """The file's name without its ending."""
