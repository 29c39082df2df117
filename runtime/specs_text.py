"""Chart specs as a person writes them: YAML or JSON text to a `Specs` document and back.

`parse` reports everything that is wrong at once, each with its line, entry, field, value and remedy. It is
for the command line and the demo; running defenders read the bucket's JSON (`runtime.specs.decode`).
Pure; yaml is imported by the functions that need it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Struct

from runtime.specs import WINDOW_MAX, Baseline, ChartSpec, Specs, SpecsError
from runtime.specs_methods import Alarm, Cusum, Ewma, RuleSet, Severity
from runtime.specs_problems import spec_problems

_DOCUMENT_FIELDS: Final = ("charts", "default")
_BASELINES: Final = tuple(baseline.value for baseline in Baseline)
_PARTS: Final[dict[str, type[Struct]]] = {"cusum": Cusum, "ewma": Ewma, "alarm": Alarm}
"""Fields with fields of their own."""
_REMEDIES: Final = {
    "rules": "write a list of numbers, as [1, 2], or the name of a set",
    "counts": "write how many points make a rule, as {2: 8}",
    "severity": "write a level for a rule, as {2: info}",
}
_ONLY_FOR: Final = {
    "centre": (Baseline.GIVEN,),
    "phase_one": (Baseline.FROZEN,),
    "minimum": (Baseline.FROZEN, Baseline.MOVING),
    "start": (Baseline.FROZEN, Baseline.MOVING),
}
"""Fields that mean something for some baselines only; elsewhere they are refused, not ignored."""

_Path = tuple[str | int, ...]


def parse(text: str, window: int = WINDOW_MAX) -> Specs:
    """A document from YAML or JSON. *window* is the setting WINDOW, which bounds phase_one and minimum.

    Raises SpecsError with every problem.
    """
    return _Reader(text, window).document()


def to_yaml(specs: Specs) -> str:
    """The document as a person would write it; fields at their default are left out, and so are designs."""
    import yaml

    tree = {
        field: value
        for field, value in msgspec.to_builtins(specs).items()
        if field in _DOCUMENT_FIELDS and value
    }
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)) if tree else "{}\n"


class _Reader:
    """One reading of one text: its tree of values, the line of each, and the problems found so far."""

    def __init__(self, text: str, window: int) -> None:
        self.window = window
        self.problems: list[str] = []
        self.lines: dict[_Path, int] = {}
        self.tree = self._tree(text)

    def document(self) -> Specs:
        tree = {} if self.tree is None else self.tree
        if not isinstance(tree, dict):
            raise SpecsError(["the document must have the fields charts (a list of entries) and default"])
        for field in tree:
            if field == "designs":
                self._found((field,), "field 'designs' is computed when a document is applied: leave it out")
            elif field not in _DOCUMENT_FIELDS:
                self._found((str(field),), f"field {field!r} is unknown{_near(str(field), _DOCUMENT_FIELDS)}")
        entries = tree.get("charts") or []
        if not isinstance(entries, list):
            self._found(("charts",), "charts must be a list: begin each entry with '- chamber: …'")
            entries = []
        charts = [self._entry(entry, ("charts", i), f"charts[{i}]") for i, entry in enumerate(entries)]
        default = self._entry(tree.get("default") or {}, ("default",), "default")
        if self.problems:
            raise SpecsError(self.problems)
        return Specs(charts=tuple(charts), default=default)

    def _entry(self, entry: Any, path: _Path, label: str) -> ChartSpec:
        """One entry; the built-in spec where something is wrong with it (and the problems are noted)."""
        if not isinstance(entry, dict):
            self._found(path, f"{label} is {entry!r}; write fields such as chamber and baseline")
            return ChartSpec()
        already = len(self.problems)
        entry = {str(field): value for field, value in entry.items()}
        for place, problem in _field_problems(entry):
            self._found((*path, *place), f"{label}: {problem}")
        if len(self.problems) > already:
            return ChartSpec()
        spec: ChartSpec = msgspec.convert(_opened(ChartSpec, entry), ChartSpec, strict=False)
        for problem in spec_problems(spec, self.window, is_default=label == "default"):
            field = problem.split(" ", 1)[0]  # every problem begins with the field that it is about
            self._found((*path, *field.split(".")), f"{label}: {problem}")
        return spec

    def _found(self, path: _Path, problem: str) -> None:
        """Notes *problem* with the line of the nearest thing that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        self.problems.append(f"line {self.lines[path]}: {problem}" if path in self.lines else problem)

    def _tree(self, text: str) -> Any:
        import yaml

        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark is not None else ""
            problem = f"{where}neither YAML nor JSON: {getattr(error, 'problem', None) or error}"
            raise SpecsError([problem]) from error
        if root is not None:
            self._walk(root, ())
        return tree

    def _walk(self, node: Any, path: _Path) -> None:
        """Notes the line (from 1) of each field and entry, and each field that is there twice."""
        import yaml

        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self._walk(child, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                here, line = (*path, str(key.value)), key.start_mark.line + 1
                first = self.lines.setdefault(here, line)
                if first != line:
                    self.problems.append(f"line {line}: {key.value!r} is there already, in line {first}")
                self._walk(child, here)


def _field_problems(entry: dict[str, Any]) -> Iterable[tuple[_Path, str]]:
    """(place, problem) of each field that is wrong by itself: its name, its type, or its baseline."""
    baseline = entry.get("baseline", Baseline.FROZEN)
    for field, value in entry.items():
        if baseline in _BASELINES and baseline not in _ONLY_FOR.get(field, _BASELINES):
            baselines = " or ".join(_ONLY_FOR[field])
            yield (field,), f"{field} is only for baseline {baselines}, not for {baseline}: leave it out"
        elif field in _PARTS and isinstance(value, dict):
            for name, item in value.items():
                problem = _value_problem(_PARTS[field], str(name), item, prefix=f"{field}.")
                if problem:
                    yield (field, str(name)), problem
        elif field in _PARTS and not _is_none(ChartSpec, field, value):
            written = "is empty" if value is None else repr(value)
            yield (field,), f"{field} {written}: write its fields below it, or {{}} for the usual values"
        elif field not in _PARTS:
            problem = _value_problem(ChartSpec, field, value)
            if problem:
                yield (field,), problem


def _value_problem(struct: type[Struct], field: str, value: Any, *, prefix: str = "") -> str | None:
    """What is wrong with one field of *struct* by its name or its type."""
    types = {one.name: one.type for one in msgspec.structs.fields(struct)}
    name = prefix + field
    if field not in types:
        return f"field {name!r} is unknown{_near(field, types)}"
    if _is_none(struct, field, value):
        return None
    wanted = types[field]
    words = _words(field, wanted)
    for word in value.values() if field == "severity" and isinstance(value, dict) else (value,):
        if words and isinstance(word, str) and word not in words:
            return f"{name} {word!r} is none of {', '.join(words)}{_meant(word, words)}"
    try:
        converted = msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        remedy = "put it in quotes" if wanted is str else _REMEDIES.get(field)
        return f"{name} {value!r}: {error}{f'; {remedy}' if remedy else ''}"
    if isinstance(converted, float) and not math.isfinite(converted):
        return f"{name} {value!r} is not a finite number"
    return None


def _words(field: str, wanted: Any) -> tuple[str, ...]:
    """The words that a field can have; none where it is no word."""
    enum = {"rules": RuleSet, "severity": Severity}.get(field, wanted)
    return tuple(word.value for word in enum) if isinstance(enum, type) and issubclass(enum, StrEnum) else ()


def _is_none(struct: type[Struct], field: str, value: Any) -> bool:
    """Whether *value* is the word none in a field that can be left open."""
    return value == "none" and any(
        one.name == field and one.default is None for one in msgspec.structs.fields(struct)
    )


def _opened(struct: type[Struct], entry: dict[Any, Any]) -> dict[str, Any]:
    """*entry* without the fields that say none, in its parts too."""
    return {
        str(field): _opened(_PARTS[field], value) if field in _PARTS else value
        for field, value in entry.items()
        if not _is_none(struct, str(field), value)
    }


def _near(word: str, known: Iterable[str]) -> str:
    known = list(known)
    return _meant(word, known) or f"; known are {', '.join(known)}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
