"""A PCI function, through the interface that a vfio-user session uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.inputs import LiveInputs
from pviommu.pci.config_space import Identity
from pviommu.pci.function import Environment, PciFunction
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest, RegionFlags, RegionIndex, RequestError
from wire_layout.registers import AccessKind, Register

CONFIG = RegionIndex.CONFIG
COMMAND = 0x04


def capability(function: PciFunction, cap_id: int) -> int:
    """The offset of a capability, found as a guest finds it."""
    offset = function.region_read(CONFIG, 0x34, 1)[0]
    while offset:
        found, following = function.region_read(CONFIG, offset, 2)
        if found == cap_id:
            return offset
        offset = following
    raise LookupError(f"no capability {cap_id:#x}")


def arm(function: PciFunction, vector: int) -> int:
    """Give ``vector`` an eventfd; returns one end for the test."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    function.set_irqs(IrqRequest(IrqIndex.MSIX, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(fd),)))
    return fd


def ram(function: PciFunction) -> int:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    function.dma_map(DmaMapping(0, 4096, 0, True, True, os.dup(fd)))
    return fd


def test_regions_are_what_was_described(function: Any) -> None:
    sizes = [function.region(index).size for index in range(9)]

    assert sizes == [0x1000, 0, 0x10000, 0, 0x1000, 0, 0, 0x1000, 0]
    shared = function.region(2)
    assert shared.flags & RegionFlags.MMAP
    assert (shared.areas, shared.fd) == (((0, 0x10000),), function.shared.fd)
    assert not function.region(0).flags & RegionFlags.MMAP


def test_interrupts_are_msix_and_no_intx(function: Any) -> None:
    assert [function.irq(index).count for index in range(5)] == [0, 0, 3, 1, 1]


def test_registers_are_reached_through_their_bar_and_counted(function: Any) -> None:
    function.region_write(0, 0x0C, (7).to_bytes(4, "little"))

    assert function.region_read(0, 0, 4) == (0xCAFE).to_bytes(4, "little")
    assert function.happened == ["kick 1 0x7"]
    assert function.counters.traps == 2
    assert function.counters.config_accesses == 0


def test_the_shared_bar_can_be_reached_without_mapping_it(function: Any) -> None:
    function.region_write(2, 0x123, b"abc")

    assert bytes(function.shared.view[0x123:0x126]) == b"abc"
    assert function.region_read(2, 0x122, 5) == b"\0abc\0"


@pytest.mark.row("defect", "B9")
@pytest.mark.row("wire", 41)
def test_the_msix_bar_reads_zero_and_keeps_nothing(function: Any) -> None:
    function.region_write(4, 0, b"\xff" * 16)

    assert function.region_read(4, 0, 16) == bytes(16)


def test_msix_control_is_written_by_two_bytes(function: Any) -> None:
    control = capability(function, 0x11) + 2

    function.region_write(CONFIG, control, b"\xff\xff")

    assert function.region_read(CONFIG, control, 2) == (0xC002).to_bytes(2, "little")


def test_bus_master_tells_only_of_changes(function: Any) -> None:
    for value in (0x06, 0x04, 0x02, 0x00, 0x04):
        function.region_write(CONFIG, COMMAND, value.to_bytes(2, "little"))

    assert function.happened == ["bus master True", "bus master False", "bus master True"]


def test_a_function_level_reset_brings_configuration_back_but_for_where_the_bars_are(function: Any) -> None:
    control = capability(function, 0x10) + 8
    function.region_write(CONFIG, COMMAND, b"\x06\x04")
    function.region_write(CONFIG, 0x10, b"\x00\x00\x00\xfe")

    function.region_write(CONFIG, control, b"\x10\x80")

    assert function.happened == ["bus master True", "reset"]
    assert function.region_read(CONFIG, COMMAND, 2) == bytes(2)
    assert function.region_read(CONFIG, 0x10, 4) == b"\x00\x00\x00\xfe"
    assert function.region_read(CONFIG, control, 2) == bytes(2)


@pytest.mark.parametrize("data", [b"\x80", b"\x80\x00\x00"])
def test_a_function_level_reset_is_found_in_every_size_of_access(function: Any, data: bytes) -> None:
    function.region_write(CONFIG, capability(function, 0x10) + 9, data)

    assert function.happened == ["reset"]


def test_writes_beside_the_reset_bit_do_not_reset(function: Any) -> None:
    control = capability(function, 0x10) + 8

    function.region_write(CONFIG, control, b"\xff\x7f")
    function.region_write(CONFIG, control + 2, b"\xff\xff")

    assert function.happened == []
    assert function.region_read(CONFIG, control, 2) == b"\xff\x7f"


def test_an_interrupt_reaches_its_eventfd_and_is_counted(function: Any) -> None:
    fd = arm(function, 2)

    function.interrupt(2)
    function.interrupt(1)

    assert os.eventfd_read(fd) == 1
    assert function.counters.interrupts == 1
    os.close(fd)


def test_reset_keeps_the_memory_of_the_client(function: Any) -> None:
    fd = ram(function)

    function.reset()

    assert function.memory.ram_ranges() == [(0, 4095)]
    os.close(fd)


def test_dma_maps_come_and_go(function: Any) -> None:
    fd = ram(function)
    function.dma_unmap(0, 4096)
    with pytest.raises(RequestError):
        function.dma_unmap(0, 4096)
    os.close(fd)
    os.close(ram(function))

    function.dma_unmap_all()

    assert function.memory.ram_ranges() == []
    assert function.happened == [f"memory {ranges} at 0+1" for ranges in (1, 0, 1, 0)]


def test_a_disconnect_leaves_nothing_of_the_client(function: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    power_on = function.region_read(CONFIG, 0, 4096)
    os.close(ram(function))
    os.close(arm(function, 0))
    function.region_write(2, 0, b"secret")
    function.region_write(CONFIG, COMMAND, b"\x06\x04")
    function.happened.clear()

    function.disconnected()

    assert function.region_read(CONFIG, 0, 4096) == power_on
    assert function.region_read(2, 0, 6) == bytes(6)
    assert function.memory.ram_ranges() == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert function.happened == ["reset", "memory 0 at 0+1", "shared memory renewed"]


def test_the_next_client_is_served_like_the_first(function: Any) -> None:
    function.disconnected()
    fd = arm(function, 0)

    function.interrupt(0)

    assert os.eventfd_read(fd) == 1
    assert function.describe().num_regions == 9
    os.close(fd)


def test_a_table_that_runs_into_its_pending_bits_is_refused() -> None:
    function = PciFunction("wide", Identity(1, 2, 3), Environment(LiveInputs(), Counters()))

    with pytest.raises(ValueError, match="129 vectors: table and pending bits do not fit 0x1000 bytes"):
        function.add_msix_bar(4, vectors=129, size=4096, pba_offset=0x800)


class Forgetful(PciFunction):
    """Its constructor ends too early."""

    def __init__(self) -> None:
        super().__init__("lamp", Identity(1, 2, 3), Environment(LiveInputs(), Counters()))
        self.registers = self.add_register_bar(0, (Register("LIGHT", 0, AccessKind.RW, "on or off"),))
        self.add_shared_bar(2, 0x1000)


@pytest.mark.parametrize(
    "use",
    [
        lambda function: function.describe(),
        lambda function: function.descriptors,
        lambda function: function.region_read(0, 0, 4),
        lambda function: function.region_write(0, 0, bytes(4)),
        lambda function: function.region_read(2, 0, 4),
        lambda function: function.region_read(CONFIG, 0, 4),
        lambda function: function.region_write(CONFIG, COMMAND, b"\x06\x00"),
        lambda function: function.reset(),
    ],
)
def test_a_function_that_was_not_powered_on_says_so_when_it_is_used(use: Callable[[PciFunction], object]) -> None:
    function = Forgetful()

    with pytest.raises(RuntimeError) as caught:
        use(function)

    text = "lamp is used before it was powered on: Forgetful.__init__ must end with self.power_on()"
    assert str(caught.value) == text
    function.close()


class Misspelt(PciFunction):
    """One handler has no register, in either of two BARs."""

    def __init__(self) -> None:
        super().__init__("lamp", Identity(1, 2, 3), Environment(LiveInputs(), Counters()))
        self.add_register_bar(0, (Register("LIGHT", 0, AccessKind.RW, "on or off"),))
        self.add_register_bar(1, (Register("COLOUR", 0, AccessKind.RW, "red, green, blue"),))
        self.power_on()

    def write_colour(self, _: int, value: int) -> None: ...

    def write_ligth(self, _: int, value: int) -> None: ...


def test_a_misspelt_handler_is_an_error_when_the_function_is_powered_on() -> None:
    with pytest.raises(ValueError, match=r"Misspelt\.write_ligth fits no register; the nearest .* is write_light"):
        Misspelt()


def test_registers_that_do_not_fit_their_bar_are_refused() -> None:
    function = PciFunction("lamp", Identity(1, 2, 3), Environment(LiveInputs(), Counters()))

    with pytest.raises(ValueError, match="lamp: the registers of BAR 0 end at 0x1008, past its 0x1000 bytes"):
        function.add_register_bar(0, (Register("FAR", 0xFF8, AccessKind.RW, "two", count=2, width=64),))
