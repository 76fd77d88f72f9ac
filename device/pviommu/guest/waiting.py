"""How a guest waits for a device that is another process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

__all__ = ["came_true"]

POLLED_S = 0.0005
"""How long it is polled. What a device does at all it has mostly done by then, if it had a processor."""
NAP_S = 0.0002


def came_true(condition: Callable[[], Any], patience_s: float) -> bool:
    """Whether ``condition()`` held within ``patience_s`` seconds.

    It is polled first, as a polling driver does; later the processor is left to others between two looks, one of which
    may be the device.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        if waited > patience_s:
            return False
        if waited < POLLED_S:
            os.sched_yield()
        else:
            time.sleep(NAP_S)
    return True
