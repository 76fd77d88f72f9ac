"""QEMU as a program of ``pviommu vfio run``: its own vfio-pci takes a device into a machine, driven by qtest here."""

from __future__ import annotations

import io
import sys
import time

import pytest

from pviommu.differential.qtest import Qtest
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Qemu, provision
from pviommu_abi.dma_test import Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.registers import DMA_TEST_DEVICE_ID, VENDOR_ID

LIMIT_S = 30.0
SLOT = 5
REGISTERS, QUEUE = 0xE0000000, 0xE0100000
SOURCE, TARGET = 0x100000, 0x200000
COMMAND, BAR_0, BAR_2 = 0x04, 0x10, 0x18
CONTROL, PRODUCER, CONSUMER = 0x14, 0x18, 0x1C
DATA = b"by vfio-pci of QEMU"


@pytest.mark.parametrize("by_iommufd", [False, True], ids=["container", "iommufd"])
def test_a_device_in_a_machine_of_qemu_has_registers_and_makes_dma(by_iommufd: bool) -> None:
    toolbox = provision(Progress(io.StringIO(), 100))
    run = (sys.executable, "-m", "pviommu", "vfio", "run", "--topology", "lab", "--")
    device = f"vfio-pci,host=0000:01:00.0,addr={SLOT}"
    back = ["-object", "iommufd,id=iommufd0"] if by_iommufd else []
    arguments = ["-machine", "q35", "-m", "64M", *back, "-device", device + ",iommufd=iommufd0" * by_iommufd]
    qemu = Qemu((*run, *toolbox.qemu_command), toolbox.qemu_environment, toolbox.qemu_version)
    with Qtest(qemu, arguments) as machine:

        def config(offset: int, value: int | None = None) -> int:
            machine.ask(f"outl 0xcf8 {0x80000000 | SLOT << 11 | offset:#x}")
            if value is not None:
                machine.ask(f"outl 0xcfc {value:#x}")
            return int(machine.ask("inl 0xcfc")[0], 16)

        assert config(0) == DMA_TEST_DEVICE_ID << 16 | VENDOR_ID
        config(BAR_0, REGISTERS)
        config(BAR_2, QUEUE)
        config(COMMAND, 6)
        descriptor = Descriptor(DmaOp.COPY, flags=0, pad0=0, length=len(DATA), src=SOURCE, dst=TARGET, pattern=0)
        machine.write(REGISTERS + CONTROL, 4, 1)
        machine.ask(f"write {SOURCE:#x} {len(DATA)} 0x{DATA.hex()}")
        machine.ask(f"write {QUEUE:#x} {Descriptor.SIZE} 0x{descriptor.pack().hex()}")
        machine.write(REGISTERS + PRODUCER, 4, 1)
        end = time.monotonic() + LIMIT_S
        while machine.read((REGISTERS + CONSUMER, 4)) != [1]:
            assert time.monotonic() < end, "the engine does not come to its end"
        done = Descriptor.unpack(bytes.fromhex(machine.ask(f"read {QUEUE:#x} {Descriptor.SIZE}")[0][2:]))
        assert done.status == DescriptorStatus.DONE
        assert machine.ask(f"read {TARGET:#x} {len(DATA)}") == [f"0x{DATA.hex()}"]
