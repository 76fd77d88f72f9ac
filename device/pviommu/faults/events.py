"""The log of events: what rules did, a JSON object a line, the same bytes for the same run."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EventLog"]

_KEPT = 10_000


class EventLog:
    """Events in order. The last ones are kept, and ``sink`` gets all of them as lines."""

    def __init__(self, sink: Callable[[str], None] | None = None) -> None:
        self.sink = sink
        self._kept: deque[str] = deque(maxlen=_KEPT)
        self.count = 0

    @property
    def lines(self) -> list[str]:
        """The last ones, at most 10 000."""
        return list(self._kept)

    def write(self, **fields: Any) -> int:
        """Note an event; its number, from 1."""
        self.count += 1
        line = json.dumps({"seq": self.count, **fields}, default=_plain, separators=(",", ":"))
        self._kept.append(line)
        if self.sink is not None:
            self.sink(line)
        return self.count


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
