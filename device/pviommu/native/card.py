"""Plain traffic of network cards in C: see :mod:`pviommu.endpoints.plain_traffic`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_void_p

from ..hosted import Waited
from . import library
from .library import FRAME_OFFSET, Library
from .memory import NativeCopier

__all__ = ["NativeCard"]

_WAITED = tuple(Waited)
"""In the order of ``enum pv_waited``."""


class NativeCard:
    """See :class:`pviommu.hosted.Helper`."""

    def __init__(self, lib: Library, copier: NativeCopier) -> None:
        self._lib = lib
        self._copier = copier
        self.state = library.Card()
        self.state.port.memory = copier.address
        self.address = addressof(self.state)
        self._frame = memoryview(self.state).cast("B")[FRAME_OFFSET:]
        self._cards = (c_void_p * 1)(self.address)

    def held(self) -> bytes:
        """The frame, with its header, that is left to Python."""
        return bytes(self._frame[: self.state.held])

    def step(self, budget_ns: int) -> int:
        return int(self._lib.pv_card_step(self.address, budget_ns))

    def wait(
        self,
        with_others: Sequence[NativeCard],
        fd: int,
        timeout_ms: float,
        nap_ms: float,
        short_ms: float,
        budget_ns: int,
    ) -> Waited:
        cards = self._cards
        if len(with_others) > 1:
            cards = (c_void_p * len(with_others))(*[card.address for card in with_others])
        times_ns = (-1 if each < 0 else int(each * 1e6) for each in (timeout_ms, nap_ms, short_ms))
        end: int = self._lib.pv_cards_wait(cards, len(with_others), fd, *times_ns, budget_ns)
        return _WAITED[end]
