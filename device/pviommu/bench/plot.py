"""Bar charts as SVG, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .bars import shown

__all__ = ["ChartBar", "bar_chart"]

_WIDTH = 760
_LABELS = 190
_VALUES = 150
_ROW = 26
_TOP = 58
_COLOURS = ("#35618f", "#8fb5d8", "#c98b3c", "#e5c79b")
_MARKS = 5
_ROOM = 1.4


@dataclass(frozen=True, slots=True)
class ChartBar:
    """One horizontal bar: its ``parts`` end to end, and a whisker from the ``least`` to the ``most`` of their sum."""

    label: str
    parts: Sequence[float]
    least: float
    most: float


def bar_chart(title: str, unit: str, names: Sequence[str], bars: Sequence[ChartBar]) -> str:
    """A whole SVG document. ``names`` are the names of the parts, for the legend; every bar has as many parts."""
    longest = max((sum(bar.parts) for bar in bars), default=0.0) or 1.0
    # A round that something has disturbed must not make all bars too short to read, so its whisker may leave the chart.
    highest = min(max((longest, *(bar.most for bar in bars))), longest * _ROOM)
    step = _step(highest)
    scale = (_WIDTH - _LABELS - _VALUES) / highest
    height = _TOP + _ROW * len(bars) + 38
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        *_legend(names),
        *_grid(step, highest, scale, height),
    ]
    for row, bar in enumerate(bars):
        lines += _row(bar, _TOP + row * _ROW, scale, highest)
    lines.append(f'<text x="{_LABELS}" y="{height - 4}" fill="#555555">{escape(unit)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _step(highest: float) -> float:
    """A round distance between marks."""
    step = 10.0 ** len(str(int(highest)))
    while highest / step < _MARKS - 1:
        for divisor in (2.0, 2.5, 2.0):
            if highest / step < _MARKS - 1:
                step /= divisor
    return step


def _legend(names: Sequence[str]) -> list[str]:
    lines, x = [], _LABELS
    for at, name in enumerate(names):
        lines.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{_COLOURS[at % len(_COLOURS)]}"/>')
        lines.append(f'<text x="{x + 17}" y="42">{escape(name)}</text>')
        x += 40 + 8 * len(name)
    return lines


def _grid(step: float, highest: float, scale: float, height: int) -> list[str]:
    lines = []
    for mark in range(int(highest / step) + 1):
        x = _LABELS + mark * step * scale
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 36}" stroke="#dddddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{height - 22}" text-anchor="middle" fill="#555555">{mark * step:g}</text>')
    return lines


def _row(bar: ChartBar, y: int, scale: float, highest: float) -> list[str]:
    lines = [f'<text x="{_LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>']
    x = float(_LABELS)
    for at, part in enumerate(bar.parts):
        colour = _COLOURS[at % len(_COLOURS)]
        lines.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{part * scale:.1f}" height="15" fill="{colour}"/>')
        x += part * scale
    low, high = _LABELS + bar.least * scale, _LABELS + min(bar.most, highest) * scale
    whisker = f"M{low:.1f} {y + 10.5}H{high:.1f}M{low:.1f} {y + 7}v7"
    if bar.most <= highest:
        whisker += f"M{high:.1f} {y + 7}v7"
    lines.append(f'<path d="{whisker}" stroke="#222222"/>')
    text = f"{shown(sum(bar.parts))} ({shown(bar.least)}-{shown(bar.most)})"
    lines.append(f'<text x="{max(x, high) + 8:.1f}" y="{y + 14}">{text}</text>')
    return lines
