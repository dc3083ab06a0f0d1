"""Render the figures as a table in Markdown and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

Rounds = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""Figures by scenario, subject and round."""

_TITLES = {
    "A": "A: one call, no worker",
    "B": "B: single mails while a worker sends",
    "C": "C: many mails in one call",
    "D": "D: a round trip of 20 ms",
    "P": "P: a backlog",
    "H": "H: a backlog while a report holds a snapshot",
    "L": "L: a lone mail, from the call to its arrival",
    "G": "G: a round trip of 20 ms, by processes",
}
_FASTER = ("B", "C", "D", "P", "H")
_BAR, _GAP, _LABEL, _WIDTH = 16, 6, 170, 720


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure; mails lost or accepted twice are added up."""
    names = dict.fromkeys(name for run in runs for name in run)
    found = {}
    for name in names:
        values = [run[name] for run in runs if name in run]
        found[name] = sum(values) if name in ("lost", "twice") else statistics.median(values)
    return found


def table(rounds: Rounds) -> str:
    """Return a table for each scenario: medians, and what multiples of ours they are.

    The multiples are the lowest and the highest of all rounds, each against our figure of the same
    round.
    """
    parts = []
    for scenario, subjects in rounds.items():
        ours = next(iter(subjects.values()))
        names = list(dict.fromkeys(name for runs in subjects.values() for name in medians(runs)))
        lines = [f"### {_TITLES[scenario]}", "", f"| | {' | '.join(names)} |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for subject, runs in subjects.items():
            cells = [_cell(name, runs, () if runs is ours else ours) for name in names]
            lines.append(f"| {subject} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(
    name: str, runs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]
) -> str:
    value = medians(runs).get(name)
    if value is None:
        return ""
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    pairs = [(run.get(name), own.get(name)) for run, own in zip(runs, ours, strict=False)]
    multiples = sorted(found / own for found, own in pairs if found is not None and own)
    if not multiples:
        return shown
    lowest, highest = f"{multiples[0]:.2f}", f"{multiples[-1]:.2f}"
    return f"{shown} ({lowest if lowest == highest else f'{lowest} to {highest}'})"


def chart(rounds: Rounds) -> str:
    """Return an SVG with a bar of mails a second for each subject; longer is better."""
    parts: list[str] = []
    y = 10
    for scenario in (it for it in _FASTER if it in rounds):
        rates = {
            subject: next(v for k, v in medians(runs).items() if k.startswith("mails/s"))
            for subject, runs in rounds[scenario].items()
        }
        most = max(rates.values())
        parts.append(f'<text x="10" y="{y + 12}" class="title">{escape(_TITLES[scenario])}</text>')
        y += 22
        for subject, rate in rates.items():
            length = max(1.0, (_WIDTH - _LABEL - 80) * rate / most)
            kind = "ours" if subject.startswith("epica") else "peer"
            label = (
                f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(subject)}</text>'
            )
            bar = (
                f'<rect x="{_LABEL}" y="{y}" width="{length:.0f}" height="{_BAR}" class="{kind}"/>'
            )
            value = f'<text x="{_LABEL + length + 6:.0f}" y="{y + 12}">{rate:,.0f}</text>'
            parts += [label, bar, value]
            y += _BAR + _GAP
        y += 14
    style = (
        "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
        ".ours{fill:#0b6e4f}.peer{fill:#a9b4bd}"
        "@media (prefers-color-scheme:dark){text{fill:#ddd}.ours{fill:#3fb68b}.peer{fill:#5c6770}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img">'
        f"<title>Mails a second</title><style>{style}</style>{''.join(parts)}</svg>\n"
    )
