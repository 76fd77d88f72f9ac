"""A machine in this process, whose loop the guest turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.operations import Alloc, Dma, Map, Plug, Usage
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.ring_path import RingPath, topology
from pviommu.selfcheck.settings import LARGE_MODULE, Setting


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(Setting(max_contexts=3, pool_pages=9, aperture_bits=40, max_nr_pages=77, identity=False))


@pytest.fixture
def path(oracle: Oracle) -> Iterator[RingPath]:
    path = RingPath(oracle)
    yield path
    path.close()


def test_the_machine_has_the_limits_of_the_setting(oracle: Oracle) -> None:
    config = topology(oracle).iommu_config()

    assert (config.max_contexts, config.engine.pool_pages, config.engine.aperture_bits) == (3, 9, 40)
    assert (config.max_nr_pages, config.default_policy.value, config.streams) == (77, "blocked", (1, 2))


def test_a_device_that_never_answers_differs(path: RingPath, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path.machine.iommu, "work", lambda: False)

    with pytest.raises(Difference, match="slots of ring 0 that are complete"):
        path.run(Usage(), oracle.apply(Usage()))


def test_an_endpoint_that_never_answers_differs(
    path: RingPath, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path.machine.endpoints["dma1"], "work", lambda: False)
    op = Dma(1, 0, 1, False, 0)

    with pytest.raises(Difference, match="descriptors of stream 1"):
        path.run(op, oracle.apply(op))


def test_the_large_module_comes_and_goes(path: RingPath, oracle: Oracle) -> None:
    for op in (Alloc(), Plug(True), Map(1, 0, LARGE_MODULE.start, 1), Plug(False), Map(1, 1, LARGE_MODULE.start, 1)):
        path.run(op, oracle.apply(op))

    assert path.machine.iommu.engine.is_ram(LARGE_MODULE.start) is False
