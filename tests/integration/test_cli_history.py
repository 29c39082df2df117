"""``defender history show`` and ``export`` against a real nats-server, and their errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import drawn
import msgspec
import pytest
from test_cli import AT_NS, Cli, cli_for, store_verdicts, verdict

from runtime import history_export
from runtime.bus import Connection
from runtime.config import Settings
from runtime.history_copy import published
from runtime.records import RING_KEY, Member, RingRecord
from runtime.wire import Verdict

DAY = "2025-03-01T08:00:00"
"""The time of the test's verdicts: each is its number of nanoseconds later."""


@pytest.fixture
def cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield from cli_for(settings, monkeypatch, capsys)


@pytest.fixture
def stored(cli: Cli) -> Cli:
    """ETCH-07 as a worker judged it, a few reports of ETCH-08 and CVD-01."""
    etch = [verdict("ETCH-08", n, charts=["p", f"q{n}"]) for n in range(1, 4)]
    minute = 60_000_000_000
    cvd = [verdict("CVD-01", n, at=AT_NS + n * minute) for n in range(1, 31)]
    store_verdicts(cli, [*drawn.two_phases().verdicts, *etch, *cvd])
    return cli


def test_the_chambers_are_listed_with_what_is_stored_of_them(stored: Cli) -> None:
    code, out, err = stored("history", "show")
    assert (code, err.strip()) == (0, "3 chambers, 157 reports")
    heading, *lines = out.splitlines()
    assert heading.split()[:4] == ["chamber", "partition", "reports", "numbers"]
    assert [line.split()[0] for line in lines] == ["CVD-01", "ETCH-07", "ETCH-08"]
    assert lines[0].split()[2:6] == ["30", "1–30", "2025-03-01", "08:01:00"]
    assert lines[0].split()[6:] == ["2025-03-01", "08:30:00", "p,", "q"]
    (only,) = stored.json("history", "show", "ETCH-*8")
    assert (only["chamber"], only["reports"], only["charts"]) == ("ETCH-08", 3, ["p", "q1", "q2", "q3"])


def test_within_a_span_the_reports_are_counted(stored: Cli) -> None:
    """First inclusive, end exclusive; chambers without any are left out."""
    (only,) = stored.json("history", "show", "--since", f"{DAY[:14]}05:00Z", "--until", f"{DAY[:14]}10:00Z")
    assert (only["chamber"], only["reports"], only["first_ordinal"], only["last_ordinal"]) == (
        "CVD-01",
        5,
        5,
        9,
    )


def test_a_chambers_reports_are_a_line_each_and_the_newest_twenty(stored: Cli) -> None:
    code, out, err = stored("history", "show", "CVD-01")
    assert (code, err) == (0, "")
    heading, *lines = out.splitlines()
    assert heading.split()[2:4] == ["report", "seq"]
    assert [int(line.split()[2]) for line in lines] == list(range(11, 31))
    assert lines[-1].split() == [
        *("2025-03-01", "08:30:00.000", "30", "30", "r30", "2", "1", "mixed", "p", "1")
    ]
    assert len(stored("history", "show", "CVD-01", "--last", "3")[1].splitlines()) == 4
    assert len(stored("history", "show", "CVD-01", "--since", "all")[1].splitlines()) == 31


def test_a_reset_is_shown_with_its_reason(stored: Cli) -> None:
    out = stored("history", "show", "ETCH-07", "--since", "all")[1]
    (line,) = [line for line in out.splitlines() if "reset of" in line]
    assert line.endswith("reset of particles: wet clean, new liner (WO 48213)")


def test_of_a_chart_the_columns_are_shown(stored: Cli) -> None:
    verdicts = drawn.two_phases().verdicts
    code, out, err = stored("history", "show", "ETCH-07", "--chart", "part*", "--last", "2")
    assert (code, err) == (0, "")
    heading, *lines = out.splitlines()
    titles = "report run chart count units u LCL centre UCL flags phase stage rules"
    assert heading.split()[2:] == titles.split()
    for line, one in zip(lines, verdicts[-2:], strict=True):
        report, run, chart, count, units, u, *limits, flags = line.split()[2:12]
        stage = line.split()[14]
        assert (int(report), run, chart) == (one.ordinal, one.run, "particles")
        assert (int(count), float(units), float(u)) == (
            *(one.counts[0], one.units[0]),
            pytest.approx(one.u[0], rel=1e-4),
        )
        ucl = one.ucl[0]
        assert ucl is not None
        assert float(limits[2]) == pytest.approx(ucl, rel=1e-4)
        assert (int(flags), int(stage)) == (one.flags[0], one.stage[0])


def test_as_json_a_report_is_the_verdict(stored: Cli) -> None:
    trees = stored.json("history", "show", "ETCH-07", "--since", "all")
    assert [msgspec.convert(tree, Verdict) for tree in trees] == drawn.two_phases().verdicts


def test_what_there_is_instead_of_an_unknown_name_is_said(stored: Cli) -> None:
    code, out, err = stored("history", "show", "ETCH-7")
    assert (code, out) == (65, "")
    assert "no reports of a chamber 'ETCH-7' are stored; there are those of ETCH-07, ETCH-08" in err
    code, out, err = stored("history", "show", "ETCH-08", "--chart", "pq")
    assert (code, out) == (65, "")
    assert "ETCH-08 has no chart 'pq' in what is stored; it has p" in err
    assert "there are those of" in stored("history", "show", "X*")[2]
    assert "has a character" in stored("history", "show", "ETCH 07")[2]
    assert "name it" in stored("history", "show", "--chart", "p")[2]
    code, out, err = stored("history", "export", "-", "--chart", "nothing")
    assert (code, out) == (65, "")
    assert "no chart 'nothing' in what is stored; there are p" in err


def test_times_are_spans_or_rfc_3339_and_an_empty_span_is_an_error(stored: Cli) -> None:
    show = ("history", "show", "CVD-01")
    assert "--until 'soon': give a span" in stored(*show, "--until", "soon")[2]
    assert "is not before --until '2d'" in stored(*show, "--since", "1d", "--until", "2d")[2]
    code, out, err = stored(*show, "--since", "2031-01-01")
    assert (code, out, "nothing is stored of CVD-01 since 2031-01-01" in err) == (65, "", True)
    assert len(stored.json(*show, "--since", f"{DAY}Z", "--until", "1m")) == 30


def test_nothing_stored_and_no_stream_say_so(cli: Cli) -> None:
    code, _, err = cli("history", "show")
    assert (code, "correct NATS_SERVERS, STREAM_VERDICTS or PARTITIONS" in err) == (65, True)
    store_verdicts(cli, [])
    assert "no reports of any chamber are stored yet" in cli("history", "show")[2]
    assert "nor of any other chamber" in cli("history", "show", "ETCH-07")[2]


def test_other_partitions_than_the_fleets_are_refused(stored: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them only some chambers would be found, without a word."""
    record = RingRecord(1, 64, {"defender-0": Member("stable")})
    bucket = stored.settings.nats_kv_assignments

    async def commit(connection: Connection) -> None:
        await connection.store(f"$KV.{bucket}.{RING_KEY}", msgspec.json.encode(record))

    stored.with_server(commit)
    monkeypatch.setenv("PARTITIONS", "32")
    for command in (("show",), ("export", "-"), ("copy", "--from", "jetstream", "--to", "cassandra")):
        code, out, err = stored("history", *command)
        assert (code, out) == (64, "")
        assert "run it with PARTITIONS=64" in err


def test_a_verdict_that_cannot_be_read_is_told(cli: Cli) -> None:
    store_verdicts(cli, [])
    names = cli.settings.names
    subject = names.verdict(names.partition_of("C"), "C")
    broken = msgspec.msgpack.encode({"chamber": "C", "seq": 1, "ordinal": 1, "epoch": 1, "spec": "three"})
    cli.with_server(lambda connection: connection.store(subject, broken))
    code, out, err = cli("history", "show", "C")
    assert (code, out) == (78, "")
    assert "a stored verdict cannot be read" in err


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_an_export_has_every_sample_in_order(stored: Cli, tmp_path: Path) -> None:
    """By chamber, report, chart; to a file, and to standard output."""
    file = tmp_path / "all.csv"
    code, out, err = stored("history", "export", str(file))
    assert (code, out, err.strip()) == (0, "", f"{file}: 190 rows of 157 reports")
    rows = rows_of(file.read_text())
    keys = [(row["chamber"], int(row["ordinal"])) for row in rows]
    assert keys == sorted(keys)
    assert [row["chart"] for row in rows[:4]] == ["p", "q", "p", "q"]
    judged = [one for one in drawn.two_phases().verdicts if one.reset is None]
    found = [row for row in rows if row["chamber"] == "ETCH-07" and not row["reset"]]
    assert [float(row["u"]) for row in found] == [one.u[0] for one in judged]
    code, out, err = stored("history", "export", "-")
    assert (code, out, err.strip()) == (0, file.read_text(), "190 rows of 157 reports")


def test_chambers_charts_and_times_are_chosen(stored: Cli) -> None:
    def exported(*options: str) -> list[dict[str, str]]:
        code, out, err = stored("history", "export", "-", *options)
        assert code == 0, err
        return rows_of(out)

    assert {row["chamber"] for row in exported("--chamber", "CVD-01", "--chamber", "*08")} == {
        "CVD-01",
        "ETCH-08",
    }
    assert {row["chart"] for row in exported("--chart", "q?", "--chart", "q")} == {"q", "q1", "q2", "q3"}
    between = exported("--since", f"{DAY[:14]}05:00Z", "--until", f"{DAY[:14]}06:00Z")
    assert [row["at"] for row in between] == [f"{DAY[:14]}05:00.000000000Z"] * 2
    code, _, err = stored("history", "export", "-", "--chamber", "CVD-01", "--chamber", "CVD-2")
    assert (code, "no reports of a chamber 'CVD-2'" in err) == (65, True)


def test_what_was_exported_can_be_published_again(stored: Cli, tmp_path: Path) -> None:
    file = tmp_path / "cvd.csv"
    assert stored("history", "export", str(file), "--chamber", "CVD-01")[0] == 0
    (tally,) = stored.json("publish", str(file))
    assert (tally["stored"], tally["bad_lines"]) == (30, 0)
    (first, *_) = stored.stored(stored.settings.stream_samples)
    report = msgspec.json.decode(first.payload)
    assert (report["counts"], report["units"], report["run"]) == ([1, 0], [1.0, 2.0], "r1")


def test_parquet_is_written_by_its_ending(stored: Cli, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "all.parquet"
    code, out, err = stored("history", "export", str(file))
    assert (code, out) == (0, ""), err
    table = parquet.read_table(file)
    assert table.num_rows == 190
    assert table.column("chamber").to_pylist() == [
        row["chamber"] for row in rows_of(stored("history", "export", "-")[1])
    ]


@pytest.mark.parametrize("broken", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_breaks_off_leaves_nothing(
    stored: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: type[BaseException] | BaseException
) -> None:
    """An interrupt has its own code; of what was there before nothing is lost."""
    file = tmp_path / "all.csv"
    file.write_text("before")

    def write(self: history_export.CsvFile, table: history_export.Table) -> None:
        self._stream.write(b"half")
        raise broken

    monkeypatch.setattr(history_export.CsvFile, "write", write)
    code, out, err = stored("history", "export", str(file))
    assert (code, out) == (130 if broken is KeyboardInterrupt else 65, "")
    assert broken is KeyboardInterrupt or f"{file}: No space left on device; nothing was written" in err
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("all.csv", "before")]


def test_a_file_that_cannot_be_written_or_is_of_no_known_kind_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Before the server is asked, whose stream is not there."""
    assert "ending .parquet or .csv" in cli("history", "export", str(tmp_path / "x.txt"))[2]
    code, _, err = cli("history", "export", str(tmp_path / "nowhere" / "x.csv"))
    assert (code, "nowhere/x.csv: No such file or directory" in err) == (65, True)
    assert "is a folder" in cli("history", "export", str(tmp_path), "--format", "csv")[2]


def test_copying_a_store_into_itself_is_refused(cli: Cli) -> None:
    code, _, err = cli("history", "copy", "--from", "jetstream", "--to", "jetstream")
    assert (code, "give two stores" in err) == (65, True)


def test_the_tests_verdicts_are_as_a_worker_publishes_them() -> None:
    """Or what is said of bytes here would say nothing."""
    one = drawn.two_phases().verdicts[40]
    assert msgspec.msgpack.decode(published(one))["defender"] == "defender-0"
