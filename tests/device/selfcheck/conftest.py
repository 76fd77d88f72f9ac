"""Servers and processes of machines are forked from some that have imported what these need."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest

from pviommu.selfcheck import machine_process, wire_path

from ...forking import SUBPROCESS, forker


@pytest.fixture(autouse=True, scope="session")
def _forkers() -> None:
    """Before the first test counts descriptors or children."""
    forker()
    multiprocessing.set_forkserver_preload([machine_process.__name__, "pytest"])


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's process inherits nothing from this one either way."""
    monkeypatch.setattr(wire_path, "subprocess", SUBPROCESS)
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(machine_process, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
