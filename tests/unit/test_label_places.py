"""Where labels go."""

from __future__ import annotations

from itertools import combinations

import pytest

from runtime.label_places import Box, spots, spread

PAGE = Box(0, 0, 400, 300)


def test_a_label_is_above_its_point_or_below_it_as_wanted() -> None:
    above, below = spots([(100, 100, "1", True), (200, 100, "2", False)], [], PAGE)
    assert above.bottom > 100
    assert above.left < 100 < above.right
    assert below.top < 100


def test_labels_of_neighbours_do_not_cover_each_other_nor_the_points() -> None:
    points = [(100.0 + 7 * n, 100.0 + n % 2, "1,2", True) for n in range(6)]
    taken = [Box(x - 2, y - 2, x + 2, y + 2) for x, y, *_ in points]
    found = spots(points, taken, PAGE)
    assert all(one.overlap(other) == 0 for one, other in combinations(found, 2))
    assert all(one.overlap(other) == 0 for one in found for other in taken)


def test_a_label_at_the_top_of_the_page_goes_below_its_point() -> None:
    (box,) = spots([(100, 299, "1", True)], [], PAGE)
    assert box.top < 299


@pytest.mark.parametrize(
    ("values", "moved"),
    [
        ([9, 5, 1], [9, 5, 1]),
        ([5, 5, 5], [5, 4, 3]),
        ([0, 0, 0], [2, 1, 0]),
        ([99, 9], [10, 9]),
    ],
)
def test_lines_names_are_moved_apart_within_the_panel(values: list[float], moved: list[float]) -> None:
    assert spread(values, 1, 0, 10) == moved
