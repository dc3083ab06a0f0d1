"""Charts of bars, drawn by the server as SVG: geometry only, for a template to write down.

Numbers are strings already, for a template would write 0.5 with the comma of many a language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 10, 24
_GAP = 0.25
"""What part of a slot is left empty."""
_TIMES = (0.2, 0.4, 1, 2, 4, 10, 20, 40, 120, 240, 600, 1200, 3600, 7200, 14_400, 43_200, 172_800)
_LABELS = 6
"""How many slots are labelled at most."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One slot of a chart, which shows its value where the pointer rests."""

    x: str
    y: str
    width: str
    height: str
    slot_x: str
    slot_width: str
    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A label at an axis."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, and the same in words for its table."""

    name: str
    """An id of its own on the page, and the class that gives it its colour."""
    title: str
    unit: str
    """What the second column of the table is called."""
    bars: Sequence[Bar]
    lines: Sequence[Mark]
    """The labelled horizontal lines."""
    labels: Sequence[Mark]
    """The labels below."""
    is_empty: bool

    #: The frame, the same of every chart.
    width, height = WIDTH, HEIGHT
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    label_x, label_y, plot_height = _LEFT - 6, HEIGHT - 7, HEIGHT - _BOTTOM - _TOP


def draw(
    name: str,
    title: str,
    unit: str,
    points: Sequence[tuple[str, str, float]],
    say: Callable[[float], str],
    *,
    is_time: bool = False,
) -> Chart:
    """Return a chart of points: each a short label, a long one, and a value told by ``say``.

    Of a time, in seconds, the scale ends with what is round in seconds, minutes or hours.
    """
    highest = max((value for _, _, value in points), default=0)
    top = next((it for it in _TIMES if it >= highest), highest) if is_time else _ceiling(highest)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(points))
    height = HEIGHT - _TOP - _BOTTOM
    every = math.ceil(len(points) / _LABELS)
    bars, labels = [], []
    for index, (short, long, value) in enumerate(points):
        x = _LEFT + index * step
        tall = max(height * value / top, 1.5 if value else 0)  # so that one in a thousand is seen
        bars.append(
            Bar(
                x=_number(x + step * _GAP / 2),
                y=_number(_TOP + height - tall),
                width=_number(step * (1 - _GAP)),
                height=_number(tall),
                slot_x=_number(x),
                slot_width=_number(step),
                label=long,
                value=say(value),
            )
        )
        if (len(points) - 1 - index) % every == 0:
            labels.append(Mark(_number(x + step / 2), short))
    lines = [
        Mark(_number(_TOP + height * (1 - share)), say(top * share) if share else "0")
        for share in (0, 0.5, 1)
    ]
    return Chart(name, title, unit, bars, lines, labels, not any(value for _, _, value in points))


def _ceiling(highest: float) -> float:
    """Return the round number, 1, 2, 4, 6 or 8 of its power of ten, that tops the highest bar."""
    if highest <= 0:
        return 2
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= highest)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
