"""DMA requests, and what their device addresses were translated to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, overload

from ..engine import Access, NoRuns, Run, TranslationFault, TranslationPending
from ..engine.results import PackedRuns

_new_tuple = tuple.__new__
"""Makes a plan in half the time of ``DmaPlan()``."""

__all__ = ["Access", "DmaPlan", "DmaRequest", "Span", "translate_each"]

Span = tuple[int, int]
"""Device address and length in bytes."""

DmaRequest = tuple[Sequence[Span], Access]
"""The spans of one request, in order, and what it does to them."""


MANY_SPANS = 4
"""From so many on they are translated together, if possible."""


class SpanRuns(Sequence[Sequence[Run]]):
    """Translations of many spans, each of them one run, which are side by side."""

    __slots__ = ("runs",)

    def __init__(self, runs: PackedRuns) -> None:
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[list[Run]]:
        return ([run] for run in self.runs)

    @overload
    def __getitem__(self, place: int) -> list[Run]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[Run]]: ...
    def __getitem__(self, place: int | slice) -> list[Run] | list[list[Run]]:
        found = self.runs[place]
        return [found] if isinstance(found, Run) else [[run] for run in found]


class DmaPlan(NamedTuple):
    """A translated request: the runs of guest memory of each span. Valid in the step in which it was made."""

    spans: Sequence[Span]
    access: Access
    translations: Sequence[Sequence[Run]]

    def runs(self) -> Sequence[Run]:
        """All runs in order."""
        if len(self.translations) == 1:
            return self.translations[0]
        if isinstance(self.translations, SpanRuns):
            return self.translations.runs
        return [run for runs in self.translations for run in runs]

    def locate(self, gpa: int) -> tuple[int, int]:
        """The device address that was translated to ``gpa``, and the length of the span that it is in."""
        for (iova, length), runs in zip(self.spans, self.translations, strict=True):
            for run in runs:
                if run.gpa <= gpa < run.gpa + run.length:
                    return iova + gpa - run.gpa, length
                iova += run.length
        raise ValueError(f"GPA {gpa:#x} is not part of the request")


def translate_each(
    stream: int,
    requests: Sequence[DmaRequest],
    translate: Callable[[int, int, int, Access], Sequence[Run] | TranslationFault | TranslationPending],
    translate_spans: Callable[[int, Sequence[Span], Access], PackedRuns | None] = lambda *_: None,
) -> list[DmaPlan] | tuple[TranslationFault | TranslationPending, int]:
    """Translate every span of ``requests`` by ``translate(stream, iova, length, access)``, which is an engine's, or
    many at once by ``translate_spans``. Returns their plans; or, if a span gave no runs, what it gave instead, and its
    length.
    """
    plans = []
    for spans, access in requests:
        if len(spans) >= MANY_SPANS and (found_at_once := translate_spans(stream, spans, access)) is not None:
            plans.append(_new_tuple(DmaPlan, (spans, access, SpanRuns(found_at_once))))
            continue
        translations: list[Sequence[Run]] = []
        for iova, length in spans:
            found = translate(stream, iova, length, access)
            if isinstance(found, NoRuns):
                return found, length
            translations.append(found)
        plans.append(_new_tuple(DmaPlan, (spans, access, translations)))
    return plans
