"""The budget: what a run of each scenario may cost at most, and how a run is held against it.

Apart from reading the file all is pure.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from bench.lab.errors import ScenarioError
from bench.lab.result import Promise, Result
from bench.lab.scenario_file import nearest
from runtime.config import Identity

BUNDLED: Final = "budget.toml"
FIGURES: Final = tuple(
    field.name for field in msgspec.structs.fields(Result) if field.type in ("int", "float", int, float)
)
"""The figures of a run that a promise may limit."""


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """Some promises with their reason, for the scenarios and identities named; for all where none is."""

    why: str
    max: dict[str, float | str]
    """Figure to the most that it may be: a number, or another figure of the same run."""
    scenarios: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()

    def is_for(self, scenario: str, identity: str) -> bool:
        """Whether the line counts for such a run."""
        return (not self.scenarios or scenario in self.scenarios) and (
            not self.identities or identity in self.identities
        )


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """All lines, in the order of the file: of two about one figure the later counts."""

    promises: tuple[Line, ...]


class Limit(NamedTuple):
    """The most that one figure of a run may be, and why."""

    figure: str
    most: float | str
    why: str


def load(path: Path | None = None) -> Budget:
    """The budget of a file, or the lab's own. Raises ScenarioError."""
    where = str(path or BUNDLED)
    try:
        text = (path or resources.files("bench.lab") / BUNDLED).read_text(encoding="utf-8")
        return parsed(text, where)
    except OSError as error:
        raise ScenarioError(f"{where}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{where}: is not text in UTF-8 (byte {error.start + 1})") from None


def parsed(text: str, where: str) -> Budget:
    """The budget that *text* describes; *where* is what an error calls it. Raises ScenarioError."""
    try:
        budget = msgspec.convert(tomllib.loads(text), Budget)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}: is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{where}: {error}") from None
    for place, line in enumerate(budget.promises, 1):
        named = [*line.max, *(most for most in line.max.values() if isinstance(most, str))]
        for figure in named:
            if figure not in FIGURES:
                raise ScenarioError(
                    f"{where}: promise {place}: {figure}: is no figure of a run{nearest(figure, FIGURES)}; "
                    f"there are {', '.join(FIGURES)}"
                )
    return budget


def limits(budget: Budget, scenario: str, identity: str) -> list[Limit]:
    """What is promised of such a run, each figure once."""
    found: dict[str, Limit] = {}
    for line in budget.promises:
        if line.is_for(scenario, identity):
            found |= {figure: Limit(figure, most, line.why) for figure, most in line.max.items()}
    return list(found.values())


def held(result: Result, budget: Budget) -> list[Promise]:
    """The budget's promises for this run, each with what was seen.

    A run that broke off, or in which nothing was reported, keeps none of them: what it did not see it cannot
    vouch for. Nor is a figure below 0, which stands for one that could not be told, or one that is no number.
    """
    could_see = result.is_whole and result.reports > 0
    promises = []
    for figure, most, _ in limits(budget, result.scenario, result.identity):
        seen = float(getattr(result, figure))
        limit = float(getattr(result, most)) if isinstance(most, str) else float(most)
        promises.append(Promise(figure, limit, seen, met=could_see and 0 <= seen <= limit))
    return promises
