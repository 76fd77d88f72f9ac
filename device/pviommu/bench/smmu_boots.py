"""The virtual SMMUv3 and QEMU's own, each in an arm64 guest whose kernel drives it with its own driver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pviommu_abi.registers import DMA_TEST_DEVICE_ID, VENDOR_ID

from .. import resources
from ..lab.architecture import ARM64, interrupt_controller
from ..lab.boot import OF_THE_REPORT
from ..lab.image import KernelModules, guest_image
from ..lab.report import exit_line
from ..lab.run import Setup, short_folder
from ..lab.server import PROGRAM, ServerProcess, capabilities
from ..lab.vm import KERNEL_ARGUMENTS, VirtualMachine, VmConfig
from .boots import INITRD
from .configurations import DEVICE_SLOT
from .guest import MeasurementError
from .samples import Figure, figure

__all__ = ["BESIDE", "MEASURED", "Machine", "SmmuBench", "SmmuBoot", "boot_smmu", "compared"]

MEASURED = {
    "register, read": "read_ns",
    "register, write": "write_ns",
    "TLBI and SYNC": "flush_ns",
    "map": "map_ns_median",
    "unmap": "unmap_ns_median",
    "map and unmap": "pair_ns_median",
}
"""What is shown, by the guest's name for it."""
_TOPOLOGY = "bench/smmu.toml"


class Machine(NamedTuple):
    """One of the machines, which are alike but for the SMMU."""

    name: str
    function: str
    """the PCI ID of the function behind the SMMU"""
    registers: str = ""
    """of an SMMU of the machine's own"""
    options: str = ""
    arguments: Sequence[str] = ()

    @property
    def is_served(self) -> bool:
        return not self.registers


BESIDE = (
    Machine("pviommu", f"{VENDOR_ID:#06x}:{DMA_TEST_DEVICE_ID:#06x}"),
    Machine(
        "QEMU",
        "0x1b36:0x0005",
        "0x09050000",  # hw/arm/virt.c: VIRT_SMMU
        ",iommu=smmuv3",
        ("-device", f"pci-testdev,addr={DEVICE_SLOT:#x}"),
    ),
)


@dataclass(frozen=True, slots=True)
class SmmuBench:
    """What all boots share: ``rounds`` of ``operations`` of each kind. ``memory`` is in bytes, ``timeout`` in seconds
    for each boot, ``program`` starts the server.
    """

    setup: Setup
    rounds: int
    operations: int
    memory: int
    timeout: float
    program: Sequence[str] = PROGRAM

    def settings(self, machine: Machine) -> bytes:
        """The guest's ``/lab/bench``."""
        values = {
            "registers": machine.registers,
            "function": machine.function,
            "operations": self.operations,
            "rounds": self.rounds,
        }
        return "".join(f"{name}='{value}'\n" for name, value in values.items()).encode()


@dataclass(slots=True)
class SmmuBoot:
    """What one guest said."""

    facts: dict[str, str] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    exit_status: int | None = None

    def line(self, line: str) -> None:
        """Take one line. Raises MeasurementError if the guest gave up or leaves something out."""
        match line.split():
            case ["bench", "round", _, *words]:
                pairs = (word.partition("=") for word in words)
                found = {name: float(value) for name, _, value in pairs if value.isdecimal()}
                if missing := set(MEASURED.values()) - found.keys():
                    raise MeasurementError(f"the guest's round lacks {', '.join(sorted(missing))}: {line.strip()}")
                self.rounds.append(found)
            case ["bench", "fact", name, *words]:
                self.facts[name] = " ".join(words)
            case ["bench", "failed", *words]:
                raise MeasurementError(" ".join(words))
            case _:
                status = exit_line(line)
                self.exit_status = self.exit_status if status is None else status

    def finish(self, rounds: int) -> SmmuBoot:
        """Itself, once QEMU has ended. Raises MeasurementError unless all rounds came and maps are not lazy."""
        if self.exit_status != 0 or len(self.rounds) != rounds:
            raise MeasurementError(f"the guest ended with status {self.exit_status} after {len(self.rounds)} rounds")
        if (group := self.facts.get("group_type")) != "DMA":
            raise MeasurementError(f"the function's group is of type {group}: must be DMA, each unmap is waited for")
        return self


def boot_smmu(bench: SmmuBench, machine: Machine, folder: Path) -> SmmuBoot:
    """Boot a machine and measure in it. Logs go to ``folder``. Raises MeasurementError, GuestTimeoutError, RunError,
    EnvironmentProblem.
    """
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        short = stack.enter_context(short_folder())
        if not machine.is_served:
            return _boot(bench, machine, folder, short, ())
        topology = resources.guest_tools() / _TOPOLOGY
        sockets = [short / name for name in capabilities(topology, bench.program).sockets]
        server = stack.enter_context(ServerProcess(topology, short, folder / "server.jsonl", bench.program, ()))
        server.start()
        found = _boot(bench, machine, folder, short, sockets)
        if problems := server.stop():
            raise MeasurementError("; ".join(problems))
        return found


def _boot(bench: SmmuBench, machine: Machine, folder: Path, short: Path, sockets: Sequence[Path]) -> SmmuBoot:
    deadline = time.monotonic() + bench.timeout
    toolbox, tools = bench.setup.toolbox, resources.guest_tools()
    early = [name for name in OF_THE_REPORT if name in KernelModules(toolbox.modules)]
    files = {
        "/tests/main.sh": (tools / "bench/smmu.sh").read_bytes(),
        "/lab/bench": bench.settings(machine),
        "/lab/early-modules": "".join(f"{name}\n" for name in early).encode(),
    }
    (short / INITRD).write_bytes(guest_image(toolbox, tools, bench.setup.modules, extra_modules=early, files=files))
    config = VmConfig(
        initrd=short / INITRD,
        console_log=folder / "console.log",
        qemu_log=folder / "qemu.log",
        accelerator=bench.setup.accelerator,
        memory=bench.memory,
        sockets=sockets,
        kernel_arguments=(*KERNEL_ARGUMENTS, "iommu.strict=1", *toolbox.kernel_arguments),
        machine_options=interrupt_controller(ARM64, None).machine + machine.options,
        extra_arguments=machine.arguments,
    )
    boot = SmmuBoot()
    with VirtualMachine(toolbox, config) as vm:
        (folder / "qemu-command.txt").write_text(vm.command_line + "\n")
        vm.start()
        for line in vm.lines(deadline):
            boot.line(line)
    return boot.finish(bench.rounds)


def compared(boots: Mapping[str, Sequence[SmmuBoot]]) -> dict[str, dict[str, Figure]]:
    """Microseconds of each thing that is measured, by machine, over all rounds of all boots of it."""
    return {
        name: {
            machine: figure([one[key] / 1e3 for boot in each for one in boot.rounds]) for machine, each in boots.items()
        }
        for name, key in MEASURED.items()
    }
