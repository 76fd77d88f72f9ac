"""Operations in progress: a machine is saved in the middle of one, and another goes on to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import pytest

from pviommu import snapshot
from pviommu.dma.fault import DmaPendingError
from pviommu.interfaces.pv import pages
from pviommu.interfaces.pv.batch import ELEMENTS
from pviommu.interfaces.pv.order import STEP_NS
from pviommu.interfaces.pv.profile import Progress
from pviommu.interfaces.pv.ring import CommandRingState, Operation
from pviommu.machine import Machine
from pviommu.native import page_operation
from pviommu.native.core import NativeCore
from pviommu.native.library import Library
from pviommu_abi.registers import Profile
from pviommu_abi.slots import OpClass, SlotFlags
from pviommu_abi.vendor import Batch, BatchFlags, Call, MapOp, VendorOp
from pviommu_abi.xen_2024 import MapPages, PvIommuOp, UnmapPages, Xen2024Op
from pviommu_abi.xen_v7 import V7MapPages, V7RemoteCmd, XenV7Op

from ... import conftest as machines
from ...conftest import Driver
from ...native.conftest import native_library
from .conftest import PLACE, V7

__all__ = ["native_library"]

PIECE, MOST_PAGES = 1 << 9, 1 << 13
"""An eighth of what a step does, and of what a native core does at once: each page costs time to save and load."""
LONG = 17 * PIECE + 5
"""Pages of a map that does not allow large leaves, and is too long for a native core."""
MAP = MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, 0, LONG).pack()
ALLOC = PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()
CORES = {"python": (False, False), "from native": (True, False), "to native": (False, True)}
"""of the machine that is saved, and of the one that goes on"""

Make = Callable[..., Driver]


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PIECE", PIECE)
    monkeypatch.setattr(page_operation, "MOST_PAGES", MOST_PAGES)


@pytest.fixture
def make(native_library: Library) -> Iterator[Make]:
    """Machines whose steps end after each piece or slot, with 4 GiB of RAM and a context."""
    made: list[Driver] = []

    def build(native: bool, profile: int = Profile.XEN_2024) -> Driver:
        class Chosen(Machine):
            @classmethod
            def build(cls, topology, environment, core=None):  # type: ignore[no-untyped-def]
                return Machine.build(topology, environment, NativeCore(native_library) if native else None)

        with mock.patch.object(machines, "Machine", Chosen):
            driver = Driver()
        made.append(driver)
        driver.start(rings=2, profile=profile)
        driver.iommu.engine.set_ram([(0, (1 << 20) - 1)])
        if profile == Profile.XEN_V7:
            V7(driver).init()
            V7(driver).alloc()
        else:
            driver.alloc()
        driver.inputs.time_step = 2 * STEP_NS
        return driver

    yield build
    for driver in made:
        driver.close()


def successor(driver: Driver, other: Driver) -> Driver:
    """``other`` goes on from where ``driver`` is, with a copy of its memory."""
    other.ram[:] = driver.ram[:]
    file = snapshot.take(driver.machine)
    snapshot.restore(other.machine, file)
    assert snapshot.take(other.machine) == file
    other.inputs.time = driver.inputs.time
    for ring, known in zip(other.rings, driver.rings, strict=True):
        ring.producer = known.producer
    return other


def finish(driver: Driver) -> tuple[bytes, bytes]:
    """All that there is at the end."""
    while driver.iommu.work():
        pass
    return snapshot.take(driver.machine), driver.ram[:]


def long_map(driver: Driver) -> None:
    driver.put(MAP)


def long_unmap(driver: Driver) -> None:
    driver.inputs.time_step = 1
    driver.call(MAP)
    driver.inputs.time_step = 2 * STEP_NS
    driver.put(UnmapPages(Xen2024Op.UNMAP_PAGES, 1, 0, 0, LONG - 1).pack(), flags=SlotFlags.POSTED)


def map_that_fails(driver: Driver) -> None:
    driver.map(1, LONG - 2, 7, 1)
    driver.put(MAP, flags=SlotFlags.POSTED)


def batch(driver: Driver) -> None:
    array = [MapOp(0x1000 + page, page, 3, 77) for page in range(5 * ELEMENTS)]
    array[4 * ELEMENTS + 3] = array[0]
    packed = b"".join(element.pack() for element in array)
    driver.ram[PLACE : PLACE + len(packed)] = packed
    driver.put(Batch(PLACE, len(array), 0, 1).pack(), OpClass.VENDOR, VendorOp.BATCH)


def batch_of_unmaps(driver: Driver) -> None:
    driver.map(1, 0x1000, 5, 3 * ELEMENTS)
    packed = b"".join(MapOp(0x1000 + page, 0, 0, 77).pack() for page in range(3 * ELEMENTS))
    driver.ram[PLACE : PLACE + len(packed)] = packed
    driver.put(Batch(PLACE, 3 * ELEMENTS, BatchFlags.UNMAP, 1).pack(), OpClass.VENDOR, VendorOp.BATCH)


def call(driver: Driver) -> None:
    driver.ram[PLACE : PLACE + len(MAP)] = MAP
    driver.put(Call(PLACE, 0).pack(), OpClass.VENDOR, VendorOp.CALL)


def behind_another_ring(driver: Driver) -> None:
    """A context is to be allocated once the other ring's map is done."""
    driver.put(MAP, ring=1)
    driver.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, LONG, LONG).pack(), ring=1)
    driver.put(ALLOC)


def call_behind_another_ring(driver: Driver) -> None:
    driver.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, LONG, LONG).pack(), ring=1)
    call(driver)


CASES: dict[str, Callable[[Driver], None]] = {
    each.__name__: each
    for each in (
        *(long_map, long_unmap, map_that_fails, batch, batch_of_unmaps, call),
        *(behind_another_ring, call_behind_another_ring),
    )
}


@pytest.mark.parametrize("cores", CORES.values(), ids=CORES)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("case", CASES)
def test_an_operation_in_progress_goes_on_in_another_machine_to_the_same_end(
    make: Make, case: str, steps: int, cores: tuple[bool, bool]
) -> None:
    driver = make(cores[0])
    CASES[case](driver)
    later = driver.put(ALLOC)
    for _ in range(min(steps, 2) if "batch" in case else steps):
        driver.iommu.work()
    assert any(ring.operation for ring in driver.iommu.rings)
    completed = driver.completed()

    other = successor(driver, make(cores[1]))

    assert (other.completed(), driver.completed()) == (completed, completed)
    assert finish(other) == finish(driver)
    assert other.outcome(later)[0].result == 0


@pytest.mark.parametrize("cores", CORES.values(), ids=CORES)
def test_a_remote_command_by_way_of_memory_goes_on_with_both_structures(make: Make, cores: tuple[bool, bool]) -> None:
    """What the guest writes over them meanwhile is not seen."""
    driver = make(cores[0], Profile.XEN_V7)
    inner = PLACE + 0x100
    given = V7MapPages(1, 0, 0, 1, 0, 3, 4096, LONG, 4)
    driver.ram[inner : inner + given.SIZE] = given.pack()
    outer = V7RemoteCmd(0, XenV7Op.MAP_PAGES, 0, inner).pack()
    driver.ram[PLACE : PLACE + len(outer)] = outer
    position = driver.put(Call(PLACE, XenV7Op.REMOTE_CMD).pack(), OpClass.VENDOR, VendorOp.CALL)
    driver.iommu.work()
    operation = driver.iommu.rings[0].save().operation
    assert operation
    assert operation.progress == Progress(PIECE, (outer, given.pack()))
    driver.ram[PLACE : PLACE + len(outer)] = b"\xff" * len(outer)

    other = successor(driver, make(cores[1], Profile.XEN_V7))

    assert finish(other) == finish(driver)
    assert other.outcome(position)[0].result == 0
    assert V7MapPages.unpack(other.ram, inner) == replace(given, mapped=LONG + 4)


def test_the_guest_changes_a_slot_in_progress_and_nothing_comes_of_it(make: Make) -> None:
    driver = make(False)
    position = driver.put(MAP)
    driver.iommu.work()
    other = successor(driver, make(False))
    at = other.slot_at(position)
    other.view[at : at + 16] = b"\xff" * 16

    finish(other)

    assert other.outcome(position)[0].completed == position + 100
    assert other.iommu.engine.usage().mapped_pages == LONG


def test_dma_that_waits_for_the_rings_goes_on_to_wait_for_as_much_and_no_more(make: Make) -> None:
    driver = make(False)
    driver.attached("dma0", 1)
    driver.put(MAP, flags=SlotFlags.POSTED)
    with pytest.raises(DmaPendingError):
        driver.dma_read("dma0", LONG << 12, 1)
    held = driver.producer[0]
    for _ in range(3):
        driver.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, LONG, 1).pack(), flags=SlotFlags.POSTED)

    other = successor(driver, make(False))

    stream = other.iommu.stream(1)
    assert stream.save() == driver.iommu.stream(1).save() == ((0, held),)
    while other.completed() != held:
        other.iommu.work()
    assert stream.catch_up()
    assert other.completed() == held


def test_dma_that_waits_for_what_came_before_a_reset_waits_no_more(make: Make) -> None:
    driver = make(False)
    driver.attached("dma0", 1)
    driver.put(MAP, flags=SlotFlags.POSTED)
    with pytest.raises(DmaPendingError):
        driver.dma_read("dma0", LONG << 12, 1)
    driver.write("RING_CONTROL", 0)
    driver.iommu.on_reset()

    assert driver.iommu.stream(1).save() is None


def test_what_the_guest_said_of_its_waiting_is_saved(make: Make) -> None:
    driver = make(False)
    driver.words[2] = 5  # somebody polls for this index
    driver.iommu.waits()
    driver.words[2] = 6

    other = successor(driver, make(False))

    assert other.iommu.is_told_of_waits
    assert (other.iommu.waits(), other.iommu.waits()) == (1, 0)


BAD_OPERATIONS = {
    "off": CommandRingState(operation=Operation(1, 0, 0, 0, bytes(48), Progress())),
    "short": CommandRingState(0x10000, 256, operation=Operation(1, 0, 0, 0, bytes(47), Progress())),
}


@pytest.mark.parametrize("state", BAD_OPERATIONS.values(), ids=BAD_OPERATIONS)
def test_an_operation_of_a_ring_that_is_off_or_of_no_slot_is_not_loaded(make: Make, state: CommandRingState) -> None:
    ring = make(False).iommu.rings[1]
    before = ring.save()

    with pytest.raises(ValueError, match="ring 1: an operation in progress of a ring that is off, or of no slot"):
        ring.load(state)

    assert ring.save() == before


def test_an_operation_that_waits_for_a_ring_that_there_is_not_is_not_loaded(make: Make) -> None:
    iommu = make(False).iommu
    operation = Operation(OpClass.VENDOR, VendorOp.CALL, 0, 0, bytes(48), Progress(targets=((4, 1),)))
    iommu.rings[0].load(replace(iommu.rings[0].save(), operation=operation))

    with pytest.raises(ValueError, match="ring 4 is to be waited for, and there are 4"):
        iommu._executor.load(iommu._executor.save())


def test_what_no_slot_can_have_begun_fails_alone(make: Make) -> None:
    """Of a state that somebody made up."""
    driver = make(False)
    position = driver.put(b"")
    driver.put(ALLOC)
    made_up = Operation(OpClass.VENDOR, VendorOp.CALL, 0, 7, bytes(48), Progress())
    driver.iommu.rings[0].load(replace(driver.iommu.rings[0].save(), operation=made_up))

    finish(driver)

    assert (driver.outcome(position)[0].result, driver.outcome(position + 1)[0].result) == (-5, 0)
