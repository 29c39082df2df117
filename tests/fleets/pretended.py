"""Pods made up: what the controllers ask of a pod, without a process."""

from __future__ import annotations

import random
from typing import Any

from bench.lab.pods import Life
from runtime.config import Settings

S = 1_000_000_000


class PretendedPod:
    """Ready some looks after its start, gone some looks after SIGTERM."""

    refusal = "pretended"

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings, self._journal = settings, journal
        self._looks, self._ends = journal.random.randrange(1, 6), 0
        self.is_told, self.is_ready, self.was_killed = False, False, False
        self.lives = [Life(0, 0, None)]

    async def probe(self, path: str) -> int:
        self._looks -= 1
        self.is_ready = self._looks < 0
        self._journal.look()
        return 200 if self.is_ready else 503

    @property
    def exit_code(self) -> int | None:
        if self.was_killed:
            return -9
        if self.is_told:
            self._ends -= 1
        return 0 if self.is_told and self._ends < 0 else self.lives[-1].exit_code

    def sigterm(self) -> None:
        self.is_told, self._ends = True, self._journal.random.randrange(1, 6)
        self._journal.told.append(self)
        self._journal.look()

    def kill(self) -> None:
        self.is_told = self.was_killed = True

    def told(self) -> str:
        return f"{self.settings.pod_name}: {self.refusal}"

    def lapse(self, looks: int) -> None:
        """It is not Ready for so many looks."""
        self._looks = looks

    def leave(self, at_s: int) -> None:
        """Its container ends by itself."""
        self.lives[-1] = self.lives[-1]._replace(ended_ns=at_s * S, exit_code=76)

    def start(self) -> None:
        """In the journal's time."""
        self.lives.append(Life(self._journal.now_s * S, 0, None))


class Journal:
    """Every pod that was started, and how many there were at each look."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.now_s = 0
        self.pods: list[PretendedPod] = []
        self.counts: list[tuple[int, int]] = []
        self.told: list[PretendedPod] = []

    def launch(self, settings: Settings) -> Any:
        self.pods.append(PretendedPod(settings, self))
        return self.pods[-1]

    def look(self) -> None:
        active = [pod for pod in self.pods if not pod.is_told]
        self.counts.append((len(active), sum(pod.is_ready for pod in active)))


def controlled(kind: Any, replicas: int, journal: Journal, **options: Any) -> Any:
    """A controller of pods that are written down in *journal*; not started."""
    return kind(
        journal.launch,
        Settings(),
        replicas=replicas,
        revision="7c9f",
        name="defender",
        random=random.Random(5),
        **options,
    )
