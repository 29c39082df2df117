"""Reports from files: what of a line is sent, what is told as a bad line, which ID the server sees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.cli import reports_file
from runtime.cli.reports_file import BadLine, Csv, Ndjson, Outcome, Parser, Publishable
from runtime.errors import InputError


def parsed(parser: Parser, text: str) -> list[Outcome]:
    outcomes = []
    for number, line in enumerate(text.encode().split(b"\n"), 1):
        outcomes += parser.feed(number, line)
    return outcomes + parser.finish()


def reports(outcomes: list[Outcome]) -> list[tuple[str, Any]]:
    return [(o.chamber, msgspec.json.decode(o.payload)) for o in outcomes if isinstance(o, Publishable)]


def bad(outcomes: list[Outcome]) -> dict[int, str]:
    return {o.line: o.problem for o in outcomes if isinstance(o, BadLine)}


def test_an_ndjson_line_is_sent_byte_by_byte_as_it_is() -> None:
    line = '{"chamber":  "E-1", "charts":["p"],"counts":[-1],"units":["odd"], "more": null}'
    (only,) = parsed(Ndjson(), f"  {line}\r\n")
    assert only == Publishable(1, "E-1", line.encode()), "the defender judges what is in it"


def test_an_ndjson_line_without_a_possible_chamber_is_a_bad_line() -> None:
    lines = ["{", "[]", '{"charts": []}', '{"chamber": 5}', '{"chamber": "a.b"}', "", '{"chamber": "fine"}']
    outcomes = parsed(Ndjson(), "\n".join(lines))
    assert sorted(bad(outcomes)) == [1, 2, 3, 4, 5]
    assert reports(outcomes) == [("fine", {"chamber": "fine"})]


def test_csv_rows_of_a_chamber_run_and_time_make_one_report() -> None:
    text = (
        "Chamber,run,at,chart,count,units,operator\n"
        "A,r1,2025-03-01T08:00:00Z,p,3,25,x\n"
        "B,r9,1740816000000000000,p,1,2.5,x\n"
        'A,r1,2025-03-01T08:00:00Z,"q",0,1,x\n'
        "A,r2,2025-03-01T08:00:00Z,p,4,25,x\n"
    )
    outcomes = parsed(Csv(), text)
    at = "2025-03-01T08:00:00Z"
    assert sorted(reports(outcomes), key=str) == [
        (
            "A",
            {"chamber": "A", "run": "r1", "at": at, "charts": ["p", "q"], "counts": [3, 0], "units": [25, 1]},
        ),
        ("A", {"chamber": "A", "run": "r2", "at": at, "charts": ["p"], "counts": [4], "units": [25]}),
        (
            "B",
            {
                "chamber": "B",
                "run": "r9",
                "at": 1740816000000000000,
                "charts": ["p"],
                "counts": [1],
                "units": [2.5],
            },
        ),
    ]
    order = [tree["run"] for chamber, tree in reports(outcomes) if chamber == "A"]
    assert order == ["r1", "r2"], "a chamber's reports stay in order"


def test_csv_sends_numbers_as_they_are_and_tells_what_is_no_number() -> None:
    text = (
        "chamber,chart,count,units\nA,p,-3,1\nA,q,2.5,0\nA,r,nan,1\nA,s,1,inf\nA,t,,1\nA\nx y,p,1,1\n\xef\n"
    )
    outcomes = parsed(Csv(), text)
    assert reports(outcomes) == [
        ("A", {"chamber": "A", "charts": ["p", "q"], "counts": [-3, 2.5], "units": [1, 0]})
    ]
    problems = bad(outcomes)
    assert sorted(problems) == [4, 5, 6, 7, 8, 9]
    assert problems[4] == "count 'nan' is not a number"


def test_csv_in_another_encoding_is_told_line_by_line() -> None:
    parser = Csv()
    assert parser.feed(1, "\N{BYTE ORDER MARK}chamber,chart,count,units".encode()) == []
    (problem,) = parser.feed(2, b"K\xe4mmer,p,1,1")
    assert isinstance(problem, BadLine)


def test_csv_without_a_needed_column_is_refused_with_the_columns_that_it_must_have() -> None:
    with pytest.raises(InputError, match="no column count, units: its first line must name the columns"):
        parsed(Csv(), "chamber,chart,value\nA,p,1\n")


def test_csv_keeps_a_bounded_number_of_reports_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports_file, "CHAMBERS_OPEN_MAX", 3)
    parser = Csv()
    parser.feed(1, b"chamber,chart,count,units")
    sent = [outcome for n in range(10) for outcome in parser.feed(n + 2, f"C{n},p,1,1".encode())]
    assert [o.chamber for o in sent if isinstance(o, Publishable)] == [f"C{n}" for n in range(7)]
    assert len(parser.finish()) == 3


def test_a_message_id_depends_on_the_chamber_and_the_content_and_on_nothing_else() -> None:
    one = Publishable(1, "A", b"{}")
    assert one.msg_id == Publishable(99, "A", b"{}").msg_id
    assert len({one.msg_id, Publishable(1, "B", b"{}").msg_id, Publishable(1, "A", b"{ }").msg_id}) == 3
