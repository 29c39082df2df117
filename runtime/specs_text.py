"""Chart specs as a person writes them: YAML or JSON text to a `Specs` document and back.

`parse` reports everything that is wrong at once, each with its line, entry, field, value and remedy. It is
for the command line and the demo; running defenders read the bucket's JSON (`runtime.specs.decode`).
Pure; yaml is imported by the functions that need it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from runtime.specs import WINDOW_MAX, Baseline, ChartSpec, Specs, SpecsError, spec_problems

_DOCUMENT_FIELDS: Final = ("charts", "default")
_SPEC_FIELDS: Final = {field.name: field.type for field in msgspec.structs.fields(ChartSpec)}
_BASELINES: Final = tuple(baseline.value for baseline in Baseline)
_ONLY_FOR: Final = {
    "centre": (Baseline.GIVEN,),
    "phase_one": (Baseline.FROZEN,),
    "minimum": (Baseline.FROZEN, Baseline.MOVING),
}
"""Fields that mean something for some baselines only; elsewhere they are refused, not ignored."""

_Path = tuple[str | int, ...]


def parse(text: str, window: int = WINDOW_MAX) -> Specs:
    """A document from YAML or JSON. *window* is the setting WINDOW, which bounds phase_one and minimum.

    Raises SpecsError with every problem.
    """
    return _Reader(text, window).document()


def to_yaml(specs: Specs) -> str:
    """The document as a person would write it; fields at their default are left out."""
    import yaml

    tree = {field: value for field, value in msgspec.to_builtins(specs).items() if value}
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
            if field not in _DOCUMENT_FIELDS:
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
        for field, value in entry.items():
            problem = _field_problem(str(field), value, entry.get("baseline", Baseline.FROZEN))
            if problem:
                self._found((*path, str(field)), f"{label}: {problem}")
        if len(self.problems) > already:
            return ChartSpec()
        spec: ChartSpec = msgspec.convert(entry, ChartSpec, strict=False)
        for problem in spec_problems(spec, self.window, is_default=label == "default"):
            field = problem.split(" ", 1)[0]  # every problem begins with the field that it is about
            self._found((*path, field), f"{label}: {problem}")
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


def _field_problem(field: str, value: Any, baseline: Any) -> str | None:
    """What is wrong with one field by itself: its name, its type, or that its baseline does not use it."""
    if field not in _SPEC_FIELDS:
        return f"field {field!r} is unknown{_near(field, _SPEC_FIELDS)}"
    if field == "baseline" and value not in _BASELINES:
        return f"baseline {value!r} is none of {', '.join(_BASELINES)}{_near(str(value), _BASELINES)}"
    if baseline in _BASELINES and baseline not in _ONLY_FOR.get(field, _BASELINES):
        baselines = " or ".join(_ONLY_FOR[field])
        return f"{field} is only for baseline {baselines}, not for {baseline}: leave it out"
    try:
        converted = msgspec.convert(value, _SPEC_FIELDS[field], strict=False)
    except msgspec.ValidationError as error:
        quotes = "; put it in quotes" if _SPEC_FIELDS[field] is str else ""
        return f"{field} {value!r}: {error}{quotes}"
    if isinstance(converted, float) and not math.isfinite(converted):
        return f"{field} {value!r} is not a finite number"
    return None


def _near(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
