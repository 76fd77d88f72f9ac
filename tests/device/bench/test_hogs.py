"""Processes that spin: as many as asked for, and gone afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pviommu.bench.hogs import hogs


def children() -> set[int]:
    """Processes that this one has started and that still run."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("count", [0, 2])
def test_so_many_processes_spin_and_are_gone_afterwards(count: int) -> None:
    before = children()
    with hogs(count):
        spinning = children() - before
        assert len(spinning) == count
        deadline = time.monotonic() + 20
        while not all(time.clock_gettime_ns(~pid << 3 | 2) > 50_000_000 for pid in spinning):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert children() == before
