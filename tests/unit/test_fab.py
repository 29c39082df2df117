"""The simulated fab: repeatable, what it plants is certain to be found, what it breaks is broken."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import islice

import pytest

from runtime import wire
from runtime.fab import Excursion, Expect, Fab, Planned, far_out, published_set
from runtime.names import name_problem
from runtime.wire import Reason

START_NS = 1_760_000_000_000_000_000


def messages(seed: int, count: int = 12_000) -> list[Planned]:
    return list(islice(Fab(chambers=6, charts=5, seed=seed, start_ns=START_NS).reports(), count))


@pytest.fixture(scope="module", params=[1, 2, 3])
def stream(request: pytest.FixtureRequest) -> list[Planned]:
    return messages(request.param)


def test_a_seed_gives_the_same_messages_each_time_and_another_seed_gives_others() -> None:
    fab = Fab(seed=5, start_ns=START_NS)
    once = list(islice(fab.reports(), 500))
    assert once == list(islice(fab.reports(), 500))
    assert once != list(islice(Fab(seed=6, start_ns=START_NS).reports(), 500))


def centre_of(phase_one: list[tuple[int, float]]) -> float:
    """Naive phase I: exclude what is beyond the limits until nothing more is, at most a third."""
    kept = phase_one
    while True:
        centre = sum(c for c, _ in kept) / sum(n for _, n in kept)
        inside = [(c, n) for c, n in phase_one if abs(c / n - centre) <= 3 * math.sqrt(centre / n)]
        inside = [sample for sample in kept if sample in inside]
        if len(inside) == len(kept) or len(phase_one) - len(inside) > len(phase_one) / 3:
            return centre
        kept = inside


def test_every_planted_point_is_past_phase_one_and_beyond_its_limits(stream: list[Planned]) -> None:
    judged: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    planted = 0
    for message in stream:
        if message.expect is Expect.RESET:
            for key in list(judged):
                if key[0] == message.chamber:
                    del judged[key]
        if message.expect is not Expect.VERDICT:
            continue  # what a broken message adds makes phase I end sooner: here it ends later
        report = wire.decode_incoming(message.payload)
        charts = wire.decode_names(bytes(report.charts), json=wire.is_json(message.payload))
        marked = {plant.chart for plant in message.planted}
        for chart, count, units in zip(charts, report.counts, report.units, strict=True):
            samples = judged[message.chamber, chart]
            if chart in marked:
                planted += 1
                assert len(samples) >= 25
                for centre in (
                    centre_of(samples[:25]),
                    sum(c for c, _ in samples[:25]) / sum(n for _, n in samples[:25]),
                ):
                    assert count / units > centre + 3 * math.sqrt(centre / units)
            samples.append((int(count), units))
    assert planted > 100


def test_spikes_have_one_point_and_shifts_several_in_the_same_chart(stream: list[Planned]) -> None:
    points = defaultdict(list)
    for message in stream:
        for plant in message.planted:
            points[plant.number].append(plant)
    assert sorted(points) == list(range(len(points)))
    kinds = set()
    for plants in points.values():
        assert len({(plant.chamber, plant.chart, plant.kind) for plant in plants}) == 1
        assert len(plants) == 1 if plants[0].kind is Excursion.SPIKE else len(plants) <= 6
        kinds.add(plants[0].kind)
    assert kinds == set(Excursion)


def test_resets_both_encodings_low_and_high_counts_all_occur(stream: list[Planned]) -> None:
    kinds = Counter(message.expect for message in stream)
    assert min(kinds[kind] for kind in Expect) >= 6
    ordinary = [message for message in stream if message.expect is Expect.VERDICT]
    assert {wire.is_json(message.payload) for message in ordinary} == {True, False}
    counts = [count for message in ordinary for count in wire.decode_incoming(message.payload).counts]
    assert min(counts) == 0
    assert max(counts) > 100
    assert all(message.samples == len(wire.decode_incoming(message.payload).counts) for message in ordinary)


def test_a_message_with_one_bad_chart_has_exactly_the_problem_that_it_says(stream: list[Planned]) -> None:
    partly = [message for message in stream if message.expect is Expect.PARTLY]
    for message in partly:
        tree = wire.decode_any(message.payload)
        problems = wire.names_problems(tree["charts"])
        for index, (chart, count, units) in enumerate(
            zip(tree["charts"], tree["counts"], tree["units"], strict=True)
        ):
            problem = wire.sample_problem(index, chart, count, units)
            problems += [problem] if problem else []
        assert [problem.reason for problem in problems] == [message.reason]
        assert message.samples == len(tree["charts"]) - 1


def test_every_reason_to_reject_occurs_and_sound_messages_have_none(stream: list[Planned]) -> None:
    assert {message.reason for message in stream} == {*Reason, None}
    for message in stream:
        assert (message.reason is None) == (message.expect in (Expect.VERDICT, Expect.RESET))
        assert (name_problem(message.chamber) is not None) == (message.reason is Reason.CHAMBER_NAME)
        assert not any(character in message.chamber for character in " .*>"), "it must fit into a subject"


def test_a_planted_count_stands_out_at_any_rate() -> None:
    for rate in (1e-4, 0.01, 1.0, 400.0):
        for units in (0.5, 1.0, 706.86):
            pessimistic = 3 * rate
            assert far_out(rate, units) / units > pessimistic + 3 * math.sqrt(pessimistic / units)


def test_the_published_set_holds_the_book_s_numbers_and_limits() -> None:
    boards = published_set()
    kept = [c for index, c in enumerate(boards.counts[:26]) if index not in boards.excluded]
    centre = sum(kept) / (100 * len(kept))
    assert centre == pytest.approx(boards.centre, rel=1e-12)
    assert centre + 3 * math.sqrt(centre / 100) == pytest.approx(boards.ucl, rel=1e-12)
    assert boards.spec().phase_one == 26
    reports = list(boards.reports(START_NS))
    assert len(reports) == 46
    assert wire.decode_incoming(reports[3].payload).counts == [12]
