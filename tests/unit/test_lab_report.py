"""The lab's report: the terminal, the comparison and the page of runs that were made up."""

from __future__ import annotations

import io
import json
import random
import re
from html.parser import HTMLParser

import msgspec
import pytest
from rich.console import Console

from bench.lab import page, page_axes, page_ownership, page_plots, table, words
from bench.lab.result import Machine, Mark, Owned, PodUse, Promise, Result, Second, summary

BEGUN_NS = 1_763_900_000_000_000_000
LENGTH_S = 90
NASTY = "</script><b>&'\"\x1b[31m|"


def at(seconds: float) -> int:
    return BEGUN_NS + round(seconds * 1e9)


def _suffix(draw: random.Random) -> str:
    return "".join(draw.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


def _ownership(
    identity: str, defenders: int, partitions: int, draw: random.Random
) -> tuple[list[Owned], list[float], list[PodUse]]:
    """A rolling update from 20 s to 60 s. claim: the ID stays, the pod changes; ordinal: the same pod name
    after a pause; pod: the partition goes to another ID, and some move twice."""
    owned: list[Owned] = []
    gaps: list[float] = []
    pods: list[PodUse] = []
    owners = [p * defenders // partitions for p in range(partitions)]
    draw.shuffle(owners)
    for n in range(defenders):
        moved_s = 20 + 40 * (n // 10) / 3 + draw.uniform(0.5, 9)
        old = f"defender-{n}" if identity == "ordinal" else f"defender-6c9f7d-{_suffix(draw)}"
        new = old if identity == "ordinal" else f"defender-7b85b9-{_suffix(draw)}"
        old_id, new_id = (old, new) if identity == "pod" else (f"defender-{n}", f"defender-{n}")
        for p in [p for p, owner in enumerate(owners) if owner == n]:
            gap_ms = {"claim": 20.0, "ordinal": 2600.0, "pod": 900.0}[identity] * draw.lognormvariate(0, 0.6)
            gaps.append(gap_ms)
            split, again = at(moved_s + draw.uniform(0, 0.3)), at(moved_s + 0.3) + round(gap_ms * 1e6)
            if identity == "claim":
                again = split + round(gap_ms * 1e6)
            owned.append(Owned(p, old_id, old, at(draw.uniform(0, 0.4)), split))
            owned.append(Owned(p, new_id, new, again, at(LENGTH_S)))
        pods.append(
            PodUse(old, old_id, at(-4), at(moved_s + 1), 0, 0, draw.uniform(3, 6), draw.uniform(60, 80))
        )
        pods.append(
            PodUse(new, new_id, at(moved_s - 3), 0, None, 0, draw.uniform(4, 9), draw.uniform(60, 90))
        )
    return owned, gaps, pods


def _timeline(identity: str, defenders: int, draw: random.Random) -> list[Second]:
    found = []
    for second in range(LENGTH_S):
        busy = 20 <= second < 60
        worst = {"claim": 60.0, "ordinal": 3400.0, "pod": 1500.0}[identity] if busy else 12.0
        reports = 1000 + draw.randint(-20, 20)
        surge = (identity != "ordinal") * 10 * (busy and second % 13 < 9)
        found.append(
            Second(
                at(second),
                reports,
                reports + draw.randint(-15, 15),
                2.6 * draw.lognormvariate(0, 0.08),
                worst * draw.lognormvariate(-0.7, 0.3),
                worst * draw.lognormvariate(0.4, 0.3),
                defenders + surge,
                defenders + surge // 2,
                0.7 + 0.5 * busy + draw.uniform(0, 0.1),
                0.22 + draw.uniform(0, 0.03),
                0.18 + draw.uniform(0, 0.04),
            )
        )
    return found


def made_up(identity: str = "claim", *, defenders: int = 30, partitions: int = 64, seed: int = 7) -> Result:
    """A rolling update as a run might have seen it."""
    draw = random.Random(seed)
    owned, gaps, pods = _ownership(identity, defenders, partitions, draw)
    gaps.sort()
    p99 = gaps[int(len(gaps) * 0.99)]
    moved = partitions if identity == "pod" else 0
    return Result(
        scenario="rolling-update",
        identity=identity,
        defenders=defenders,
        workers=1,
        partitions=partitions,
        seconds=90.0,
        reports=84_312,
        verdicts=84_312,
        samples=843_120,
        rejected=0,
        lost=0,
        doubled=0,
        wrong=0,
        out_of_order=0,
        stale=0,
        partitions_reassigned=moved,
        partitions_must_move=0,
        partitions_taken_over=partitions - moved,
        gap_ms_p50=gaps[len(gaps) // 2],
        gap_ms_p99=p99,
        gap_ms_max=gaps[-1],
        latency_ms_p50=2.6,
        latency_ms_p99=48.2,
        latency_ms_max=gaps[-1],
        unowned_max_ms=gaps[-1] * 0.8,
        doubly_owned=0,
        identity_recovery_s_max=0.41,
        duration_s=40.0,
        pods_restarted=0,
        producer_reports_per_s=1000.0,
        producer_late_ms_max=3.2,
        observer_cores=0.12,
        promises=[
            Promise("lost", 0, 0, True),
            Promise("doubled", 0, 0, True),
            Promise("wrong", 0, 0, True),
            Promise("partitions_reassigned", 0, moved, moved == 0),
            Promise("gap_ms_p99", 250, p99, p99 <= 250),
            Promise("identity_recovery_s_max", 2, 0.41, True),
        ],
        marks=[
            Mark("rolling-update, 10 pods more at a time", at(20), at(60)),
            Mark("worker killed", at(72)),
        ],
        owned=owned,
        timeline=_timeline(identity, defenders, draw),
        pods=pods,
        gaps_ms=gaps,
        notes=["Pods were forked from a warm image, so that 30 of them fit on 2 cores."],
        machine=Machine(2, 23.5, "a shared virtual CPU", "6.1", "3.11.7", "2.15.1", "0.1.0"),
        begun_ns=BEGUN_NS,
        ended_ns=at(LENGTH_S),
    )


class _Reader(HTMLParser):
    """Checks that what was opened is closed, in order; keeps the script and the visible words."""

    VOID = frozenset(["meta", "br"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.script = ""
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.script += data
        else:
            self.words.append(data)


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def printed(result: Result, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    table.print_result(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- words ----------------------------------------------------------------------------------------


def test_the_verdict_is_one_sentence_with_every_fault() -> None:
    result = made_up()
    assert words.verdict(result) == "0 of 84,312 reports lost, 0 doubled; 6 of 6 promises met"
    worse = msgspec.structs.replace(result, wrong=3, lost=2, is_whole=False, promises=[])
    assert words.verdict(worse) == "Broken off: 2 of 84,312 reports lost, 0 doubled, 3 wrong"


@pytest.mark.parametrize("field", words.FAULTS)
def test_a_run_with_a_fault_is_not_good_whatever_the_budget_says(field: str) -> None:
    assert words.is_good(made_up())
    assert not words.is_good(msgspec.structs.replace(made_up(), **{field: 1}))


@pytest.mark.parametrize("field", words.FIGURES)
def test_every_figure_named_is_a_field_of_the_result(field: str) -> None:
    assert field in summary(made_up())


def test_numbers_are_as_people_read_them() -> None:
    values = (84_312, 12.34, 0.5, 0.0412, 12_345.6, 0)
    assert [words.number(v) for v in values] == ["84,312", "12.3", "0.50", "0.0412", "12,346", "0"]
    assert words.ms(250) == "250 ms"
    assert words.ms(12_400) == "12.4 s"


# --- terminal -------------------------------------------------------------------------------------


def test_a_result_fits_100_columns_and_tells_its_figures() -> None:
    text = printed(made_up("pod"), width=180)
    assert max(map(len, text.splitlines())) <= table.COLUMNS
    for told in ("64 reassigned (0 must move)", "p99 48.2 ms", "✗ broken", "✓ met", "worker killed", "warm"):
        assert told in text


def test_a_figure_that_could_not_be_told_is_no_number_and_no_success() -> None:
    result = msgspec.structs.replace(
        made_up(), wrong=-1, gap_ms_p99=float("nan"), duration_s=-1.0, latency_ms_max=float("inf"), unknown=3
    )
    assert not words.is_good(result)
    assert words.verdict(result).startswith("0 of 84,312 reports lost, 0 doubled, ? wrong")
    for text in (printed(result), "".join(read(page.written(result)).words), table.comparison([result])):
        assert not re.search(r"\bnan\b|\binf\b|(?<!\w)-1\b", text)
    assert "of 3 nothing can be said" in printed(result)


def test_names_from_outside_do_not_steer_the_terminal() -> None:
    result = msgspec.structs.replace(
        made_up(), scenario=NASTY, notes=[NASTY], problems=[NASTY], marks=[Mark(NASTY, at(1))], broken=NASTY
    )
    assert "\x1b[31m" not in printed(result)
    assert "\x1b" not in table.comparison([result])


def test_an_empty_result_is_printed_and_written() -> None:
    result = msgspec.structs.replace(
        made_up(),
        **{name: [] for name in ("marks", "owned", "timeline", "pods", "gaps_ms", "notes", "promises")},
        machine=None,
        begun_ns=0,
        ended_ns=0,
        is_whole=False,
    )
    assert "Broken off" in printed(result)
    read(page.written(result))
    read(page.written([result, made_up()]))


def test_progress_without_a_terminal_is_a_line_every_two_seconds() -> None:
    console = Console(file=io.StringIO(), width=200)
    with table.Progress(console, "rolling-update, claim") as progress:
        for tenths in range(100):
            progress.show(table.Now(tenths / 10, "wait", 10, 9, 1, 4.2, 30, 29, 30, 1.5))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1 + 5
    assert "29/30 ready" in lines[1]


def test_progress_on_a_terminal_is_drawn_in_place() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with table.Progress(console, "steady, claim") as progress:
        progress.show(table.Now(1.0, "settle", 10, 9, 1, 4.2, 30, 29, 30, 1.5))
    assert isinstance(console.file, io.StringIO)
    assert "in the ring 30" in console.file.getvalue()


def test_a_comparison_is_a_markdown_table_with_its_machine_and_date() -> None:
    lines = table.comparison([made_up("claim"), made_up("ordinal"), made_up("pod")]).splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert lines[4].startswith("| rolling-update | pod | 64 | 0 | 40 s |") or "| 40.0 s |" in lines[4]
    assert "a shared virtual CPU" in lines[6]
    assert "2025-11-23" in lines[6]
    odd = table.comparison([msgspec.structs.replace(made_up(), scenario="a|b")])
    assert "a\\|b" in odd


# --- page -----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere_and_keeps_the_result() -> None:
    result = made_up()
    html = page.written(result)
    reader = read(html)
    assert not re.search(r"(src|href)=|https?://|@import|url\(", html)
    assert not {"img", "link", "iframe"} & set(reader.seen)
    assert msgspec.convert(json.loads(reader.script), Result) == result
    assert reader.seen.count("svg") == 6
    assert words.verdict(result) in "".join(reader.words)


def test_names_from_outside_are_escaped_on_the_page() -> None:
    result = made_up()
    owned = [msgspec.structs.replace(o, stable_id=NASTY, pod=NASTY) for o in result.owned]
    pods = [msgspec.structs.replace(p, stable_id=NASTY, pod=NASTY) for p in result.pods]
    result = msgspec.structs.replace(
        result,
        **dict.fromkeys(("scenario", "identity", "broken"), NASTY),
        owned=owned,
        pods=pods,
        marks=[Mark(NASTY, at(1), at(2))],
        notes=[NASTY],
        problems=[NASTY],
        promises=[Promise(NASTY, 1, 2, False)],
    )
    for shown in (result, [result, result]):
        reader = read(page.written(shown))
        assert reader.seen.count("b") <= 3, "no name opens an element"
        assert reader.seen.count("script") == 1
        assert json.loads(reader.script)


def test_three_ways_stand_side_by_side_on_equal_axes() -> None:
    results = [made_up(identity) for identity in ("claim", "ordinal", "pod")]
    html = page.written(results)
    reader = read(html)
    assert reader.seen.count("svg") == 9
    ticks = [re.findall(r"class='tick'[^>]*>([^<]*)<", svg) for svg in html.split("<svg")[1:]]
    for column in range(0, 9, 3):
        assert ticks[column] == ticks[column + 1] == ticks[column + 2]
    assert "10,000" in ticks[0], "the axis holds the slowest of the three"
    ends = page_plots.bounds(results)
    assert ends.gap_ms[1] >= max(max(result.gaps_ms) for result in results)
    assert ends.latency_ms[1] >= max(s.latency_ms_max for result in results for s in result.timeline)


def test_thousands_of_stretches_stay_small() -> None:
    result = made_up(partitions=256)
    stretch = result.owned[0]
    many = [
        msgspec.structs.replace(
            stretch, partition=k % 256, pod=f"pod-{k % 7}", begun_ns=at(k / 256), ended_ns=at(k / 256 + 0.9)
        )
        for k in range(20_000)
    ]
    html = page.written(msgspec.structs.replace(result, owned=many))
    read(html)
    assert len(html) < 3_000_000
    assert "for the stretches of ownership" in html


def test_a_time_without_owner_is_red_and_a_short_handoff_is_not() -> None:
    one, other = "defender-1", "defender-2"
    owned = [
        Owned(0, one, "a", at(0), at(10)),
        Owned(0, one, "b", at(10.02), at(90)),
        Owned(1, other, "c", at(0), at(10)),
        Owned(1, other, "d", at(12), at(90)),
    ]
    result = msgspec.structs.replace(made_up(partitions=3), owned=owned)
    svg = page_ownership.ownership(result, page_plots.bounds([result]), page_ownership.colours([result]))
    assert svg.count("class='unowned'") == 2
    assert "partition 1: no owner for 2,000 ms from 10.0 s" in svg
    assert "partition 2: no owner for 90,000 ms" in svg


def test_two_owners_at_once_are_drawn() -> None:
    owned = [Owned(0, "defender-1", "a", at(0), at(10)), Owned(0, "defender-2", "b", at(9), at(90))]
    result = msgspec.structs.replace(made_up(partitions=1), owned=owned)
    svg = page_ownership.ownership(result, page_plots.bounds([result]), page_ownership.colours([result]))
    assert svg.count("class='twice'") == 1


def test_rows_stand_by_their_first_owner_and_ids_in_natural_order() -> None:
    owned = [
        Owned(p, f"defender-{n}", f"pod-{n}", at(0), at(90)) for p, n in ((0, 10), (1, 2), (2, 10), (3, 2))
    ]
    result = msgspec.structs.replace(made_up(partitions=4), owned=owned)
    assert list(page_ownership.rows(result)) == [1, 3, 0, 2]


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [
        (0, 90, 10, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (0, 1.7, 4, [0, 0.5, 1, 1.5]),
        (3, 9, 3, [4, 6, 8]),
    ],
)
def test_even_ticks_are_round(low: float, high: float, about: int, ticks: list[float]) -> None:
    assert page_axes.even_ticks(low, high, about) == pytest.approx(ticks)


def test_log_ticks_thin_out_with_the_decades() -> None:
    assert page_axes.log_ticks(1, 10, 5) == pytest.approx([1, 2, 5, 10])
    assert page_axes.log_ticks(1, 10_000, 6) == pytest.approx([1, 10, 100, 1000, 10_000])


@pytest.mark.parametrize("values", [[], [0.0], [3.0], [2.0, 2.0], [0.3, 4100.0]])
def test_log_limits_hold_their_values_a_decade_wide(values: list[float]) -> None:
    low, high = page_axes.log_limits(values)
    assert high >= 9.99 * low
    assert all(low <= value <= high for value in values if value > 0)


def test_a_curve_is_open_where_nothing_was_seen() -> None:
    path = page_axes.curve([(0, 1), (1, 2), (2, None), (3, 4)], "line")
    assert path.count("M") == 2
