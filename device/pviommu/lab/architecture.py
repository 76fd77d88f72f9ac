"""The guests' architectures: their machines, and the packages that they and their kernels come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..elf import AARCH64, X86_64
from .guest_settings import ARM64_KERNELS, KERNELS
from .problems import UsageError

__all__ = ["AMD64", "ARCHITECTURES", "ARM64", "Architecture", "InterruptController", "interrupt_controller"]


@dataclass(frozen=True, slots=True)
class InterruptController:
    """Where a machine's MSIs go. ``window`` is its MSI window as ``pviommu serve --msi`` takes it, "" for that of the
    topology; ``machine`` are QEMU's options of the machine.
    """

    name: str
    machine: str = ""
    window: str = ""
    isolates: bool = False
    """whether Linux takes the interrupts of its functions for isolated, so that VFIO asks for no decision"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture, under Debian's name."""

    name: str
    machine: str
    """QEMU's"""
    emulator: str
    """QEMU's program"""
    emulator_packages: tuple[str, ...]
    packages: tuple[str, ...]
    """what builds for a guest and what it is made of; of a foreign one, beside those of this host's"""
    kernels: tuple[str, ...]
    """the lab's names of its kernels"""
    console: str
    """the guest's first serial port"""
    console_option: str
    """without which a kernel has no console there"""
    image: str
    """of a kernel, in its build tree"""
    elf: int
    """machine number of its programs"""
    controllers: tuple[InterruptController, ...]
    """the usual one first"""
    flavours: Mapping[str, str] = field(default_factory=dict)
    """how the releases of Debian's kernels end, by the lab's names"""
    processor: str = ""
    """QEMU's, where its default will not do"""
    arguments: tuple[str, ...] = ()
    """of every boot"""
    make: tuple[str, ...] = ()
    """what ``make`` of a kernel's modules is told"""
    modules: tuple[str, ...] = ("driver",)
    """folders of ``guest-tools`` with modules for its guests"""
    prefix: str = ""
    """of the compiler's name; not "" for a foreign architecture, whose programs do not run here"""

    @property
    def is_foreign(self) -> bool:
        return bool(self.prefix)


AMD64 = Architecture(
    "amd64",
    "q35",
    "qemu-system-x86_64",
    ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"),
    (
        *("linux-image-cloud-amd64", "linux-headers-cloud-amd64", "busybox-static"),
        *("make", "gcc", "libc6-dev", "dash", "bash", "coreutils", "base-files", "libc-bin"),
        *("mawk", "sed", "grep", "findutils", "kmod"),
    ),
    KERNELS,
    "ttyS0",
    "SERIAL_8250_CONSOLE",
    "arch/x86/boot/bzImage",
    X86_64,
    (InterruptController("apic"),),
    flavours={"debian-7": "cloud-amd64"},
    arguments=("no_timer_check", "tsc=reliable"),
)

ARM64 = Architecture(
    "arm64",
    "virt",
    "qemu-system-aarch64",
    ("qemu-system-arm", "qemu-system-common", "qemu-system-data"),
    (
        *("linux-image-cloud-arm64:arm64", "linux-headers-cloud-arm64:arm64", "busybox-static:arm64"),
        *("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    ),
    ARM64_KERNELS,
    "ttyAMA0",
    "SERIAL_AMBA_PL011_CONSOLE",
    "arch/arm64/boot/Image",
    AARCH64,
    (  # addresses: QEMU, hw/arm/virt.c
        InterruptController("its", "gic-version=3,msi=its", "0x08080000+0x20000", isolates=True),
        InterruptController("gicv2m", "gic-version=2,msi=gicv2m", "0x08020000+0x1000"),
    ),
    flavours={"debian": "cloud-arm64", "debian-7": "cloud-arm64", "debian-16k": "arm64-16k"},
    processor="cortex-a76",  # has pages of 4, 16 and 64 KiB
    make=("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"),
    modules=("driver", "smmu"),
    prefix="aarch64-linux-gnu-",
)

ARCHITECTURES: Mapping[str, Architecture] = {each.name: each for each in (AMD64, ARM64)}


def interrupt_controller(architecture: Architecture, name: str | None) -> InterruptController:
    """The one of that name, the usual one for None. Raises UsageError."""
    for controller in architecture.controllers:
        if name in (None, controller.name):
            return controller
    known = " or ".join(each.name for each in architecture.controllers)
    raise UsageError(f"--msi {name}: the machine of {architecture.name} has {known}")
