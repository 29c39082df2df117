"""``defender chart`` against a real nats-server: in the terminal, as pictures, as columns, and its errors."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import drawn
import pytest
from test_cli import Cli, cli_for, store_verdicts, verdict

from runtime.config import Settings
from runtime.wire import Verdict

PNG = b"\x89PNG\r\n\x1a\n"
CHART = ("chart", drawn.CHAMBER, drawn.CHART)


@pytest.fixture
def cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield from cli_for(settings, monkeypatch, capsys)


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    """Phase I with samples left out, phase II with alarms, a reset, phase I anew."""
    return drawn.two_phases().verdicts


@pytest.fixture
def stored(cli: Cli, verdicts: list[Verdict]) -> Cli:
    store_verdicts(cli, [*verdicts, verdict("ETCH-08", 1)])
    return cli


def texts_of(svg: Path) -> str:
    root = ElementTree.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))


def test_a_chart_is_drawn_in_the_terminal_within_its_width(stored: Cli) -> None:
    code, out, err = stored(*CHART, "--last", "200")
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ETCH-07  particles"
    assert "\x1b" not in out, "no colours where there is no terminal"
    for told in (
        "123 samples, reports 1–124",
        "wet clean",
        "■",
        "×",
        "alarms",
        "UCL 0.2383",
        "rule 3: reports 118",
    ):
        assert told in out
    assert max(map(len, stored(*CHART, "--width", "120")[1].splitlines())) > 90


def test_in_a_terminal_as_many_samples_are_drawn_as_have_a_column(stored: Cli) -> None:
    assert "59 samples, reports 65–124" in stored(*CHART)[1]
    assert "99 samples, reports 25–124" in stored(*CHART, "--width", "120")[1]


def test_a_png_of_the_wanted_size_and_an_svg_with_its_texts_are_written(stored: Cli, tmp_path: Path) -> None:
    png, svg = tmp_path / "chart.png", tmp_path / "chart.svg"
    code, out, err = stored(*CHART, "--out", str(png), "--width", "1000", "--height", "600")
    assert (code, out) == (0, ""), err
    assert "123 samples" in err
    content = png.read_bytes()
    assert content[:8] == PNG
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (1000, 600)
    assert stored(*CHART, "--out", str(svg))[0] == 0
    told = texts_of(svg)
    for text in (
        "ETCH-07  particles",
        "reset: wet clean, new liner (WO 48213)",
        "UCL 0.2383",
        "1 ×6",
        "phase II",
    ):
        assert text in told
    again = tmp_path / "again.svg"
    assert stored(*CHART, "--out", str(again))[0] == 0
    assert again.read_bytes() == svg.read_bytes(), "the same verdicts, the same bytes"
    assert stored(*CHART, "--out", str(again), "--time")[0] == 0
    assert "time of the reports, UTC" in texts_of(again)


def test_the_columns_are_those_of_the_verdicts(stored: Cli, verdicts: list[Verdict]) -> None:
    (columns,) = stored.json(*CHART)
    samples = [one for one in verdicts if one.reset is None]
    for name in ("counts", "units", "u", "lcl", "centre", "ucl", "flags", "phase", "stage"):
        assert columns[name] == [getattr(one, name)[0] for one in samples]
    assert [columns["ordinal"][i] for i, out in enumerate(columns["left_out"]) if out] == [1, 22]
    assert [one["text"] for one in columns["breaks"]] == ["reset: wet clean, new liner (WO 48213)"]
    assert "cusum_up" not in columns, "a column in which nothing is is left out"
    (newest,) = stored.json(*CHART, "--last", "3")
    assert newest["ordinal"] == [122, 123, 124]


def small_print(cli: Cli, revision: int) -> str:
    """Of a chart whose newest sample was judged by a revision of the specs."""
    one = drawn.Chamber(drawn.ChartSpec(), revision=revision)
    one.poisson(3, 1.0, (5, 5))
    store_verdicts(cli, one.verdicts)
    return cli(*CHART, "--width", "200")[1]


def test_the_specs_of_the_newest_sample_are_in_the_small_print(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "specs.yaml"
    revisions = []
    for k in (2, 2.5):
        file.write_text(f"default: {{k: {k}}}")
        revisions.append(int(cli("specs", "apply", str(file))[1].rpartition(" ")[2]))
    for revision, told in zip((*revisions, 0), ("; 2 sigma; ", "; 2.5 sigma; ", "; 3 sigma; "), strict=True):
        assert told in small_print(cli, revision)
    purge = f"STREAM.PURGE.KV_{cli.settings.nats_kv_chart_specs}"
    cli.with_server(lambda connection: connection.api(purge, {"seq": revisions[1]}))
    for revision in (revisions[0], 99):
        assert "sigma" not in small_print(cli, revision), "a revision that is not kept is not described"


def test_what_there_is_instead_of_an_unknown_chamber_or_chart_is_named(stored: Cli) -> None:
    code, out, err = stored("chart", "ETCH-7", "particles")
    assert (code, out) == (65, "")
    assert "no verdicts of a chamber 'ETCH-7' are stored; there are those of ETCH-07, ETCH-08" in err
    code, _, err = stored("chart", "ETCH-08", "particle")
    assert (code, "it has p, q" in err) == (65, True)
    code, _, err = stored("chart", "ETCH-*", "p")
    assert (code, "chamber 'ETCH-*' has a character" in err) == (65, True)


def test_a_chamber_without_samples_and_a_fleet_without_verdicts_say_so(cli: Cli) -> None:
    code, _, err = cli(*CHART)
    assert (code, "correct NATS_SERVERS, STREAM_VERDICTS or PARTITIONS" in err) == (65, True)
    store_verdicts(cli, [])
    assert "nor of any other chamber" in cli(*CHART)[2]
    store_verdicts(cli, [Verdict(drawn.CHAMBER, 1, 1, 1, 0, reset="clean")])
    assert "only resets of ETCH-07 are stored" in cli(*CHART)[2]


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_server_is_asked(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is not there, which would be another error."""
    code, _, err = cli(*CHART, "--out", "chart.jpg")
    assert (code, "suffix .png or .svg" in err) == (65, True)
    assert "give 600 to 8000" in cli(*CHART, "--out", "chart.png", "--width", "80")[2]
    assert "give 40 to 1000" in cli(*CHART, "--width", "39")[2]
    assert "exclude each other" in cli(*CHART, "--out", "chart.png", "--json")[2]
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("runtime.plot", "runtime.plot_panels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr("runtime.plot", raising=False)
    code, _, err = cli(*CHART, "--out", str(tmp_path / "chart.png"))
    assert code == 69
    assert "pip install 'tfdc-defender[plot]'" in err


def test_a_picture_that_cannot_be_written_names_the_file(stored: Cli, tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "chart.png"
    code, _, err = stored(*CHART, "--out", str(file))
    assert (code, err.strip()) == (65, f"defender: {file}: No such file or directory")
