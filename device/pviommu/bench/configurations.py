"""The machines that are compared: they are alike except for the IOMMU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..lab.problems import UsageError

__all__ = [
    "ACCESS_EVENTS",
    "CONFIGURATIONS",
    "INTERRUPT_EVENTS",
    "LEVERS",
    "Configuration",
    "choose",
    "device_address",
]

DEVICE_SLOT = 0x10
"""PCI slot of the measured device if QEMU emulates it: a plain device without a driver, which does nothing by
itself."""

SERVED_DEVICE_SLOT = 0x11
"""PCI slot of the measured device if the server emulates it: the first endpoint, which follows the PV-IOMMU."""

ACCESS_EVENTS = ("virtio_queue_notify", "vtd_reg_read", "vtd_reg_write", "vfio_region_read", "vfio_region_write")
"""QEMU's trace events of accesses that leave the guest for an IOMMU: the notification of a virtio queue, a register of
the Intel IOMMU, a trapped register of a vfio-user function. They are what differs, also under KVM, where a notification
never comes by QEMU's memory dispatch."""

INTERRUPT_EVENTS = ("virtio_notify", "vfio_msi_interrupt")
"""QEMU's trace events of interrupts that it delivers for an IOMMU: of a virtio device, of a vfio-user function. Under
KVM the latter bypass QEMU."""

_PLAIN_DEVICE = ("-device", f"pci-testdev,addr={DEVICE_SLOT:#x}")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One machine.

    ``early_modules`` are loaded before the guest talks to the host (the kernel puts off all PCI drivers until a
    virtio-iommu has its own), ``modules`` with the parameters ``options`` by the benchmark. Machines that are
    ``served`` have the functions of the server, which is started with ``server_options``. ``group`` is the type that
    the device's IOMMU group must have for the figures to mean what the name says. ``lever_of`` names the configuration
    of which this one is a variant without one optimisation. ``vfio``: maps through VFIO are measured here too; for them
    nothing is lazy.
    """

    name: str
    title: str
    arguments: Sequence[str] = ()
    kernel_arguments: Sequence[str] = ()
    early_modules: Sequence[str] = ()
    modules: Sequence[str] = ()
    options: Sequence[str] = ()
    served: bool = False
    server_options: Sequence[str] = ()
    group: str = ""
    lever_of: str = ""
    vfio: bool = False


_LAZY = ("iommu.strict=0",)
_STRICT = ("iommu.strict=1",)
_VIRTIO = ("-device", "virtio-iommu-pci,addr=0x2")

CONFIGURATIONS = (
    Configuration("none", "no IOMMU", arguments=_PLAIN_DEVICE),
    Configuration(
        "floor",
        "the guest driver without writes to its rings",
        kernel_arguments=_LAZY,
        modules=("pviommu_floor",),
        served=True,
        vfio=True,
    ),
    Configuration(
        "floor-strict",
        "the same with iommu.strict=1",
        kernel_arguments=_STRICT,
        modules=("pviommu_floor",),
        served=True,
    ),
    Configuration(
        "virtio-iommu",
        "QEMU's virtio-iommu",
        arguments=(*_VIRTIO, *_PLAIN_DEVICE),
        kernel_arguments=_LAZY,
        early_modules=("virtio-iommu",),
        group="DMA-FQ",
        vfio=True,
    ),
    Configuration(
        "virtio-iommu-strict",
        "QEMU's virtio-iommu, iommu.strict=1",
        arguments=(*_VIRTIO, *_PLAIN_DEVICE),
        kernel_arguments=_STRICT,
        early_modules=("virtio-iommu",),
        group="DMA",
    ),
    Configuration(
        "intel-iommu",
        "QEMU's intel-iommu in caching mode",
        arguments=("-device", "intel-iommu,caching-mode=on", *_PLAIN_DEVICE),
        kernel_arguments=("intel_iommu=on",),
        group="DMA",
        vfio=True,
    ),
    Configuration(
        "pviommu",
        "the PV-IOMMU, which walks the guest's tables",
        kernel_arguments=_LAZY,
        modules=("pviommu",),
        options=("tables=on",),
        served=True,
        group="DMA-FQ",
        vfio=True,
    ),
    Configuration(
        "pviommu-strict",
        "the same with iommu.strict=1",
        kernel_arguments=_STRICT,
        modules=("pviommu",),
        options=("tables=on",),
        served=True,
        group="DMA",
    ),
    Configuration(
        "pviommu-ring",
        "the PV-IOMMU with tables of its own, maps and unmaps sent through rings",
        kernel_arguments=_LAZY,
        modules=("pviommu",),
        options=("tables=off",),
        served=True,
        group="DMA-FQ",
        vfio=True,
    ),
    Configuration(
        "pviommu-ring-strict",
        "the same with iommu.strict=1",
        kernel_arguments=_STRICT,
        modules=("pviommu",),
        options=("tables=off",),
        served=True,
        group="DMA",
    ),
)

_LAZY_RING, _STRICT_RING = CONFIGURATIONS[-2:]


def _without(
    whole: Configuration, name: str, title: str, *, options: Sequence[str] = (), server_options: Sequence[str] = ()
) -> Configuration:
    return replace(
        whole,
        name=f"{whole.name}-{name}",
        title=f"{whole.title}, {title}",
        options=(*whole.options, *options),
        server_options=server_options,
        lever_of=whole.name,
        vfio=False,
    )


_PYTHON = ("--core", "python")
_NO_SPIN = ("--spin-us", "0")
LEVERS = (
    _without(_LAZY_RING, "python", "its rings and tables in Python", server_options=_PYTHON),
    _without(_LAZY_RING, "waited", "every map and unmap waited for", options=("posted=0",)),
    _without(_LAZY_RING, "no-spin", "its server asleep whenever its rings are empty", server_options=_NO_SPIN),
    _without(_STRICT_RING, "python", "its rings and tables in Python", server_options=_PYTHON),
    _without(_STRICT_RING, "waited", "every map and unmap waited for", options=("posted=0",)),
    _without(_STRICT_RING, "no-spin", "its server asleep whenever its rings are empty", server_options=_NO_SPIN),
)
"""The levers: the PV-IOMMU without one optimisation of its rings each, lazy and strict."""


def device_address(configuration: Configuration) -> str:
    """The PCI address of the measured device in the guest."""
    return f"0000:00:{SERVED_DEVICE_SLOT if configuration.served else DEVICE_SLOT:02x}.0"


def choose(names: str | None, *, levers: bool = False) -> list[Configuration]:
    """The configurations of a comma-separated list, in their own order; without a list all, with the levers only if
    ``levers``.

    Raises UsageError.
    """
    known = (*CONFIGURATIONS, *LEVERS)
    if names is None:
        return [configuration for configuration in known if levers or not configuration.lever_of]
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    all_names = [configuration.name for configuration in known]
    if not wanted or not wanted <= set(all_names):
        unknown = ", ".join(sorted(wanted - set(all_names))) or "nothing"
        raise UsageError(f"--only {names}: {unknown} is not one of {', '.join(all_names)}")
    return [entry for entry in known if entry.name in wanted or (levers and entry.lever_of)]
