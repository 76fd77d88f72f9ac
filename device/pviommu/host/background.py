"""Work that nobody waits for, between the turns of those that somebody waits for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

from ..hosted import Host
from ..inputs import Inputs

__all__ = ["MOST_WAITING", "PIECE_NS", "Background"]

log = logging.getLogger(__name__)

PIECE_NS = 300_000
"""In each turn of the loop steps are done until they have taken this long."""
MOST_WAITING = 16


class Background:
    """Does work that comes in bounded steps, one after the other, a little in each turn."""

    def __init__(self, host: Host, inputs: Inputs) -> None:
        self._host = host
        self._inputs = inputs
        self._waiting: deque[Iterator[None]] = deque()

    def add(self, steps: Iterator[None]) -> bool:
        """Do ``steps`` soon. False, and it is not done, if :data:`MOST_WAITING` are waiting already."""
        if len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append(steps)
        if len(self._waiting) == 1:
            self._host.at(self._inputs.now_ns(), self._go_on)
        return True

    def _go_on(self) -> None:
        deadline = self._inputs.now_ns() + PIECE_NS
        while self._waiting:
            try:
                next(self._waiting[0])
            except StopIteration:
                self._waiting.popleft()
            except Exception:
                log.exception("work in the background failed")
                self._waiting.popleft()
            if self._inputs.now_ns() > deadline:
                break
        if self._waiting:
            self._host.at(self._inputs.now_ns(), self._go_on)
