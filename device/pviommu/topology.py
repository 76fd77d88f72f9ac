"""Topology files: which functions a virtual machine has behind its PV-IOMMU.

TOML, for example::

    [iommu]
    contexts = 255
    default-policy = "identity"

    [[endpoint]]
    name = "dma0"
    kind = "dma-test"
    stream = 1

    [[endpoint.reserved]]
    start = 0x7d000000
    size = 0x100000

One topology is one virtual machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from pviommu_abi import registers as abi
from pviommu_abi.shared import SBDF_UNBOUND

from .endpoints import ENDPOINTS
from .engine import PAGE_MASK, PAGE_SHIFT, DefaultPolicy, EngineConfig, ReservedRegion
from .iommu.bindings import sbdf_of
from .iommu.config import NO_STREAM, IommuConfig
from .pci.config_space import Identity

__all__ = [
    "EndpointEntry",
    "IommuEntry",
    "ReservedEntry",
    "Topology",
    "TopologyError",
    "load",
]

MAX_ENDPOINTS = 256
"""The capability area must have room to name them all."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_SBDF = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


class TopologyError(Exception):
    """A topology that cannot be read or breaks a rule; the text names the file, the value and the rule."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", frozen=True):
    pass


class IommuEntry(_Entry, frozen=True):
    """``[iommu]``."""

    name: str = "iommu"
    """of its socket: NAME.sock"""
    instance: int = 1
    """tells several PV-IOMMUs of one guest apart"""
    contexts: int = 255
    """contexts besides the default one"""
    pool_pages: int = 4096
    """4 KiB pages of page tables that all contexts share"""
    max_pages_per_op: int = 262144
    """most pages in one map or unmap"""
    aperture_bits: int = 39
    """bits of a device address"""
    default_policy: Literal["identity", "blocked"] = "identity"
    """what the default context translates to: all guest RAM 1:1, or nothing"""
    rings: int = 4
    allowed: bool = True
    """false: every Xen operation is refused, as on a host without IOMMU or for a guest without the right to use it"""
    remote_cmd: bool = True
    """whether the guest may use REMOTE_CMD of xen-v7, as a hardware domain may"""
    vendor_id: int = abi.VENDOR_ID
    device_id: int = abi.IOMMU_DEVICE_ID


class ReservedEntry(_Entry, frozen=True):
    """``[[endpoint.reserved]]``: device addresses that are mapped 1:1 wherever the endpoint is attached."""

    start: int
    """first byte"""
    size: int
    """bytes"""
    kind: Literal["direct"] = "direct"

    def region(self, endpoint: str) -> ReservedRegion:
        """As frames. Raises :class:`ValueError`."""
        if self.size <= 0 or (self.start | self.size) & PAGE_MASK:
            raise ValueError(
                f"endpoint {endpoint}: reserved start {self.start:#x} size {self.size:#x} must be multiples of 4096, "
                "and the size not 0"
            )
        return ReservedRegion(self.start >> PAGE_SHIFT, (self.start + self.size >> PAGE_SHIFT) - 1, self.kind)


class EndpointEntry(_Entry, frozen=True):
    """``[[endpoint]]``."""

    name: str
    kind: str
    stream: int
    sbdf: str | None = None
    """fixes the binding, as ``0000:00:05.0``; otherwise the guest driver binds"""
    reserved: tuple[ReservedEntry, ...] = ()

    def fixed_sbdf(self) -> int | None:
        """The fixed binding as a number. Raises :class:`ValueError`."""
        if self.sbdf is None:
            return None
        match = _SBDF.fullmatch(self.sbdf)
        if match is None or int(match[3], 16) > 0x1F:
            raise ValueError(f"endpoint {self.name}: sbdf {self.sbdf!r} must look like 0000:00:05.0")
        segment, bus, device, function = match.groups()
        sbdf = sbdf_of(int(segment or "0", 16), int(bus, 16), int(device, 16) << 3 | int(function))
        if sbdf == SBDF_UNBOUND:
            raise ValueError(f"endpoint {self.name}: sbdf {self.sbdf!r} stands for no binding at all")
        return sbdf


class Topology(_Entry, frozen=True):
    """A whole file."""

    iommu: IommuEntry = msgspec.field(default_factory=IommuEntry)
    endpoint: tuple[EndpointEntry, ...] = ()

    def check(self) -> None:
        """Raise :class:`ValueError` for what the types alone do not exclude."""
        names = [self.iommu.name, *(entry.name for entry in self.endpoint)]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"name {name!r}: must be 1 to 32 of a-z, 0-9 and -")
            if names.count(name) > 1:
                raise ValueError(f"name {name!r}: used twice, each names a socket")
        if len(self.endpoint) > MAX_ENDPOINTS:
            raise ValueError(f"{len(self.endpoint)} endpoints: at most {MAX_ENDPOINTS} are possible")
        for entry in self.endpoint:
            if entry.kind not in ENDPOINTS:
                raise ValueError(f"endpoint {entry.name}: kind {entry.kind!r} is none of {', '.join(ENDPOINTS)}")
            if not 0 <= entry.stream < NO_STREAM:
                raise ValueError(f"endpoint {entry.name}: stream {entry.stream} must be 0..{NO_STREAM - 1}")
        for field, value in (("vendor-id", self.iommu.vendor_id), ("device-id", self.iommu.device_id)):
            if not 0 < value < 0xFFFF:
                raise ValueError(f"iommu: {field} {value:#x} must be 0x1..0xfffe")
        if not 0 <= self.iommu.instance < 1 << 32:
            raise ValueError(f"iommu: instance {self.iommu.instance} must be a 32-bit number")
        fixed = [entry.fixed_sbdf() for entry in self.endpoint if entry.sbdf is not None]
        if len(set(fixed)) != len(fixed):
            raise ValueError("two endpoints are fixed to one sbdf")

    def limited(self, contexts: int | None, pool_pages: int | None) -> Topology:
        """The same with other limits, where given. Raises :class:`ValueError`."""
        given = {"contexts": contexts, "pool_pages": pool_pages}
        changes = {name: value for name, value in given.items() if value is not None}
        topology = msgspec.structs.replace(self, iommu=msgspec.structs.replace(self.iommu, **changes))
        topology.iommu_config()
        return topology

    def iommu_config(self) -> IommuConfig:
        """What the PV-IOMMU is built with. Raises :class:`ValueError`."""
        entry = self.iommu
        engine = EngineConfig(
            max_contexts=entry.contexts,
            pool_pages=entry.pool_pages,
            aperture_bits=entry.aperture_bits,
            default_policy=DefaultPolicy(entry.default_policy),
        )
        fixed = {endpoint.stream: endpoint.fixed_sbdf() for endpoint in self.endpoint}
        return IommuConfig(
            instance=entry.instance,
            engine=engine,
            max_nr_pages=entry.max_pages_per_op,
            rings=entry.rings,
            streams=tuple(endpoint.stream for endpoint in self.endpoint),
            fixed_bindings={stream: sbdf for stream, sbdf in fixed.items() if sbdf is not None},
            reserved={
                endpoint.stream: tuple(entry.region(endpoint.name) for entry in endpoint.reserved)
                for endpoint in self.endpoint
                if endpoint.reserved
            },
            allowed=entry.allowed,
            remote_cmd=entry.remote_cmd,
            identity=Identity(entry.vendor_id, entry.device_id, abi.IOMMU_CLASS),
        )


def load(path: Path) -> Topology:
    """Read a topology file. Raises :class:`TopologyError`."""
    try:
        topology = msgspec.toml.decode(path.read_bytes(), type=Topology)
        topology.check()
        topology.iommu_config()
    except OSError as error:
        raise TopologyError(f"cannot read topology {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:  # ValidationError is a DecodeError
        raise TopologyError(f"topology {path}: {error}") from error
    return topology
