"""Scenarios as files: found by name or by path, checked to the last field, and sized for a fleet.

    load("rolling-update") ──► Scenario, with shares such as "33 %" ──► sized(…, 6) ──► Scenario, with counts

A file that is not a scenario is a ScenarioError, which says where, what is allowed there, and which name was
probably meant. Apart from reading the file all is pure.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from bench.lab import load_reports
from bench.lab.errors import LabError, ScenarioError
from bench.lab.scenario import Do, FleetOf, LoadOf, Scenario, Step
from runtime import config
from runtime.errors import SettingsError

S = TypeVar("S", bound=Struct)
ENDING: Final = ".toml"
DEFENDERS_MAX: Final = 500
"""More processes than a machine runs; the number is there to catch a slip of the hand."""
SECONDS_MAX: Final = 7 * 86_400.0
FACTOR_MAX: Final = 10.0
SHARE_MAX: Final = 1000
"""Of a count that is given relative to the defenders, %."""
SETTINGS_OF_THE_LAB: Final = frozenset(
    {
        *("NATS_SERVERS", "NATS_CREDS", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED"),
        *("NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY", "NATS_TLS_HOSTNAME", "CASSANDRA_CONTACT_POINTS"),
        *("POD_NAME", "POD_UID", "TRACK", "REVISION", "ID_RANGE", "IDENTITY", "MAX_DEFENDERS", "RING_JOIN"),
        *("HTTP_HOST", "HTTP_PORT", "LOG_FORMAT"),
    }
)
"""What the lab itself gives each pod."""
_OWN_FIELDS: Final = {"PARTITIONS": "partitions", "WORKERS": "workers", "HISTORY": "history"}
"""Settings that are fields of [fleet]."""
_TABLES: Final[dict[str, type[Struct]]] = {"fleet": FleetOf, "load": LoadOf}
_SHARE: Final = re.compile(r"\s*(\d{1,4}(?:\.\d{1,3})?)\s*%\s*", re.ASCII)


class _Needs(NamedTuple):
    """Which fields of a step count for what it does, and which of them must be given."""

    fields: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


_STEPS: Final[dict[Do, _Needs]] = {
    "wait": _Needs(("seconds",), ("seconds",)),
    "rolling-update": _Needs(("surge", "unavailable")),
    "scale": _Needs(("to",), ("to",)),
    "crash": _Needs(("victim", "count"), ("victim",)),
    "zombie": _Needs(("seconds", "count"), ("seconds",)),
    "nats-restart": _Needs(("seconds",), ("seconds",)),
    "partition": _Needs(("seconds", "count"), ("seconds",)),
    "blue-green": _Needs(),
    "canary": _Needs(("seconds",)),
    "migrate": _Needs(),
    "ramp": _Needs(("seconds", "factor"), ("seconds",)),
}


def names() -> list[tuple[str, str]]:
    """The scenarios that come with the lab: name and what each is."""
    return [(name, load(name).what) for name in _bundled()]


def load(name_or_path: str) -> Scenario:
    """The scenario of this name, or of the file (one whose path has a slash or ends with .toml).

    Its counts may still be shares: `sized` resolves them. Raises ScenarioError.
    """
    is_path = "/" in name_or_path or name_or_path.endswith(ENDING)
    name = Path(name_or_path).stem if is_path else name_or_path
    where = name_or_path if is_path else f"{name}{ENDING}"
    return parsed(_path_text(name_or_path) if is_path else _bundled_text(name), name, where)


def parsed(text: str, name: str, where: str) -> Scenario:
    """The scenario that *text* describes; *where* is what an error calls it. Raises ScenarioError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}: is not TOML: {error}") from None
    if "name" in tables:
        raise ScenarioError(f"{where}: name: is the file's name without {ENDING}; leave it out")
    _check_fields(tables, where)
    _settings_as_text(tables)
    try:
        scenario = msgspec.convert({**tables, "name": name}, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{where}: {_explained(str(error))}") from None
    _check_given(tables.get("steps", []), where)
    _check(scenario, where)
    return scenario


def sized(
    scenario: Scenario,
    defenders: int | None = None,
    *,
    rate: float | None = None,
    partitions: int | None = None,
    workers: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    history: Literal["jetstream", "cassandra"] | None = None,
) -> Scenario:
    """The scenario for this many defenders, its shares resolved to counts, with what else is wanted instead.

    A growth is rounded up and a reduction down, so that a fleet of two is scaled, too; surge is rounded up
    and unavailable down, as a Deployment has it, crashes and the like up. *seconds* is the time in which
    nothing is done to the fleet: of the waits together, in proportion, or of each rate of a ramp; of a
    scenario that has neither, before and after its steps together. Raises ScenarioError.
    """
    fleet = _changed(
        scenario.fleet, defenders=defenders, partitions=partitions, workers=workers, history=history
    )
    load_ = _changed(scenario.load, reports_per_s=rate, seed=seed)
    changed = msgspec.structs.replace(scenario, fleet=fleet, load=load_)
    if seconds is not None:
        if not _within(seconds, 0, SECONDS_MAX) or seconds == 0:
            raise ScenarioError(f"{scenario.name}: seconds is {seconds:g}: {_span(SECONDS_MAX)}")
        changed = _lasting(changed, seconds)
    _check(changed, scenario.name)
    steps = tuple(_resolved(step, fleet.defenders) for step in changed.steps)
    return msgspec.structs.replace(changed, steps=steps)


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "…"?)``, or nothing where no name is near."""
    same = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), same, n=1)
    return f' (did you mean "{same[found[0]]}"?)' if found else ""


# --- where scenarios are --------------------------------------------------------------------------


def _bundled() -> list[str]:
    folder = resources.files("bench.lab") / "scenarios"
    return sorted(one.name.removesuffix(ENDING) for one in folder.iterdir() if one.name.endswith(ENDING))


def _bundled_text(name: str) -> str:
    known = _bundled()
    if name not in known:
        raise ScenarioError(
            f"no scenario is called {name!r}{nearest(name, known)}: there are {', '.join(known)}; "
            f"a file of your own is named by a path that ends with {ENDING}"
        )
    return (resources.files("bench.lab") / "scenarios" / f"{name}{ENDING}").read_text(encoding="utf-8")


def _path_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: is not text in UTF-8 (byte {error.start + 1})") from None


# --- what a file may say --------------------------------------------------------------------------


def _check_fields(tables: Mapping[str, Any], where: str) -> None:
    """Raises ScenarioError for a field that does not exist; types are msgspec's to check."""
    _known(tables, Scenario, where, "")
    for table, kind in _TABLES.items():
        if isinstance(tables.get(table), dict):
            _known(tables[table], kind, where, f"{table}.")
    fleet = tables.get("fleet")
    if isinstance(fleet, dict) and isinstance(fleet.get("settings"), dict):
        _check_setting_names(fleet["settings"], where)
    steps = tables.get("steps", [])
    for place, step in enumerate(steps if isinstance(steps, list) else [], 1):
        if isinstance(step, dict):
            _known(step, Step, where, f"step {place}: ")


def _known(table: Mapping[str, Any], kind: type[Struct], where: str, before: str) -> None:
    fields = [name for name in kind.__struct_fields__ if kind is not Scenario or name != "name"]
    for field in table:
        if field not in fields:
            there_are = ", ".join(fields)
            raise ScenarioError(
                f"{where}: {before}{field}: is no field{nearest(field, fields)}; there are {there_are}"
            )


def _check_setting_names(settings: Mapping[str, Any], where: str) -> None:
    known = [name.upper() for name in config.Settings.__struct_fields__]
    for name in settings:
        before = f"{where}: fleet.settings.{name}"
        if name in SETTINGS_OF_THE_LAB:
            raise ScenarioError(f"{before}: the lab gives each pod its own; leave it out")
        if name in _OWN_FIELDS:
            raise ScenarioError(f"{before}: write it as {_OWN_FIELDS[name]} in [fleet]")
        if name not in known:
            raise ScenarioError(
                f"{before}: is no setting{nearest(name, known)}; `defender config` lists them all"
            )


def _settings_as_text(tables: Mapping[str, Any]) -> None:
    """Numbers among the settings may be written as such."""
    fleet = tables.get("fleet")
    settings = fleet.get("settings") if isinstance(fleet, dict) else None
    if isinstance(settings, dict):
        for name, value in settings.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                settings[name] = str(value)


def _explained(problem: str) -> str:
    """msgspec's error with the field in front, as the file names it, and what is allowed there."""
    problem, _, path = problem.partition(" - at ")
    missing = re.search(r"missing required field `(\w+)`", problem)
    place = path.strip("`").removeprefix("$").removeprefix(".")
    place = re.sub(r"^steps\[(\d+)\]\.?", lambda found: f"step {int(found[1]) + 1}: ", place)
    if missing:
        return f"{place}{missing[1]}: is missing{_allowed(place + missing[1])}"
    value = re.match(r"Invalid enum value '(.*)'", problem)
    if value:
        return f"{place}: {value[1]!r} is none of them{nearest(value[1], _choices(place))}{_allowed(place)}"
    return f"{place}: {problem[:1].lower()}{problem[1:]}{_allowed(place)}"


def _hint(place: str) -> Any:
    """The type of a field that `_explained` names."""
    head, _, field = place.replace("step ", "step.", 1).rpartition(" " if ": " in place else ".")
    kind = Step if head.startswith("step.") else _TABLES.get(head, Scenario)
    return get_type_hints(kind).get(field)


def _choices(place: str) -> tuple[str, ...]:
    hint = _hint(place)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _allowed(place: str) -> str:
    hint = _hint(place)
    if get_origin(hint) is Literal:
        return f"; one of {', '.join(get_args(hint))}"
    if int in get_args(hint):
        return '; a whole number, or a share of the defenders such as "50 %"'
    told = {int: "a whole number", float: "a number", str: "text"}.get(hint)
    return f"; {told} is wanted" if told else ""


def _check_given(steps: list[dict[str, Any]], where: str) -> None:
    """What counts for a step has to be there, and nothing else: a field without effect is a mistake."""
    for place, given in enumerate(steps, 1):
        do: Do = given["do"]
        before = f"{where}: step {place}: {do}"
        for field in _STEPS[do].given:
            if field not in given:
                raise ScenarioError(f"{before} needs {field}{_allowed(f'step {place}: {field}')}")
        for field in given.keys() - {"do", *_STEPS[do].fields}:
            counts = ", ".join(_STEPS[do].fields) or "none"
            raise ScenarioError(f"{before} has no use for {field}; its fields: {counts}")
        if do == "rolling-update" and not {"surge", "unavailable"} & given.keys():
            raise ScenarioError(f"{before} needs surge or unavailable: without either it cannot begin")


# --- values ---------------------------------------------------------------------------------------


def _check(scenario: Scenario, where: str) -> None:
    """Raises ScenarioError for a value out of its range."""
    if not scenario.what.strip():
        raise ScenarioError(f"{where}: what: is empty; say what is done and what to look at")
    fleet = scenario.fleet
    for field, value, least in (("defenders", fleet.defenders, 1), ("standbys", fleet.standbys, 0)):
        if not least <= value <= DEFENDERS_MAX:
            raise ScenarioError(f"{where}: fleet.{field}: is {value}: give {least} to {DEFENDERS_MAX}")
    if not _within(scenario.settle_s, 0, SECONDS_MAX):
        raise ScenarioError(f"{where}: settle_s: is {scenario.settle_s:g}: give 0 to {SECONDS_MAX:g} s")
    own = {"PARTITIONS": str(fleet.partitions), "WORKERS": str(fleet.workers)}
    try:
        config.load({**fleet.settings, **own})
        load_reports.checked(scenario.load)
    except SettingsError as error:
        field = _OWN_FIELDS.get(error.setting, f"settings.{error.setting}")
        problem = str(error).removeprefix(f"{error.setting}: ")
        raise ScenarioError(f"{where}: fleet.{field}: {problem}") from None
    except LabError as error:
        raise ScenarioError(f"{where}: {error}") from None
    for place, step in enumerate(scenario.steps, 1):
        _check_step(step, fleet.defenders, f"{where}: step {place}: {step.do}")


def _check_step(step: Step, defenders: int, before: str) -> None:
    for field in _STEPS[step.do].fields:
        value, must = getattr(step, field), field in _STEPS[step.do].given
        if field in ("to", "surge", "unavailable", "count"):
            _check_count(field, value, before)
        elif field == "seconds" and not (_within(value, 0, SECONDS_MAX) and (value or not must)):
            raise ScenarioError(f"{before}: seconds is {value:g}: {_span(SECONDS_MAX)}")
        elif field == "factor" and not (_within(value, 1, FACTOR_MAX) and value > 1):
            raise ScenarioError(f"{before}: factor is {value:g}: give more than 1, at most {FACTOR_MAX:g}")
    counts = _resolved(step, defenders)
    if step.do == "rolling-update" and not (counts.surge or counts.unavailable):
        raise ScenarioError(
            f"{before}: of {defenders} defenders neither surge nor unavailable is a pod: give a number"
        )


def _check_count(field: str, value: int | str, before: str) -> None:
    least = 0 if field in ("surge", "unavailable") else 1
    if isinstance(value, int):
        if not least <= value <= DEFENDERS_MAX:
            raise ScenarioError(f"{before}: {field} is {value}: give {least} to {DEFENDERS_MAX}, or a share")
        return
    share = _SHARE.fullmatch(value)
    if share is None or not 0 < Decimal(share[1]) <= SHARE_MAX:
        raise ScenarioError(
            f'{before}: {field} is {value!r}: give a whole number, or a share such as "50 %", '
            f'at most "{SHARE_MAX} %"'
        )


def _within(value: float, least: float, most: float) -> bool:
    return least <= value <= most


def _span(most: float) -> str:
    return f"give more than 0, at most {most:g} s"


def _resolved(step: Step, defenders: int) -> Step:
    """The step with shares as counts."""
    return msgspec.structs.replace(
        step,
        to=_count(step.to, defenders, least=1, is_up=None),
        surge=_count(step.surge, defenders, least=0, is_up=True),
        unavailable=_count(step.unavailable, defenders, least=0, is_up=False),
        count=_count(step.count, defenders, least=1, is_up=True),
    )


def _count(value: int | str, of: int, *, least: int, is_up: bool | None) -> int:
    """A share of *of*; rounded away from *of* where *is_up* does not say."""
    if isinstance(value, int):
        return value
    share = _SHARE.fullmatch(value)
    assert share is not None, "checked before"
    exact = Decimal(share[1]) * of / 100
    up = exact > of if is_up is None else is_up
    return max(least, int(exact.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR)))


def _changed(before: S, **fields: object) -> S:
    return msgspec.structs.replace(before, **{name: v for name, v in fields.items() if v is not None})


def _lasting(scenario: Scenario, seconds: float) -> Scenario:
    """The scenario with *seconds* of time in which nothing is done; see `sized`."""
    waits_s = sum(step.seconds for step in scenario.steps if step.do == "wait")
    if not any(step.do in ("wait", "ramp") for step in scenario.steps):
        return msgspec.structs.replace(scenario, settle_s=seconds / 2)
    steps = []
    for step in scenario.steps:
        if step.do == "wait":
            step = msgspec.structs.replace(step, seconds=step.seconds * seconds / waits_s)
        elif step.do == "ramp":
            step = msgspec.structs.replace(step, seconds=seconds)
        steps.append(step)
    return msgspec.structs.replace(scenario, steps=tuple(steps))
