"""Native tables, rings and copiers are chosen each by itself. What is Python's reads through Inputs alone."""

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.interfaces.pv.ring import CommandRing
from pviommu.native.core import native_core
from pviommu.native.memory import NativeCopier
from pviommu.native.ring import NativeRing
from pviommu.native.table import NativeTable

from .conftest import TABLES, WHOLE
from .test_ring import ROUND, map_op


@pytest.fixture(params=[(rings, copier) for rings in (True, False) for copier in (True, False)])
def parts(request):
    rings, copier = request.param
    return {"rings": rings, "copier": copier}


@pytest.fixture
def started(make_driver):
    """A machine with an endpoint in a context, where page 0x100 is mapped."""
    driver = make_driver().start()
    ctx = driver.attached()
    assert driver.map(ctx, 0x100, 0x10, 2) == (0, 2)
    assert driver.map(ctx, 0x102, 0x20, 1) == (0, 1)  # so that DMA over both is of two runs
    return driver


def test_each_part_is_what_was_chosen(started, parts):
    function = started.machine.endpoints["dma0"]

    assert type(started.iommu.rings[0]) is (NativeRing if parts["rings"] else CommandRing)
    assert (type(function.memory.copier) is NativeCopier) == parts["copier"]
    assert isinstance(started.iommu.engine._domains.paging[1].table, NativeTable)
    assert started.iommu.has_core == parts["rings"]


def test_the_tables_translate_in_c_whoever_has_the_rings(started, monkeypatch):
    walks = []
    walk = started.iommu.engine._core.walk
    monkeypatch.setattr(started.iommu.engine._core, "walk", lambda *args: walks.append(args) or walk(*args))

    assert started.dma_read("dma0", 0x100000, 3 << 12) == bytes(3 << 12)
    assert len(walks) == 1
    started.unmap(1, 0x101, 1)
    with pytest.raises(DmaRefusedError):
        started.dma_read("dma0", 0x100000, 3 << 12)


def test_slots_and_guest_memory_pass_the_inputs_where_python_has_them(started, parts):
    copies = []
    started.inputs.after_copy = lambda: copies.append(1)

    started.map(1, 0x110, 0x30, 1)
    assert len(copies) == (0 if parts["rings"] else 1)
    copies.clear()
    started.dma_read("dma0", 0x100000, 3 << 12)
    assert len(copies) == (0 if parts["copier"] else 2)


def test_only_rings_in_c_are_polled_in_c(started, parts):
    started.put(map_op(1, 0x110, 0x30))

    assert started.iommu.spin(ROUND) == parts["rings"]
    assert started.iommu.work() != parts["rings"]


def test_the_parts_are_chosen_where_a_core_is_made(native_library):
    path = native_library._library._name

    for parts in (WHOLE, TABLES):
        core = native_core(path, **parts)
        assert (core.copier() is None) == (not parts["copier"])
