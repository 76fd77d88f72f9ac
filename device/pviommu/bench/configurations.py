"""What is measured side by side: one entry a machine, alike but for its IOMMU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pviommu.lab.problems import UsageError

__all__ = ["ACCESS_EVENTS", "CONFIGURATIONS", "Configuration", "choose", "device_address"]

DEVICE_SLOT = 0x10
"""Slot of the measured device where QEMU emulates it: a plain one without a driver, which does nothing itself."""

SERVED_DEVICE_SLOT = 0x11
"""Slot of the measured device where the server emulates it: the first endpoint, one after the PV-IOMMU."""

ACCESS_EVENTS = ("virtio_queue_notify", "vtd_reg_read", "vtd_reg_write", "vfio_region_read", "vfio_region_write")
"""QEMU's trace events of accesses that leave the guest for an IOMMU: the notification of a virtio queue, a register of
the Intel IOMMU, a trapped register of a vfio-user function. They are what differs, also under KVM, where a notification
never comes by QEMU's memory dispatch."""

_PLAIN_DEVICE = ("-device", f"pci-testdev,addr={DEVICE_SLOT:#x}")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One machine.

    ``early_modules`` are loaded before the guest talks to the host (the kernel puts off all PCI drivers until a
    virtio-iommu has its own), ``modules`` by the benchmark. ``served`` machines have the server's functions.
    """

    name: str
    title: str
    arguments: Sequence[str] = ()
    kernel_arguments: Sequence[str] = ()
    early_modules: Sequence[str] = ()
    modules: Sequence[str] = ()
    served: bool = False


_VIRTIO = ("-device", "virtio-iommu-pci,addr=0x2")

CONFIGURATIONS = (
    Configuration("none", "no IOMMU", arguments=_PLAIN_DEVICE),
    Configuration(
        "virtio-iommu",
        "QEMU's virtio-iommu",
        arguments=(*_VIRTIO, *_PLAIN_DEVICE),
        early_modules=("virtio-iommu",),
    ),
    Configuration(
        "virtio-iommu-strict",
        "QEMU's virtio-iommu, iommu.strict=1",
        arguments=(*_VIRTIO, *_PLAIN_DEVICE),
        kernel_arguments=("iommu.strict=1",),
        early_modules=("virtio-iommu",),
    ),
    Configuration(
        "intel-iommu",
        "QEMU's intel-iommu in caching mode",
        arguments=("-device", "intel-iommu,caching-mode=on", *_PLAIN_DEVICE),
        kernel_arguments=("intel_iommu=on",),
    ),
    Configuration("floor", "the guest driver with the ring store left out", modules=("pv_iommu_floor",), served=True),
    Configuration("pviommu", "the PV-IOMMU", modules=("pv_iommu",), served=True),
)


def device_address(configuration: Configuration) -> str:
    """The PCI address of the measured device in the guest."""
    return f"0000:00:{SERVED_DEVICE_SLOT if configuration.served else DEVICE_SLOT:02x}.0"


def choose(names: str | None) -> list[Configuration]:
    """The configurations of a comma-separated list, in their own order; all without one. Raises UsageError."""
    if names is None:
        return list(CONFIGURATIONS)
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = {configuration.name for configuration in CONFIGURATIONS}
    if not wanted or not wanted <= known:
        unknown = ", ".join(sorted(wanted - known)) or "nothing"
        raise UsageError(f"--only {names}: {unknown} is not one of {', '.join(c.name for c in CONFIGURATIONS)}")
    return [configuration for configuration in CONFIGURATIONS if configuration.name in wanted]
