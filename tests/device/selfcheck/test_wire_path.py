"""The device in another process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pviommu.selfcheck import wire_path
from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.operations import Alloc, Usage
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.settings import Setting
from pviommu.selfcheck.wire_path import WirePath


def test_nothing_is_left_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = set(children.read_text().split())

    path = WirePath(Oracle(Setting()))
    started = set(children.read_text().split()) - others
    path.close()

    assert sorted(os.listdir("/proc/self/fd")) == before
    assert len(started) == 1
    assert not started & set(children.read_text().split())


def test_a_device_that_stops_answering_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    path = WirePath(Oracle(Setting()))
    try:
        monkeypatch.setattr(wire_path, "PATIENCE_S", 0.05)
        with pytest.raises(Difference, match=r"slot 0 of ring 0: expected 'done within"):
            path.wait_for_ring(0, 1)  # nothing was submitted
    finally:
        monkeypatch.undo()
        path.close()


def test_a_server_that_does_not_start_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_path, "_toml", lambda oracle: "[iommu]\ncontexts = 0\n")

    with pytest.raises(Difference, match="ended with 2"):
        WirePath(Oracle(Setting()))


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_tables_agree_over_the_wire(profile: str) -> None:
    oracle = Oracle(Setting(profile=profile))
    path = WirePath(oracle)
    try:
        for op in (Alloc(), Usage()):
            path.run(op, oracle.apply(op))
        path.compare_all()
    finally:
        path.close()
