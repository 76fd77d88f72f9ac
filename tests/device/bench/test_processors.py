"""Processors of this process and of its children."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pviommu.bench.processors import apart_from_children


class Affinity:
    """What the kernel would be told."""

    def __init__(self, allowed: set[int]) -> None:
        self.now = set(allowed)

    def set(self, process: int, processors: set[int]) -> None:
        assert process == 0
        self.now = set(processors)


@pytest.fixture(params=[{3, 5, 6}, {2}])
def affinity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Affinity:
    made = Affinity(request.param)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(made.now))
    monkeypatch.setattr(os, "sched_setaffinity", made.set)
    return made


def test_children_and_this_process_share_no_processor_unless_there_is_only_one(affinity: Affinity) -> None:
    before = set(affinity.now)
    with apart_from_children() as apart:
        children = set(affinity.now)
        apart()
        assert affinity.now <= before
        assert affinity.now.isdisjoint(children) == (len(before) > 1)
        assert affinity.now | children == before
    assert affinity.now == before


def test_a_failure_inside_restores_all_processors() -> None:
    before = os.sched_getaffinity(0)

    def fail() -> None:
        with apart_from_children() as apart:
            apart()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.sched_getaffinity(0) == before


def test_children_inherit_what_was_set_for_them() -> None:
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    with apart_from_children():
        expected = sorted(os.sched_getaffinity(0))
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(expected)
