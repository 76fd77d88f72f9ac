"""What a request that fails says, beside its errno."""

from __future__ import annotations

from wire_layout import Record

__all__ = ["RequestError"]


class RequestError(OSError):
    """A request failed. ``answer`` is written back to the caller all the same, where the interface does that."""

    def __init__(self, number: int, text: str, answer: Record | None = None) -> None:
        super().__init__(number, text)
        self.answer = answer
