"""A small function of every kind of BAR."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.counters import Counters
from pviommu.inputs import LiveInputs
from pviommu.pci.config_space import Identity
from pviommu.pci.function import Environment, PciFunction
from wire_layout.registers import AccessKind, Register

REGISTERS = (
    Register("MAGIC", 0x00, AccessKind.RO, "a constant"),
    Register("SCRATCH", 0x04, AccessKind.RW, "keeps what is written"),
    Register("KICK", 0x08, AccessKind.WO, "four in a row", 4),
)


class SmallFunction(PciFunction):
    """Registers in BAR 0, shared memory in BAR 2, MSI-X in BAR 4; writes down what happens to it."""

    def __init__(self) -> None:
        super().__init__("small", Identity(0x1234, 0x5678, 0x080600, 3), Environment(LiveInputs(), Counters()))
        self.happened: list[str] = []
        self.registers = self.add_register_bar(0, REGISTERS)
        self.shared = self.add_shared_bar(2, 0x10000)
        self.add_msix_bar(4, vectors=3, size=4096, pba_offset=0x800)
        self.registers["MAGIC"] = 0xCAFE
        self.power_on()

    def write_kick(self, index: int, value: int) -> None:
        self.happened.append(f"kick {index} {value:#x}")

    def on_reset(self) -> None:
        self.happened.append("reset")

    def on_bus_master(self, enabled: bool) -> None:
        self.happened.append(f"bus master {enabled}")

    def on_ram_changed(self, first: int, nr: int) -> None:
        self.happened.append(f"memory {len(self.memory.ram_ranges())} at {first}+{nr}")

    def on_shared_renewed(self) -> None:
        self.happened.append("shared memory renewed")


@pytest.fixture
def function() -> Iterator[SmallFunction]:
    function = SmallFunction()
    yield function
    function.close()
