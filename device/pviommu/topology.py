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

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from pviommu_abi import registers as abi
from pviommu_abi.shared import MAX_RINGS, SBDF_UNBOUND

from . import documents, resources, toml_places
from .documents import WrongValueError
from .endpoints import ENDPOINTS, WITH_OPTIONS, endpoint_class
from .endpoints.options import text_like
from .engine import MSI_WINDOW, PAGE_MASK, PAGE_SHIFT, EngineConfig, ReservedFrames
from .engine.config import MAX_APERTURE_BITS, MIN_APERTURE_BITS
from .interfaces.pv.config import MAX_CONTEXT, MAX_ENDPOINTS, NO_STREAM, DefaultPolicy, IommuConfig
from .interfaces.smmuv3.config import (
    DEVICE_ID,
    MAX_CACHE_ENTRIES,
    MAX_QUEUE_BITS,
    MAX_SSID_BITS,
    MAX_STALLS,
    SmmuConfig,
)
from .pci.identity import Identity

__all__ = [
    "EndpointSection",
    "IommuSection",
    "MsiSection",
    "ReservedSection",
    "SmmuSection",
    "Topology",
    "TopologyError",
    "find",
    "load",
    "schema",
]

_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,31}$")
_SBDF = re.compile(r"^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$")
_NAME_RULE = "1 to 32 characters a-z, 0-9 and -, not beginning with -"
_NUMBER = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})"
_WINDOW = re.compile(rf"{_NUMBER}\+{_NUMBER}")
_SBDF_RULE = "segment (optional), bus, device and function as 0000:00:05.0, in lower-case hexadecimal digits"
_MAX_32 = (1 << 32) - 1
_MAX_ID = 0xFFFE  # a function of 0 or 0xffff is none
_END = 1 << MAX_APERTURE_BITS
MAX_SMMUS = 16
MAX_WINDOWS = 8
"""Most MSI windows of a machine, which the capability area lists."""
SID_BITS = SmmuConfig.sid_bits
MAX_PASID_BITS = 8
"""of an endpoint: each PASID that it uses costs a domain"""


class TopologyError(Exception):
    """A topology that cannot be read or breaks a rule; the text names the file, the value and the rule."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", frozen=True):
    pass


def _named(description: str) -> Meta:
    return text_like(_NAME, _NAME_RULE, description)


def _identity(description: str) -> Meta:
    words = {"$comment": f"a whole number, 0x1 to {_MAX_ID:#x}"}
    return Meta(ge=1, le=_MAX_ID, description=description, extra_json_schema=words)


class IommuSection(_Section, frozen=True):
    """``[iommu]``: the PV-IOMMU."""

    name: Annotated[str, _named("name of the function; its socket is NAME.sock")] = "iommu"
    instance: Annotated[int, Meta(ge=0, le=_MAX_32, description="number of this PV-IOMMU, if a guest has several")] = 1
    contexts: Annotated[int, Meta(ge=1, le=MAX_CONTEXT, description="number of contexts besides the default one")] = 255
    pool_pages: Annotated[
        int, Meta(ge=1, le=_MAX_32, description="page-table pages of 4 KiB that all contexts share")
    ] = 4096
    max_pages_per_op: Annotated[int, Meta(ge=1, le=_MAX_32, description="limit of 4 KiB pages in one map or unmap")] = (
        262144
    )
    aperture_bits: Annotated[
        int, Meta(ge=MIN_APERTURE_BITS, le=MAX_APERTURE_BITS, description="width of a device address (IOVA) in bits")
    ] = 39
    default_policy: Annotated[
        Literal["identity", "blocked"],
        Meta(description="what the default context translates to: all guest RAM 1:1, or nothing"),
    ] = "identity"
    rings: Annotated[int, Meta(ge=1, le=MAX_RINGS, description="number of command rings")] = 4
    allowed: Annotated[
        bool,
        Meta(
            description="false: every Xen operation is refused, as on a host without IOMMU or for a guest without the "
            "right to use it"
        ),
    ] = True
    remote_cmd: Annotated[
        bool, Meta(description="whether the guest may use REMOTE_CMD of xen-v7, as a hardware domain may")
    ] = True
    guest_tables: Annotated[
        bool, Meta(description="whether contexts may have tables that the guest owns and the device walks")
    ] = True
    vendor_id: Annotated[int, _identity("PCI vendor ID")] = abi.VENDOR_ID
    device_id: Annotated[int, _identity("PCI device ID")] = abi.IOMMU_DEVICE_ID


class SmmuSection(_Section, frozen=True):
    """``[[smmu]]``: a virtual SMMUv3 beside the PV-IOMMU."""

    name: Annotated[str, _named("name of the function; its socket is NAME.sock")]
    address_bits: Annotated[
        Literal[32, 36, 40, 42, 44, 48], Meta(description="width of a physical address of the guest in bits (OAS)")
    ] = 44
    ssid_bits: Annotated[
        int, Meta(ge=0, le=MAX_SSID_BITS, description="width of a SubstreamID (PASID) in bits; 0: there are none")
    ] = 0
    stage2: Annotated[bool, Meta(description="whether the guest may use stage 2, for guests of its own")] = False
    cache_entries: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_CACHE_ENTRIES,
            description="translations of each stage, STEs and CDs that are cached at most; 0: nothing is",
        ),
    ] = 512
    httu: Annotated[
        Literal["none", "access", "dirty"],
        Meta(
            description="what walks update in tables: nothing, access flags, or dirty state too; with the native core"
        ),
    ] = "none"
    stalls: Annotated[
        int, Meta(ge=0, le=MAX_STALLS, description="stalled transactions at a time, at most; 0: faults never stall")
    ] = 0
    ats: Annotated[bool, Meta(description="whether endpoints may ask it for translations and keep them")] = False
    priq_bits: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_QUEUE_BITS,
            description="with ats: log2 of the most entries of the queue of page requests; 0: endpoints make none",
        ),
    ] = 0
    msi: Annotated[
        bool,
        Meta(
            description="whether it writes MSIs itself, which reach memory and no interrupt controller; so the driver "
            "need not read a register to wait for CMD_SYNC"
        ),
    ] = False
    strict: Annotated[bool, Meta(description="true: use of a cached entry that is otherwise in memory is reported")] = (
        False
    )
    vendor_id: Annotated[int, _identity("PCI vendor ID")] = abi.VENDOR_ID
    device_id: Annotated[int, _identity("PCI device ID")] = DEVICE_ID

    def config(self) -> SmmuConfig:
        """What the SMMU is built with. Raises :class:`ValueError`."""
        return SmmuConfig(
            address_bits=self.address_bits,
            ssid_bits=self.ssid_bits,
            stage2=self.stage2,
            cache_entries=self.cache_entries,
            strict=self.strict,
            httu=("none", "access", "dirty").index(self.httu),
            stalls=self.stalls,
            ats=self.ats,
            priq_bits=self.priq_bits,
            msi=self.msi,
        )

    def identity(self) -> Identity:
        return Identity(self.vendor_id, self.device_id, abi.IOMMU_CLASS)


class ReservedSection(_Section, frozen=True):
    """``[[endpoint.reserved]]``: device addresses that are mapped 1:1 wherever the endpoint is attached."""

    start: Annotated[int, Meta(ge=0, lt=_END, multiple_of=PAGE_MASK + 1, description="address of the first byte")]
    size: Annotated[int, Meta(ge=1, le=_END, multiple_of=PAGE_MASK + 1, description="size in bytes")]
    kind: Annotated[Literal["direct"], Meta(description="mapped 1:1, readable and writeable")] = "direct"

    def region(self, endpoint: str) -> ReservedFrames:
        """As frames. Raises :class:`ValueError`."""
        return _frames(self.start, self.size, self.kind, f"endpoint {endpoint}: reserved")


class MsiSection(_Section, frozen=True):
    """``[[msi]]``: guest physical addresses to which writes are interrupts."""

    start: Annotated[int, Meta(ge=0, lt=_END, multiple_of=PAGE_MASK + 1, description="address of the first byte")]
    size: Annotated[int, Meta(ge=1, le=_END, multiple_of=PAGE_MASK + 1, description="size in bytes")]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From START+SIZE, both decimal, or hexadecimal with 0x. Raises :class:`ValueError`."""
        match = _WINDOW.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r}: must be START+SIZE, as 0x08080000+0x20000")
        made = cls(int(match[1], 0), int(match[2], 0))
        made.region()
        return made

    def region(self) -> ReservedFrames:
        """As frames. Raises :class:`ValueError`."""
        return _frames(self.start, self.size, MSI_WINDOW.kind, "msi:")


def _frames(start: int, size: int, kind: str, what: str) -> ReservedFrames:
    """The frames of a region. Raises :class:`ValueError`, beginning with ``what``."""
    if size <= 0 or (start | size) & PAGE_MASK:
        raise ValueError(f"{what} start {start:#x} size {size:#x} must be multiples of 4096, and the size not 0")
    if start + size > _END:
        raise ValueError(f"{what} start {start:#x} size {size:#x} must end at {_END:#x} at most")
    return ReservedFrames(start >> PAGE_SHIFT, (start + size >> PAGE_SHIFT) - 1, kind)


X86_WINDOW = MsiSection(MSI_WINDOW.first << PAGE_SHIFT, (MSI_WINDOW.last + 1 - MSI_WINDOW.first) << PAGE_SHIFT)
"""The window of a topology that has none of its own."""


class EndpointSection(_Section, frozen=True):
    """``[[endpoint]]``: an emulated device behind the PV-IOMMU."""

    name: Annotated[str, _named("name of the function; its socket is NAME.sock")]
    kind: Annotated[str, Meta(description="kind of device", extra_json_schema={"enum": sorted(ENDPOINTS)})]
    stream: Annotated[
        int, Meta(ge=0, lt=NO_STREAM, description="its stream ID, by which the PV-IOMMU knows it; unique")
    ]
    sbdf: (
        Annotated[
            str,
            text_like(
                _SBDF,
                _SBDF_RULE,
                "its PCI address, if that is to be fixed; else the guest's driver tells it to the PV-IOMMU",
            ),
        ]
        | None
    ) = None
    reserved: tuple[ReservedSection, ...] = ()
    smmu: Annotated[str, Meta(description="name of the SMMU that it is behind, instead of the PV-IOMMU")] | None = None
    stream_id: (
        Annotated[
            int, Meta(ge=0, lt=1 << SID_BITS, description="with smmu: its StreamID there; unique behind that SMMU")
        ]
        | None
    ) = None
    ats: Annotated[bool, Meta(description="with smmu: whether it has ATS, and a cache of its own for translations")] = (
        False
    )
    pri: Annotated[bool, Meta(description="with ats: whether it asks for pages that are not mapped, and waits")] = False
    pasid_bits: Annotated[
        int,
        Meta(ge=0, le=MAX_PASID_BITS, description="with smmu: width of the PASIDs of its requests; 0: they have none"),
    ] = 0
    options: Any = None
    """those of its kind, an :class:`.endpoints.options.Options`, or None for their defaults. They are no table of their
    own in a file, but keys beside the others."""

    def fixed_sbdf(self) -> int | None:
        """The fixed binding as a number. Raises :class:`ValueError`."""
        if self.sbdf is None:
            return None
        match = _SBDF.fullmatch(self.sbdf)
        if match is None:
            raise ValueError(f"endpoint {self.name}: sbdf {self.sbdf!r} must be {_SBDF_RULE}")
        from .interfaces.pv.bindings import sbdf_of  # few topologies fix a binding

        segment, bus, device, function = match.groups()
        sbdf = sbdf_of(int(segment or "0", 16), int(bus, 16), int(device, 16) << 3 | int(function))
        if sbdf == SBDF_UNBOUND:
            raise ValueError(
                f"endpoint {self.name}: sbdf {self.sbdf!r} must not be {SBDF_UNBOUND:#x}, which means unbound"
            )
        return sbdf


class Topology(_Section, frozen=True):
    """A pviommu topology: the functions of one virtual machine."""

    iommu: IommuSection = msgspec.field(default_factory=IommuSection)
    endpoint: Annotated[tuple[EndpointSection, ...], Meta(max_length=MAX_ENDPOINTS)] = ()
    smmu: Annotated[tuple[SmmuSection, ...], Meta(max_length=MAX_SMMUS)] = ()
    msi: Annotated[tuple[MsiSection, ...], Meta(max_length=MAX_WINDOWS)] = (X86_WINDOW,)

    def names(self) -> list[str]:
        """Of all functions, the PV-IOMMU first."""
        return list(self.kinds())

    def kinds(self) -> dict[str, str]:
        """Of all functions by name: ``iommu``, ``smmuv3``, or the kind of endpoint."""
        smmus = {entry.name: "smmuv3" for entry in self.smmu}
        return {self.iommu.name: "iommu"} | smmus | {entry.name: entry.kind for entry in self.endpoint}

    def streams_behind(self, smmu: str) -> dict[int, int]:
        """StreamIDs by stream, of the endpoints behind an SMMU."""
        behind = (entry for entry in self.endpoint if entry.smmu == smmu)
        return {entry.stream: entry.stream_id for entry in behind if entry.stream_id is not None}

    def _check_smmus(self) -> None:
        names = {self.iommu.name}
        for number, section in enumerate(self.smmu):
            at = ("smmu", number, "name")
            if section.name in names:
                raise WrongValueError(at, f"name {section.name!r}: used twice, but names must be unique")
            names.add(section.name)
            if section.priq_bits and not section.ats:
                text = f"smmu {section.name}: priq-bits {section.priq_bits}: must be 0 without ats"
                raise WrongValueError(("smmu", number, "priq-bits"), text)
        known = {section.name: section for section in self.smmu}
        taken: dict[tuple[str, int], str] = {}
        for number, entry in enumerate(self.endpoint):
            place, who = ("endpoint", number), f"endpoint {entry.name}"
            if entry.smmu is None:
                if entry.stream_id is not None:
                    raise WrongValueError((*place, "stream-id"), f"{who}: stream-id is for endpoints with smmu")
                for key, is_set in (("ats", entry.ats), ("pri", entry.pri), ("pasid-bits", entry.pasid_bits)):
                    if is_set:
                        raise WrongValueError((*place, key), f"{who}: {key} is for endpoints with smmu")
                continue
            if entry.smmu not in known:
                text = (
                    f"{who}: smmu {entry.smmu!r}: must be one of {', '.join(known)}"
                    if known
                    else (f"{who}: smmu {entry.smmu!r}: there is no [[smmu]]")
                )
                raise WrongValueError((*place, "smmu"), text)
            if entry.stream_id is None:
                raise WrongValueError((*place, "smmu"), f"{who}: behind an SMMU it needs a stream-id")
            other = taken.setdefault((entry.smmu, entry.stream_id), entry.name)
            if other != entry.name:
                text = f"{who}: stream-id {entry.stream_id} is that of {other}, but they must be unique"
                raise WrongValueError((*place, "stream-id"), text)
            if entry.ats and not known[entry.smmu].ats:
                raise WrongValueError((*place, "ats"), f"{who}: ats true: {entry.smmu} has no ats")
            if entry.pasid_bits > known[entry.smmu].ssid_bits:
                text = f"{who}: pasid-bits {entry.pasid_bits}: {entry.smmu} has ssid-bits {known[entry.smmu].ssid_bits}"
                raise WrongValueError((*place, "pasid-bits"), text)
            if entry.pri and not entry.ats:
                raise WrongValueError((*place, "pri"), f"{who}: pri true: it has no ats")
            if entry.pri and not known[entry.smmu].priq_bits:
                raise WrongValueError((*place, "pri"), f"{who}: pri true: {entry.smmu} has no priq-bits")
            for key, value in (("sbdf", entry.sbdf), ("reserved", entry.reserved)):
                if value:
                    raise WrongValueError((*place, key), f"{who}: {key} is for endpoints behind the PV-IOMMU")

    def check(self) -> None:
        """Raise :class:`ValueError` for what the types alone do not exclude."""
        names = {self.iommu.name, *(section.name for section in self.smmu)}
        streams: dict[int, str] = {}
        places: dict[int, str] = {}
        if not _NAME.fullmatch(self.iommu.name):
            raise WrongValueError(("iommu", "name"), f"name {self.iommu.name!r}: must be {_NAME_RULE}")
        for number, entry in enumerate(self.endpoint):
            at = ("endpoint", number)
            who = f"endpoint {entry.name}"
            if not _NAME.fullmatch(entry.name):
                raise WrongValueError((*at, "name"), f"name {entry.name!r}: must be {_NAME_RULE}")
            if entry.name in names:
                raise WrongValueError((*at, "name"), f"name {entry.name!r}: used twice, but names must be unique")
            names.add(entry.name)
            if entry.kind not in ENDPOINTS:
                raise WrongValueError(
                    (*at, "kind"), f"{who}: kind {entry.kind!r}: must be one of {', '.join(ENDPOINTS)}"
                )
            if (other := streams.setdefault(entry.stream, entry.name)) != entry.name:
                raise WrongValueError(
                    (*at, "stream"), f"{who}: stream {entry.stream} is that of {other}, but streams must be unique"
                )
            try:
                sbdf = entry.fixed_sbdf()
            except ValueError as error:
                raise WrongValueError((*at, "sbdf"), str(error)) from error
            if sbdf is not None and places.setdefault(sbdf, entry.name) != entry.name:
                raise WrongValueError((*at, "sbdf"), f"{who}: sbdf {entry.sbdf} is that of {places[sbdf]}")
        self._check_smmus()
        self._check_msi()

    def _check_msi(self) -> None:
        taken: list[ReservedFrames] = []
        for number, section in enumerate(self.msi):
            try:
                region = section.region()
                for other in taken:
                    if other.first <= region.last and region.first <= other.last:
                        raise ValueError(
                            f"msi: start {section.start:#x} size {section.size:#x} overlaps another window,"
                            f" from {other.first << PAGE_SHIFT:#x} on"
                        )
            except ValueError as error:
                raise WrongValueError(("msi", number, "start"), str(error)) from error
            taken.append(region)

    def windows(self) -> tuple[ReservedFrames, ...]:
        """Where writes are interrupts, as frames: reserved in every domain of the machine."""
        return tuple(section.region() for section in self.msi)

    def with_options(self, document: dict[str, Any]) -> Self:
        """The same with the options of its endpoints as their kinds' types, from the document that it was read from.

        Raises :class:`.documents.WrongValueError`.
        """
        entries = []
        for number, entry in enumerate(self.endpoint):
            if not entry.options and entry.kind not in WITH_OPTIONS:  # its class is not needed, and slow to import
                entries.append(msgspec.structs.replace(entry, options=None))
                continue
            kind = endpoint_class(entry.kind).OPTIONS
            known = [*_ENDPOINT_KEYS, *(field.encode_name for field in msgspec.structs.fields(kind))]
            for key in entry.options:
                if key not in known:
                    text = f"endpoint[{number}]: unknown key {key}; known are {', '.join(known)}"
                    raise WrongValueError(("endpoint", number, key), text)
            options = documents.convert(entry.options, kind, document, ("endpoint", number))
            entries.append(msgspec.structs.replace(entry, options=options))
        made = msgspec.structs.replace(self, endpoint=tuple(entries))
        made.check_options()
        return made

    def check_options(self) -> None:
        """Raise :class:`.documents.WrongValueError` for options of endpoints that do not fit each other."""
        every = {entry.name: entry.options for entry in self.endpoint}
        for number, entry in enumerate(self.endpoint):
            if entry.options is not None:
                try:
                    entry.options.check(entry.name, every)
                except ValueError as error:
                    raise WrongValueError(("endpoint", number), f"endpoint {entry.name}: {error}") from error

    def changed(
        self, contexts: int | None = None, pool_pages: int | None = None, msi: Sequence[MsiSection] = ()
    ) -> Self:
        """The same with other limits and MSI windows, where given. Raises :class:`ValueError`."""
        given = {"contexts": contexts, "pool_pages": pool_pages}
        changes = {name: value for name, value in given.items() if value is not None}
        topology = msgspec.structs.replace(self, iommu=msgspec.structs.replace(self.iommu, **changes))
        if len(msi) > MAX_WINDOWS:
            raise ValueError(f"{len(msi)} MSI windows: at most {MAX_WINDOWS}, the capability area lists them")
        if msi:
            topology = msgspec.structs.replace(topology, msi=tuple(msi))
            topology._check_msi()
        topology.iommu_config()
        return topology

    def iommu_config(self) -> IommuConfig:
        """What the PV-IOMMU is built with. Raises :class:`ValueError`."""
        entry = self.iommu
        engine = EngineConfig(pool_pages=entry.pool_pages, aperture_bits=entry.aperture_bits, reserved=self.windows())
        behind = [endpoint for endpoint in self.endpoint if endpoint.smmu is None]
        fixed = {endpoint.stream: endpoint.fixed_sbdf() for endpoint in behind}
        return IommuConfig(
            instance=entry.instance,
            engine=engine,
            max_contexts=entry.contexts,
            default_policy=DefaultPolicy(entry.default_policy),
            max_nr_pages=entry.max_pages_per_op,
            rings=entry.rings,
            streams=tuple(endpoint.stream for endpoint in behind),
            fixed_bindings={stream: sbdf for stream, sbdf in fixed.items() if sbdf is not None},
            reserved={
                endpoint.stream: tuple(entry.region(endpoint.name) for entry in endpoint.reserved)
                for endpoint in behind
                if endpoint.reserved
            },
            allowed=entry.allowed,
            remote_cmd=entry.remote_cmd,
            guest_tables=entry.guest_tables,
            identity=Identity(entry.vendor_id, entry.device_id, abi.IOMMU_CLASS),
        )


_ENDPOINT_KEYS = [field.encode_name for field in msgspec.structs.fields(EndpointSection) if field.name != "options"]


def _apart(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what may be options of an endpoint in a table of their own."""
    entries = document.get("endpoint")
    if not isinstance(entries, list):
        return document
    return {**document, "endpoint": [_entry_apart(entry) for entry in entries]}


def _entry_apart(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    options = {key: value for key, value in entry.items() if key not in _ENDPOINT_KEYS}
    return {**{key: value for key, value in entry.items() if key in _ENDPOINT_KEYS}, "options": options}


def find(given: Path) -> Path:
    """The file that is meant: ``given`` if it is a file, else the shipped topology of that name, else ``given``."""
    return given if os.path.isfile(given) else resources.topologies().get(str(given), given)


def load(given: Path) -> Topology:
    """Read a topology file, or a shipped one by its name. Raises :class:`TopologyError`."""
    path = find(given)
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "" if given.suffix or given.parent.name else f"; shipped are {', '.join(resources.topologies())}"
        raise TopologyError(f"cannot read topology {path}: {error.strerror}{hint}") from error
    try:
        document = msgspec.toml.decode(data)
        topology = documents.convert(_apart(document), Topology)
        topology.check()
        topology = topology.with_options(document)
        topology.iommu_config()
    except WrongValueError as error:
        line = toml_places.line_of(data.decode(), error.place)
        raise TopologyError(f"topology {path}: {_line(line)}{error}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise TopologyError(f"topology {path}: {error}") from error
    return topology


def _line(number: int | None) -> str:
    return "" if number is None else f"line {number}: "


def schema() -> dict[str, Any]:
    """The JSON Schema of a topology file."""
    made = documents.schema(Topology, "pviommu topology")
    entry = made["$defs"]["EndpointSection"]
    del entry["properties"]["options"]
    of_kinds = [_schema_of_options(kind) for kind in ENDPOINTS]
    entry["allOf"] = [options for options in of_kinds if options]
    del entry["additionalProperties"]  # which would not see those of the kinds
    entry["unevaluatedProperties"] = False
    return made


def _schema_of_options(kind: str) -> dict[str, Any] | None:
    """What holds for an endpoint of ``kind`` besides what holds for all, if it has options."""
    made = msgspec.json.schema(endpoint_class(kind).OPTIONS)
    [definition] = made["$defs"].values()
    if not definition["properties"]:
        return None
    rules = {key: definition[key] for key in ("properties", "required")}
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": rules}
