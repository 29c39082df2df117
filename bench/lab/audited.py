"""What an audit found: the counts, and the first differences in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

PROBLEMS_SHOWN: Final = 50


class Audited(Struct, frozen=True, kw_only=True):
    """What the streams hold, and where it is not what it should be. All 0 but the first four: nothing is."""

    reports: int
    verdicts: int
    """Messages of VERDICTS."""
    samples: int
    """Of the reports, that can be judged."""
    rejected: int
    """Messages of REJECTED."""
    lost: int
    """Reports with neither verdict nor rejection, or of which both should be and the verdict is not."""
    doubled: int
    """A report's verdicts beyond its first, and its rejections beyond the first."""
    wrong: int
    """First verdicts that differ from the one made here in any field but defender, epoch and position;
    likewise rejections and alarms; and messages of reports that never were."""
    out_of_order: int
    """First verdicts that were stored after one of a later report of the chamber."""
    stale: int
    """Verdicts that were stored after one of a newer epoch of the partition."""
    alarms_lost: int
    alarms_doubled: int
    unknown: int
    """Reports and verdicts about which nothing can be said, because streams no longer hold what it takes."""
    problems: list[str]
    """The first differences in words."""

    @property
    def is_clean(self) -> bool:
        """Whether everything is as one process would have it, and everything could be audited."""
        counts = (self.lost, self.doubled, self.wrong, self.out_of_order, self.stale, self.unknown)
        return not any((*counts, self.alarms_lost, self.alarms_doubled))


@dataclass
class Found:
    """The counts so far, over all shards."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Audited.__struct_fields__[:-1], 0))
    problems: list[str] = field(default_factory=list)

    def add(self, count: str, problem: str = "", times: int = 1) -> None:
        self.counts[count] += times
        if problem and times:
            self.say(problem)

    def say(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(problem)

    def audited(self) -> Audited:
        return Audited(**self.counts, problems=self.problems)
