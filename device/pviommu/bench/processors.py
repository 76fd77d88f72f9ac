"""Keeps two processes that spin on a processor each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["apart_from_children"]


@contextmanager
def apart_from_children() -> Iterator[Callable[[], None]]:
    """Children that are started inside get all processors but one. When the function that this yields is called, this
    process moves to that one.

    Otherwise the scheduler may put both ends of an exchange on one processor, where they wait for each other's time
    slices. If there is only one processor, nothing changes. In the end this process may run everywhere again.
    """
    allowed = os.sched_getaffinity(0)
    own = min(allowed)
    others = allowed - {own}
    if not others:
        yield lambda: None
        return
    os.sched_setaffinity(0, others)
    try:
        yield lambda: os.sched_setaffinity(0, {own})
    finally:
        os.sched_setaffinity(0, allowed)
