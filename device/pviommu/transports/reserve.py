"""A descriptor in reserve, by which a server refuses clients when it has no other left.

A client that cannot be accepted stays in the queue, and the socket stays ready: a server that did nothing would look
for ever. With one descriptor set free it takes the client, and hangs up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

__all__ = ["REST_NS", "Reserve", "spare"]

_T = TypeVar("_T")

REST_NS = 100_000_000
"""For how long a socket is not looked at when its client could not even be refused."""


def spare() -> int | None:
    """A descriptor to be kept; None if there is none."""
    with contextlib.suppress(OSError):
        return os.eventfd(0, os.EFD_CLOEXEC)
    return None


class Reserve:
    """At most one descriptor, taken anew whenever there is one."""

    def __init__(
        self, open_spare: Callable[[], int | None] = spare, close_spare: Callable[[int], None] = os.close
    ) -> None:
        self._open = open_spare
        self._close = close_spare
        self._spare = open_spare()

    def refuse(self, accept: Callable[[], _T], hang_up: Callable[[_T], None]) -> bool:
        """Accept a client and drop it. Returns False if there was no room even for that: then look again later, after
        :data:`REST_NS`.
        """
        if self._spare is None:
            self._spare = self._open()
        if self._spare is None:
            return False
        self._close(self._spare)
        self._spare = None
        try:
            client = accept()
        except OSError:
            return False
        hang_up(client)
        self._spare = self._open()
        return True

    def close(self) -> None:
        """Give it back."""
        if self._spare is not None:
            self._close(self._spare)
            self._spare = None
