"""``defender specs advise``, and specs that need a design, against a real nats-server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import Cli, cli_for, specs_in_force, verdict

from runtime import wire
from runtime.bus import Connection
from runtime.config import Settings
from runtime.specs import ChartSpec, Cusum, Limits, Specs, designed
from runtime.wire import Verdict

CHARTS = ["calm", "rare", "wild"]
SAMPLES = 150


@pytest.fixture
def cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield from cli_for(settings, monkeypatch, capsys)


def judged(chamber: str, samples: int, **fields: Any) -> list[Verdict]:
    """Verdicts of three charts: as Poisson has it at 100, the same at 0.5, and twice as wide at 100."""
    random = np.random.default_rng(7)
    rates = np.stack([np.full(samples, 100.0), np.full(samples, 0.5), random.gamma(33.0, 3.0, samples)])
    columns: dict[str, Any] = {
        "charts": CHARTS,
        "units": [1.0] * 3,
        "centre": [100.0, 0.5, 100.0],
        "lcl": [70.0, 0.0, 70.0],
        "ucl": [130.0, 2.6, 130.0],
        "flags": [0] * 3,
        "phase": [2] * 3,
        "basis": [1] * 3,
        "stage": [1] * 3,
        **fields,
    }
    return [
        verdict(chamber, number, **columns, counts=counts, u=[float(count) for count in counts])
        for number, counts in enumerate(random.poisson(rates).T.tolist(), start=1)
    ]


def store_verdicts(cli: Cli, verdicts: list[Verdict]) -> None:
    names = cli.settings.names

    async def store(connection: Connection) -> None:
        for one in verdicts:
            subject = names.verdict(names.partition_of(one.chamber), one.chamber)
            await connection.store(subject, wire.msgpack_encoder.encode(one))

    cli.with_server(store)


def test_advice_tells_limits_by_chart_and_why(cli: Cli) -> None:
    store_verdicts(cli, judged("ETCH-1", SAMPLES) + judged("ETCH-2", 9) + judged("CVD-1", SAMPLES))
    (told,) = cli.json("specs", "advise", "--chamber", "ETCH-*")
    rows = {(row["chamber"], row["chart"]): row for row in told}
    assert {chart: rows["ETCH-1", chart]["advised"] for chart in CHARTS} == {
        "calm": "three_sigma",
        "rare": "exact",
        "wild": "laney",
    }
    assert rows["ETCH-1", "wild"]["sigma_z"] > 1.5
    assert rows["ETCH-1", "rare"]["expected_count"] == pytest.approx(0.5, abs=0.2)
    assert [rows["ETCH-2", chart]["advised"] for chart in CHARTS] == [None] * 3
    assert len(rows) == 6
    code, out, err = cli("specs", "advise", "--chamber", "ETCH-1", "--chart", "[rw]*")
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["ETCH-1", "rare"], ["ETCH-1", "wild"]]
    assert "other limits advised for 2 of 2 charts" in err


def test_the_entries_of_an_advice_can_be_applied_and_then_nothing_more_is_advised(
    cli: Cli, tmp_path: Path
) -> None:
    store_verdicts(cli, judged("ETCH-1", SAMPLES))
    code, entries, err = cli("specs", "advise", "--yaml")
    assert code == 0, err
    file = tmp_path / "specs.yaml"
    file.write_text(entries)
    assert cli("specs", "apply", str(file))[0] == 0
    in_force, _ = specs_in_force(cli)
    assert in_force.charts == (
        ChartSpec("ETCH-1", "rare", limits=Limits.EXACT),
        ChartSpec("ETCH-1", "wild", limits=Limits.LANEY),
    )
    code, entries, err = cli("specs", "advise", "--yaml")
    assert (code, entries) == (0, "")
    assert "other limits advised for 0 of 3 charts" in err


def test_before_anything_was_judged_there_is_nothing_to_advise(cli: Cli) -> None:
    code, out, err = cli("specs", "advise")
    assert (code, out, err) == (0, "", "no verdicts of such charts are stored yet\n")
    assert cli("specs", "advise", "--json", "--yaml")[0] == 65


def test_an_applied_document_carries_its_designs_which_people_do_not_see(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "specs.yaml"
    file.write_text("default: {cusum: {ratio: 2, arl0: 100}}")
    assert cli("specs", "check", str(file))[0] == 0
    code, _, err = cli("specs", "apply", str(file))
    assert code == 0, err
    in_force, _ = specs_in_force(cli)
    spec = ChartSpec(cusum=Cusum(ratio=2.0, arl0=100.0))
    assert in_force == designed(Specs(default=spec))
    assert len(in_force.designs) == 1
    assert "nothing changes" in cli("specs", "apply", str(file))[2]
    _, shown, _ = cli("specs", "show")
    assert shown == "default:\n  cusum:\n    ratio: 2.0\n    arl0: 100.0\n"
    (as_json,) = cli.json("specs", "show")
    assert as_json["specs"] == {"default": {"cusum": {"ratio": 2.0, "arl0": 100.0}}}
