"""Processes that do nothing but use processor time, while something else is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..lab.processes import Child

__all__ = ["hogs"]

_SPINS = "while True: pass"


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """``count`` processes spin while this is open, wherever the scheduler puts them. They do not outlive this one."""
    with ExitStack() as stack:
        for _ in range(count):
            child = Child()
            with open(os.devnull, "wb") as nowhere:
                child.start((sys.executable, "-c", _SPINS), output=nowhere)
            stack.callback(child.stop)
        yield
