"""The history as a file: one row a sample, CSV or Parquet, in bounded memory. Needs no server.

    verdicts ── Rows ──► columns of some thousand rows ── CsvFile or ParquetFile ──► a stream of bytes

A reset is a row too, one for each chart that it names, or one without a chart where it names none: with its
reason in ``reset``, and no sample. A value that a chart has not is null (empty in CSV).

`replaced` gives the stream to write: it gets its name only when it is whole.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from runtime.errors import DefenderError, InputError
from runtime.wire import Verdict, rules_of, to_datetime

ROWS_AT_ONCE: Final = 8_192
"""Rows that are put together before they are written: some 5 MB."""
ROWS_A_GROUP: Final = 131_072
"""Rows of a row group of Parquet: some 30 MB until it is written."""
_SECOND_NS: Final = 1_000_000_000


class ExtraMissing(DefenderError):
    """Parquet is asked for where pyarrow is not installed."""

    exit_code = 69


class Format(StrEnum):
    """How the rows are written."""

    CSV = "csv"
    PARQUET = "parquet"


class Column(NamedTuple):
    """A column of the file; *kind* is pyarrow's name of its type."""

    name: str
    kind: str
    of: Callable[[Verdict, list[int]], list[Any]]
    """Its values for these entries of a verdict's charts."""
    of_reset: bool = False
    """Whether a reset has it, too."""


def _entry(field: str) -> Callable[[Verdict, list[int]], list[Any]]:
    """Entries of a list, which some verdicts have not."""

    def of(verdict: Verdict, rows: list[int]) -> list[Any]:
        values: list[Any] = getattr(verdict, field)
        if not values:
            return [None] * len(rows)
        return values if len(rows) == len(values) else [values[i] for i in rows]

    return of


def _some(field: str) -> Callable[[Verdict, list[int]], list[Any]]:
    """The same, where 0 or an empty text says that a chart has none."""
    entries = _entry(field)

    def of(verdict: Verdict, rows: list[int]) -> list[Any]:
        return [value or None for value in entries(verdict, rows)]

    return of


def _whole(field: str) -> Callable[[Verdict, list[int]], list[Any]]:
    return lambda verdict, rows: [getattr(verdict, field)] * len(rows)


def _quiet(verdict: Verdict, rows: list[int]) -> list[Any]:
    """Reports since the newest signal of an open alarm: 0 says something there."""
    if not verdict.episode or not verdict.quiet:
        return [None] * len(rows)
    return [verdict.quiet[i] if verdict.episode[i] else None for i in rows]


def _rules(verdict: Verdict, rows: list[int]) -> list[Any]:
    return [",".join(map(str, rules_of(verdict.flags[i]))) if verdict.flags[i] else "" for i in rows]


def _left_out(verdict: Verdict, rows: list[int]) -> list[Any]:
    if not verdict.excluded:
        return [None] * len(rows)
    found = (verdict.excluded.get(verdict.charts[i]) for i in rows)
    return [",".join(map(str, ordinals)) if ordinals else None for ordinals in found]


COLUMNS: Final = (
    Column("chamber", "string", _whole("chamber"), of_reset=True),
    Column("chart", "string", _entry("charts"), of_reset=True),
    Column("seq", "int64", _whole("seq"), of_reset=True),
    Column("ordinal", "int64", _whole("ordinal"), of_reset=True),
    Column("run", "string", _whole("run"), of_reset=True),
    Column("at", "time", _whole("at"), of_reset=True),
    Column("count", "int64", _entry("counts")),
    *(Column(name, "float64", _entry(name)) for name in ("units", "u", "centre", "lcl", "ucl")),
    Column("flags", "uint16", _entry("flags")),
    Column("rules", "string", _rules),
    Column("phase", "uint8", _entry("phase")),
    Column("stage", "uint32", _entry("stage")),
    Column("basis", "uint32", _entry("basis")),
    *(Column(name, "float64", _entry(name)) for name in ("p", "sigma_z")),
    Column("mark", "uint8", _some("mark")),
    *(
        Column(name, "float64", _entry(name))
        for name in (
            *("cusum_up", "cusum_down", "cusum_limit_up", "cusum_limit_down"),
            *("ewma", "ewma_variance", "ewma_lcl", "ewma_ucl", "typical_units"),
        )
    ),
    Column("severity", "string", _some("severity")),
    Column("event", "uint8", _some("event"), of_reset=True),
    Column("episode", "uint32", _some("episode"), of_reset=True),
    Column("alerted", "uint32", _some("alerted"), of_reset=True),
    Column("alerted_at", "time", _some("alerted_at"), of_reset=True),
    Column("quiet", "uint16", _quiet),
    Column("excluded", "string", _left_out),
    Column("reset", "string", _whole("reset"), of_reset=True),
    *(Column(name, "int64", _whole(name), of_reset=True) for name in ("epoch", "spec")),
    Column("defender", "string", _whole("defender"), of_reset=True),
)
"""Every column, in the file's order. Times are UTC, in ns since 1970; ``rules`` and ``excluded`` are numbers
with commas between; all else as `runtime.wire.Verdict` has it."""

Table = list[list[Any]]
"""The values of some rows: a list a column of COLUMNS."""


class File(Protocol):
    """Takes rows, and ends what it has written."""

    def write(self, table: Table) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None:
        """Ends without a word: what was written is thrown away."""


class Rows:
    """Makes rows of verdicts and gives them to a file. *wanted*: whether a chart is to be in it."""

    def __init__(self, file: File, wanted: Callable[[str], bool]) -> None:
        self._file, self._wanted = file, wanted
        self._table: Table = [[] for _ in COLUMNS]
        self.rows = self.reports = self.samples = 0
        """So far: rows, reports that have any, rows that are no resets."""
        self.others: set[str] = set()
        """Charts that are not wanted, as long as none was found that is."""

    def take(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            rows = self._rows_of(verdict)
            self.rows += len(rows)
            self.reports += bool(rows)
            if verdict.reset is None:
                self.samples += len(rows)
            if not self.samples:
                self.others.update(verdict.charts)
            self._append(verdict, rows)
            if len(self._table[0]) >= ROWS_AT_ONCE:
                self._write()

    def finish(self) -> None:
        self._write()
        self._file.finish()

    def _rows_of(self, verdict: Verdict) -> list[int]:
        """The entries that make a row; -1 for a reset of all charts."""
        if verdict.reset is not None and not verdict.charts:
            return [-1]
        return [i for i, chart in enumerate(verdict.charts) if self._wanted(chart)]

    def _append(self, verdict: Verdict, rows: list[int]) -> None:
        is_reset = verdict.reset is not None
        for column, values in zip(COLUMNS, self._table, strict=True):
            has_it = column.of_reset or not is_reset
            values.extend(column.of(verdict, rows) if has_it else [None] * len(rows))

    def _write(self) -> None:
        if self._table[0]:
            self._file.write(self._table)
            self._table = [[] for _ in COLUMNS]


class CsvFile:
    """CSV, UTF-8, a line a row after a line of names; times as RFC 3339, floats so that they come back bit by
    bit. `defender publish` reads it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._times = [place for place, column in enumerate(COLUMNS) if column.kind == "time"]
        self._is_headed = False

    def write(self, table: Table) -> None:
        if not self._is_headed:
            self._is_headed = True
            self._lines([[column.name for column in COLUMNS]])
        columns = list(table)
        for place in self._times:
            columns[place] = [None if at is None else rfc3339(at) for at in columns[place]]
        self._lines(zip(*columns, strict=True))

    def _lines(self, rows: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._stream.write(text.getvalue().encode())

    def finish(self) -> None:
        self._stream.flush()

    def abandon(self) -> None:
        """Nothing is held back."""


class ParquetFile:
    """Parquet by pyarrow, compressed with zstd. Raises ExtraMissing without it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._arrow, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
        self._types = [self._type(column.kind) for column in COLUMNS]
        fields = [(column.name, kind) for column, kind in zip(COLUMNS, self._types, strict=True)]
        self._schema = self._arrow.schema(fields)
        self._stream = stream
        self._writer = parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._batches: list[Any] = []
        self._waiting = 0

    def _type(self, kind: str) -> Any:
        return self._arrow.timestamp("ns", tz="UTC") if kind == "time" else getattr(self._arrow, kind)()

    def write(self, table: Table) -> None:
        arrays = [
            self._arrow.array(values, type=kind) for values, kind in zip(table, self._types, strict=True)
        ]
        self._batches.append(self._arrow.record_batch(arrays, schema=self._schema))
        self._waiting += len(table[0])
        if self._waiting >= ROWS_A_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            group = self._arrow.Table.from_batches(self._batches, schema=self._schema)
            self._batches, self._waiting = [], 0
            self._writer.write_table(group, row_group_size=group.num_rows)

    def finish(self) -> None:
        self._write_group()
        self._writer.close()
        self._stream.flush()

    def abandon(self) -> None:
        with suppress(OSError, ValueError):  # it writes an end, for which there may be no room either
            self._writer.close()


def file_of(format: Format, stream: BinaryIO) -> File:
    """The file in *format* that is written to *stream*."""
    return ParquetFile(stream) if format is Format.PARQUET else CsvFile(stream)


def check_format(format: Format) -> None:
    """Raises ExtraMissing where the format cannot be written: to know it before anything is read."""
    if format is Format.PARQUET:
        _arrow("pyarrow.parquet")


def _arrow(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise ExtraMissing(
            "Parquet needs pyarrow: pip install 'tfdc-defender[parquet]'; --format csv does without"
        ) from error


@lru_cache(maxsize=1024)
def rfc3339(at_ns: int) -> str:
    """A time in ns since 1970 to the last digit: 2025-03-01T08:00:00.000000001Z."""
    whole = to_datetime(at_ns).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{at_ns % _SECOND_NS:09d}Z"


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes are the file *path* once the block ends; after an error, or an interrupt, there is
    what was there before, and nothing beside it. A device or a pipe is written as it is.

    Raises InputError where it cannot be written.
    """
    try:
        target = path.resolve()
        with suppress(FileNotFoundError):
            mode = target.stat().st_mode
            if stat.S_ISDIR(mode):
                raise InputError(f"{path} is a folder: name a file in it")
            if not stat.S_ISREG(mode):
                with target.open("wb") as stream:
                    yield stream
                return
        with _beside(target) as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; nothing was written") from error


@contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
