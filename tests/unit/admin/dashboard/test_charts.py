"""The geometry of charts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from django_epica_mail.admin.dashboard import charts
from django_epica_mail.admin.dashboard.charts import draw


def chart(*values: float, is_time: bool = False) -> charts.Chart:
    points = [(f"{index}h", f"at {index}", value) for index, value in enumerate(values)]
    return draw("sent", "Sent", "mails", points, lambda value: f"{value:g}", is_time=is_time)


@pytest.mark.parametrize(
    ("highest", "top"),
    [(0, 2), (1, 1), (3, 4), (5, 6), (7, 8), (11, 20), (12_345, 20_000)],
)
def test_the_scale_ends_at_a_round_number(highest, top) -> None:
    assert chart(highest).lines[-1].text == f"{top:g}"


@pytest.mark.parametrize(("highest", "top"), [(0.3, 0.4), (50, 120), (2000, 3600), (1e9, 1e9)])
def test_a_time_scale_ends_at_a_round_time(highest, top) -> None:
    assert chart(highest, is_time=True).lines[-1].text == f"{top:g}"


def test_a_bar_is_as_high_as_its_share_of_the_scale() -> None:
    full, half, none = chart(10, 5, 0).bars
    assert float(full.height) == pytest.approx(2 * float(half.height))
    assert none.height == "0"
    for bar in (full, half, none):
        assert float(bar.y) + float(bar.height) == pytest.approx(charts.Chart.bottom, abs=0.1)


def test_the_smallest_value_is_visible() -> None:
    assert float(chart(1_000_000, 1).bars[1].height) > 1


def test_bars_lie_side_by_side_within_the_frame() -> None:
    bars = chart(*[1.0] * 90).bars
    for left, right in pairwise(bars):
        assert float(left.x) + float(left.width) <= float(right.x) + 0.1
    assert float(bars[-1].slot_x) + float(bars[-1].slot_width) <= charts.Chart.right + 0.1


@pytest.mark.parametrize("slots", [1, 7, 24, 30, 90])
def test_at_most_six_slots_are_labelled_including_the_last(slots) -> None:
    labels = chart(*[1.0] * slots).labels
    assert len(labels) <= 6
    assert labels[-1].text == f"{slots - 1}h"
