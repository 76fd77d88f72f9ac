"""Servers of benchmarks are forked: what is tested is not how long they take to start."""

from __future__ import annotations

import pytest

from pviommu.lab import processes

from ...forking import SUBPROCESS, forker


@pytest.fixture(autouse=True, scope="session")
def _forker() -> None:
    """Before the first test counts descriptors or children."""
    forker()


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "subprocess", SUBPROCESS)
