"""The geometry of bar charts, which a template renders as SVG.

Coordinates are strings, because in many languages a template would write 0.5 with a comma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 10, 24
_GAP = 0.25
"""The share of a slot that stays empty."""
_TIMES = (0.2, 0.4, 1, 2, 4, 10, 20, 40, 120, 240, 600, 1200, 3600, 7200, 14_400, 43_200, 172_800)
_LABELS = 6
"""At most this many slots have a label."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One slot of a chart; its value is shown while the pointer rests on it."""

    x: str
    y: str
    width: str
    height: str
    slot_x: str
    slot_width: str
    x2: str
    """Where its mark ends."""
    label: str
    value: str
    before: str
    """The value a week before; empty if it is not known."""
    before_y: str
    """Where its mark is."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A label on an axis."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, with the labels and values for its table."""

    name: str
    """Unique on the page; also the CSS class that sets the colour."""
    title: str
    unit: str
    """The heading of the table's second column."""
    bars: Sequence[Bar]
    lines: Sequence[Mark]
    """The labelled horizontal lines."""
    labels: Sequence[Mark]
    """The labels below the bars."""
    is_empty: bool

    #: The frame, the same for every chart.
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
    before: Sequence[float | None] = (),
    is_time: bool = False,
) -> Chart:
    """Return a chart of points: each has a short label, a long label and a value.

    ``before`` has the value of each point a week before, or ``None``. ``say`` formats a
    value. If ``is_time``, values are in seconds, and the scale ends at a round number of
    seconds, minutes or hours.
    """
    earlier = list(before) or [None] * len(points)
    highest = max((*(value for _, _, value in points), *filter(None, earlier)), default=0)
    top = next((it for it in _TIMES if it >= highest), highest) if is_time else _ceiling(highest)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(points))
    height = HEIGHT - _TOP - _BOTTOM
    every = math.ceil(len(points) / _LABELS)
    bars, labels = [], []
    for index, (short, long, value) in enumerate(points):
        x = _LEFT + index * step
        tall = max(height * value / top, 1.5 if value else 0)  # one in a thousand stays visible
        bars.append(
            Bar(
                x=_number(x + step * _GAP / 2),
                y=_number(_TOP + height - tall),
                width=_number(step * (1 - _GAP)),
                height=_number(tall),
                slot_x=_number(x),
                slot_width=_number(step),
                x2=_number(x + step * (1 - _GAP / 2)),
                label=long,
                value=say(value),
                before="" if (was := earlier[index]) is None else say(was),
                before_y="" if was is None else _number(_TOP + height * (1 - was / top)),
            )
        )
        if (len(points) - 1 - index) % every == 0:
            labels.append(Mark(_number(x + step / 2), short))
    lines = [
        Mark(_number(_TOP + height * (1 - share)), say(top * share) if share else "0")
        for share in (0, 0.5, 1)
    ]
    return Chart(name, title, unit, bars, lines, labels, not highest)


def _ceiling(highest: float) -> float:
    """Return the end of the scale: 1, 2, 4, 6 or 8 times a power of ten, at least ``highest``."""
    if highest <= 0:
        return 2
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= highest)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
