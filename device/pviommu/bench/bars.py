"""Bars: what a measurement must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Bar", "Judgement", "as_json", "markdown_table", "shown", "text_table", "verdict_table"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit of ``measure``, in ``unit``: the value must be at most the limit, or at least."""

    measure: str
    limit: float
    unit: str = ""
    at_most: bool = True

    def judge(self, value: float | None, note: str = "") -> Judgement:
        """Compare ``value``; None stands for one that was not measured."""
        met = None if value is None else (value <= self.limit if self.at_most else value >= self.limit)
        return Judgement(self.measure, value, self.limit, self.unit, self.at_most, met, note)

    def unjudged(self, value: float | None, note: str) -> Judgement:
        """``value`` with its limit but without a verdict; ``note`` says why there is none."""
        return Judgement(self.measure, value, self.limit, self.unit, self.at_most, None, note)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A value with its bar. ``met`` is None where nothing was measured, or the value is only reported; see ``note``."""

    measure: str
    value: float | None
    limit: float
    unit: str
    at_most: bool
    met: bool | None
    note: str = ""

    @property
    def word(self) -> str:
        """``met``, ``NOT MET``, ``reported`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "reported" if self.met is None else "met" if self.met else "NOT MET"


def shown(value: float | None) -> str:
    """A number for people: three significant digits, thousands separated, no exponent."""
    if value is None:
        return "-"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}".replace(",", " ")
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4}f}"


_HEADINGS = ("bar", "measured", "limit", "", "")


def _rows(judgements: Sequence[Judgement]) -> list[tuple[str, ...]]:
    return [
        (
            one.measure,
            f"{shown(one.value)} {one.unit}".strip() if one.value is not None else "-",
            f"{'at most' if one.at_most else 'at least'} {shown(one.limit)} {one.unit}".strip(),
            one.word,
            one.note,
        )
        for one in judgements
    ]


def verdict_table(judgements: Sequence[Judgement], *, markdown: bool = False) -> str:
    """The table of bars, as text or as Markdown."""
    rows = _rows(judgements)
    if markdown:
        return markdown_table(("bar", "measured", "limit", "verdict", "note"), rows, left=(0, 3, 4))
    return text_table([_HEADINGS, *rows], left=(0, 3, 4))


def text_table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Cells in columns, two spaces apart; the columns ``left`` are aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A Markdown table; columns that are not in ``left`` are aligned to the right."""
    marks = [" --- " if at in left else " ---: " for at in range(len(headings))]
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(marks) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def as_json(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The judgements as JSON values."""
    return [asdict(one) | {"verdict": one.word} for one in judgements]
