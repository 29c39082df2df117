"""Reports from a file or a pipe: lines in, publishable payloads (or what is wrong with a line) out.

Pure. A parser takes one line at a time, so that reports from a pipe go out while more come in; `finish`
gives what was still being put together. Only what is needed to address a report is checked here: the
defender judges the rest, and what it rejects is kept with the reason.
"""

from __future__ import annotations

import csv
from hashlib import blake2b
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from runtime.errors import InputError
from runtime.names import name_problem

CHAMBERS_OPEN_MAX: Final = 10_000
"""Reports that a CSV may have open at a time, one a chamber; past it the oldest is sent."""
_REQUIRED: Final = ("chamber", "chart", "count", "units")
_OPTIONAL: Final = ("run", "at")


class Publishable(Struct, frozen=True):
    """One report, ready to be sent."""

    line: int
    chamber: str
    payload: bytes

    @property
    def msg_id(self) -> str:
        """From the content alone: the server drops the same report within its duplicate window."""
        digest = blake2b(self.payload, digest_size=16, key=self.chamber.encode()[:64])
        return f"file:{digest.hexdigest()}"


class BadLine(Struct, frozen=True):
    """A line that is no report, and why."""

    line: int
    problem: str


Outcome = Publishable | BadLine


class Parser(Protocol):
    """Turns lines into reports; *number* counts from 1."""

    def feed(self, number: int, line: bytes) -> list[Outcome]: ...

    def finish(self) -> list[Outcome]: ...


class _Addressed(Struct):
    chamber: str


_addressed = msgspec.json.Decoder(_Addressed)


class Ndjson:
    """A JSON report a line, each with a field ``chamber``; its bytes are sent as they are."""

    def feed(self, number: int, line: bytes) -> list[Outcome]:
        line = line.strip()
        if not line:
            return []
        try:
            chamber = _addressed.decode(line).chamber
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return [BadLine(number, str(error))]
        problem = name_problem(chamber)
        if problem:
            return [BadLine(number, f"chamber {chamber!r} {problem}")]
        return [Publishable(number, chamber, line)]

    def finish(self) -> list[Outcome]:
        return []


class _Open(Struct):
    """A report that is being put together from rows."""

    line: int
    run: str
    at: str
    charts: list[str] = []
    counts: list[int | float] = []
    units: list[int | float] = []


class Csv:
    """Columns chamber, chart, count, units and, if wanted, run and at; other columns are ignored.

    Rows of one chamber with the same run and time make one report, also with rows of other chambers between
    them; the report is sent when the chamber's run or time changes, or the file ends.
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._open: dict[str, _Open] = {}

    def feed(self, number: int, line: bytes) -> list[Outcome]:
        try:
            row = next(csv.reader([line.decode("utf-8-sig" if number == 1 else "utf-8")]), [])
        except (UnicodeDecodeError, csv.Error) as error:
            return [BadLine(number, str(error))]
        row = [value.strip() for value in row]
        if not any(row):
            return []
        if not self._columns:
            self._columns = self._header(row)
            return []
        problem = self._row_problem(row)
        return [BadLine(number, problem)] if problem else self._add(number, row)

    def finish(self) -> list[Outcome]:
        reports: list[Outcome] = [self._closed(chamber, report) for chamber, report in self._open.items()]
        self._open.clear()
        return reports

    def _header(self, row: list[str]) -> dict[str, int]:
        columns = {name.lower(): index for index, name in enumerate(row)}
        missing = [name for name in _REQUIRED if name not in columns]
        if missing:
            raise InputError(
                f"the CSV has no column {', '.join(missing)}: its first line must name the columns "
                f"{', '.join(_REQUIRED)} (and {', '.join(_OPTIONAL)}, if wanted)"
            )
        return columns

    def _value(self, row: list[str], column: str) -> str:
        index = self._columns.get(column)
        return "" if index is None or index >= len(row) else row[index]

    def _row_problem(self, row: list[str]) -> str | None:
        chamber = self._value(row, "chamber")
        problem = name_problem(chamber)
        if problem:
            return f"chamber {chamber!r} {problem}"
        for column in ("count", "units"):
            if _number(self._value(row, column)) is None:
                return f"{column} {self._value(row, column)!r} is not a number"
        return None

    def _add(self, number: int, row: list[str]) -> list[Outcome]:
        chamber, run, at = (self._value(row, column) for column in ("chamber", "run", "at"))
        done: list[Outcome] = []
        report = self._open.get(chamber)
        if report is not None and (report.run, report.at) != (run, at):
            done.append(self._closed(chamber, self._open.pop(chamber)))
            report = None
        if report is None:
            if len(self._open) >= CHAMBERS_OPEN_MAX:
                oldest = next(iter(self._open))
                done.append(self._closed(oldest, self._open.pop(oldest)))
            report = self._open[chamber] = _Open(number, run, at)
        report.charts.append(self._value(row, "chart"))
        report.counts.append(_number(self._value(row, "count")) or 0)
        report.units.append(_number(self._value(row, "units")) or 0)
        return done

    def _closed(self, chamber: str, report: _Open) -> Publishable:
        tree: dict[str, object] = {"chamber": chamber}
        if report.run:
            tree["run"] = report.run
        if report.at:
            tree["at"] = int(report.at) if report.at.isdecimal() else report.at
        tree |= {"charts": report.charts, "counts": report.counts, "units": report.units}
        return Publishable(report.line, chamber, msgspec.json.encode(tree))


def _number(text: str) -> int | float | None:
    """A finite number, whole where it is written so; None for anything else (JSON has no NaN)."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
