"""A bound on records of the same kind: the first ones are written, the others counted and summed up in one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

__all__ = ["MOST", "WINDOW_S", "Limiter"]

MOST = 10
"""Records of a kind that are written in a window."""
WINDOW_S = 10.0
_MOST_KINDS = 1024
_WHOSE = ("function", "stream")
"""Fields by which records of one event are counted separately: a noisy function does not silence another."""


@dataclass
class _Window:
    began: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class Limiter:
    """Which records are written. A window of a kind begins with a record of it. Not safe against threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[Hashable, _Window] = {}

    def admits(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is to be written; if not, it is counted."""
        kind = _kind(record)
        if kind not in self._windows and len(self._windows) >= _MOST_KINDS:
            kind = None  # all the others together
        window = self._windows.setdefault(kind, _Window(self._clock()))
        if window.written < MOST or record.levelno >= logging.CRITICAL:
            window.written += 1
            return True
        window.left_out += 1
        window.last = record
        return False

    def due(self, *, at_the_end: bool = False) -> list[logging.LogRecord]:
        """Sums of the windows that have passed, or of all of them: each as a record. Those windows are over."""
        now = self._clock()
        over = [kind for kind, window in self._windows.items() if at_the_end or now - window.began >= WINDOW_S]
        windows = [self._windows.pop(kind) for kind in over]
        return [_sum(window, window.last, now) for window in windows if window.last]

    def seconds_left(self) -> float | None:
        """Until the next window is over; ``None`` if there is none."""
        if not self._windows:
            return None
        first = min(window.began for window in self._windows.values())
        return max(0.0, first + WINDOW_S - self._clock())


def _kind(record: logging.LogRecord) -> Hashable:
    event = getattr(record, "event", None)
    if event is None:
        return record.name, str(record.msg)
    fields = getattr(record, "fields", {})
    return event, *(fields.get(name) for name in _WHOSE)


def _sum(window: _Window, last: logging.LogRecord, now: float) -> logging.LogRecord:
    seconds = now - window.began
    fields: dict[str, Any] = {"of": getattr(last, "event", "message"), "count": window.left_out, "seconds": seconds}
    whose = getattr(last, "fields", {})
    fields |= {name: whose[name] for name in _WHOSE if name in whose}
    text = "%d more like it in the last %.1f s, at last: %s"
    record = logging.LogRecord(
        last.name, last.levelno, last.pathname, last.lineno, text, (window.left_out, seconds, last.getMessage()), None
    )
    vars(record).update({"event": "repeated", "fields": fields})
    return record
