"""DMA that cannot be refused yet."""

from __future__ import annotations

from ..interfaces.pv.execution import Backlog

__all__ = ["DmaPendingError", "Patience"]


class DmaPendingError(Exception):
    """Whether DMA is refused will be known in a later step: rings hold work that comes first. Nothing has happened."""


class Patience:
    """What the DMA request in progress of one endpoint waits for, if it does."""

    def __init__(self) -> None:
        self.backlog: Backlog | None = None
        """what the rings held when the request was refused first"""

    def end(self) -> None:
        """The request is over, or given up: the next one waits for what the rings hold then."""
        self.backlog = None
