"""The history as a file: every value of the verdicts in CSV and Parquet, and a file that is whole or not."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import drawn
import pytest

from runtime import history_export as export
from runtime.errors import InputError
from runtime.history_export import COLUMNS, CsvFile, ExtraMissing, Format, ParquetFile, Rows, replaced
from runtime.wire import Verdict, rules_of

FLOATS = [column.name for column in COLUMNS if column.kind == "float64"]
FIELDS = {"count": "counts", "chart": "charts"}
"""Columns that the verdict has under another name."""


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    """With p-values, CUSUM, EWMA, Laney's limits, marks, alarms, resets, samples left out."""
    made = (drawn.varying_units, drawn.clustered, drawn.two_phases, drawn.overdispersed)
    return [verdict for scene in made for verdict in scene().verdicts]


def csv_of(verdicts: list[Verdict], charts: tuple[str, ...] = ()) -> list[dict[str, str]]:
    stream = io.BytesIO()
    rows = Rows(CsvFile(stream), lambda chart: not charts or chart in charts)
    rows.take(verdicts)
    rows.finish()
    return list(csv.DictReader(io.StringIO(stream.getvalue().decode())))


def test_every_float_of_a_csv_comes_back_bit_by_bit(verdicts: list[Verdict]) -> None:
    """Empty where the verdict has none; every column has a value somewhere."""
    samples = [verdict for verdict in verdicts if verdict.reset is None]
    rows = [row for row in csv_of(verdicts) if not row["reset"]]
    assert len(rows) == len(samples)
    for row, verdict in zip(rows, samples, strict=True):
        for name in FLOATS:
            values = getattr(verdict, name)
            assert (float(row[name]) if row[name] else None) == (values[0] if values else None)
    for name in (column.name for column in COLUMNS):
        assert any(row[name] for row in csv_of(verdicts)), f"nothing in {name}"


def test_a_row_says_which_report_chart_and_rules(verdicts: list[Verdict]) -> None:
    """Numbers, times to the nanosecond, and the rules as text."""
    rows = [row for row in csv_of(verdicts) if not row["reset"]]
    samples = [verdict for verdict in verdicts if verdict.reset is None]
    for row, verdict in zip(rows, samples, strict=True):
        for name in ("chamber", "seq", "ordinal", "run", "epoch", "spec", "defender"):
            assert row[name] == str(getattr(verdict, name))
        for name in ("chart", "count", "flags", "phase", "stage", "basis"):
            assert row[name] == str(getattr(verdict, FIELDS.get(name, name))[0])
        assert row["rules"] == ",".join(map(str, rules_of(verdict.flags[0])))
        assert row["at"].endswith(f"{verdict.at % 10**9:09d}Z")
        assert datetime.fromisoformat(row["at"]).timestamp() == pytest.approx(verdict.at / 1e9, abs=1e-5)


def sample(ordinal: int, charts: list[str], **fields: Any) -> Verdict:
    columns: dict[str, Any] = {
        **{name: [1.5] * len(charts) for name in ("units", "u", "centre", "lcl", "ucl")},
        **{name: [1] * len(charts) for name in ("counts", "flags", "phase", "basis", "stage")},
    }
    return Verdict("C1", ordinal, ordinal, 1, 0, at=1, charts=charts, **{**columns, **fields})


def test_a_reset_is_a_row_for_each_chart_that_it_names_and_one_where_it_names_none() -> None:
    """With its reason and the alarms that it ends, and no sample."""
    ended = {"event": [0, 3], "episode": [0, 7], "alerted": [0, 8], "alerted_at": [0, 9]}
    whole = Verdict("C1", 1, 1, 1, 0, at=1, reset="clean")
    some = Verdict("C1", 2, 2, 1, 0, at=1, charts=["a", "b"], reset="kit", **ended)
    first, *others = csv_of([whole, some])
    assert (first["chart"], first["reset"], first["count"], first["flags"]) == ("", "clean", "", "")
    assert [(row["chart"], row["event"], row["episode"]) for row in others] == [
        ("a", "", ""),
        ("b", "3", "7"),
    ]
    assert others[1]["alerted_at"] == "1970-01-01T00:00:00.000000009Z"


def test_of_some_charts_there_are_only_their_rows_and_the_resets_of_all() -> None:
    both = sample(1, ["a", "b"], counts=[5, 6], excluded={"a": [2, 3], "b": [4]})
    whole, other = Verdict("C1", 2, 2, 1, 0, reset="x"), Verdict("C1", 3, 3, 1, 0, charts=["a"], reset="y")
    rows = csv_of([both, whole, other], ("b",))
    assert [(row["chart"], row["count"], row["excluded"], row["reset"]) for row in rows] == [
        ("b", "6", "4", ""),
        ("", "", "", "x"),
    ]


def test_where_a_chart_has_no_alarm_and_no_mark_nothing_is_there() -> None:
    """0 in the verdict; but 0 reports without a signal are something while an alarm is open."""
    alarms = {"event": [1, 0], "episode": [4, 0], "quiet": [0, 0], "mark": [0, 1], "severity": ["info", ""]}
    first, second = csv_of([sample(1, ["a", "b"], **alarms)])
    assert [first[name] for name in ("event", "episode", "quiet", "mark", "severity")] == [
        *("1", "4", "0", "", "info")
    ]
    assert [second[name] for name in ("event", "episode", "quiet", "mark", "severity")] == [
        "",
        "",
        "",
        "1",
        "",
    ]


def test_what_is_not_wanted_is_remembered_until_something_is() -> None:
    rows = Rows(CsvFile(io.BytesIO()), lambda chart: chart == "c")
    rows.take([sample(1, ["a", "b"]), Verdict("C1", 2, 2, 1, 0, reset="x")])
    assert (rows.rows, rows.reports, rows.samples, rows.others) == (1, 1, 0, {"a", "b"})
    rows.take([sample(3, ["c"]), sample(4, ["d"])])
    assert (rows.rows, rows.samples, rows.others) == (2, 1, {"a", "b"})


class Counted:
    """Notes how many rows came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def write(self, table: export.Table) -> None:
        self.sizes.append(len(table[0]))

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


def test_rows_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as they come, whatever their number."""
    monkeypatch.setattr(export, "ROWS_AT_ONCE", 10)
    file = Counted()
    rows = Rows(file, lambda _: True)
    rows.take([sample(n, ["a", "b", "c"]) for n in range(1, 12)])
    assert file.sizes == [12, 12]
    rows.finish()
    assert (sum(file.sizes), rows.rows) == (33, 33)


def test_parquet_has_the_values_of_the_csv_in_types_of_their_own(
    verdicts: list[Verdict], tmp_path: Path
) -> None:
    """Times are UTC in nanoseconds, numbers are numbers, null is null."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "all.parquet"
    with replaced(path) as stream:
        rows = Rows(ParquetFile(stream), lambda _: True)
        rows.take(verdicts)
        rows.finish()
    table = parquet.read_table(path)
    assert table.schema.field("at").type == arrow.timestamp("ns", tz="UTC")
    assert table.schema.field("flags").type == arrow.uint16()
    texts = csv_of(verdicts)
    assert table.num_rows == len(texts) == rows.rows
    for column in COLUMNS:
        values = table.column(column.name)
        found = (values.cast("int64") if column.kind == "time" else values).to_pylist()
        told = [text[column.name] for text in texts]
        if column.kind == "time":
            assert [None if at is None else export.rfc3339(at) for at in found] == [
                text or None for text in told
            ]
        elif column.kind == "string":
            assert [value or "" for value in found] == told
        else:
            kind = float if column.kind == "float64" else int
            assert found == [kind(text) if text else None for text in told]


def test_row_groups_are_written_as_they_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(export, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(export, "ROWS_A_GROUP", 20)
    stream = io.BytesIO()
    rows = Rows(ParquetFile(stream), lambda _: True)
    rows.take([sample(n, ["a"]) for n in range(1, 46)])
    assert stream.tell() > 1000, "nothing is written before the end"
    rows.finish()
    metadata = parquet.ParquetFile(io.BytesIO(stream.getvalue())).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [20, 20, 5]


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'tfdc-defender\[parquet\]'"):
        export.check_format(Format.PARQUET)
    export.check_format(Format.CSV)


def test_a_time_is_told_to_its_last_digit() -> None:
    assert export.rfc3339(1_740_816_000_000_000_001) == "2025-03-01T08:00:00.000000001Z"
    assert export.rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"
    assert datetime.fromisoformat(export.rfc3339(0)) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file that is there already; nothing else may lie beside it afterwards."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"before")
    yield path
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


def test_a_file_has_its_name_only_when_it_is_whole(path: Path) -> None:
    with replaced(path) as stream:
        stream.write(b"after")
        stream.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize("broken", [KeyboardInterrupt, InputError, RuntimeError])
def test_an_interrupt_or_an_error_leaves_what_was_there(path: Path, broken: type[BaseException]) -> None:
    def write_half() -> None:
        with replaced(path) as stream:
            stream.write(b"half")
            raise broken

    with pytest.raises(broken):
        write_half()
    assert path.read_bytes() == b"before"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Its file is replaced, where that lies."""
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "far" / "out.csv")
    with replaced(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert (tmp_path / "far" / "out.csv").read_bytes() == b"new"


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replaced(pipe) as stream:
        stream.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("format", [Format.CSV, Format.PARQUET])
def test_a_full_disk_is_an_error_that_names_the_file(format: Format, verdicts: list[Verdict]) -> None:
    """Also of what is written at the end; nothing more is said."""
    if format is Format.PARQUET:
        pytest.importorskip("pyarrow")

    def write_all() -> None:
        with replaced(Path("/dev/full")) as stream:
            file = export.file_of(format, stream)
            rows = Rows(file, lambda _: True)
            try:
                rows.take(verdicts)
                rows.finish()
            except BaseException:
                file.abandon()
                raise

    with pytest.raises(InputError, match="/dev/full: No space left on device; nothing was written"):
        write_all()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"nowhere/x\.csv: No such file"),
        replaced(tmp_path / "nowhere/x.csv"),
    ):
        pass
    with pytest.raises(InputError, match="is a folder: name a file in it"), replaced(tmp_path):
        pass
