"""The probes: where in the device a rule may look on or step in, with what it can be told there and what it can do.

Nothing here touches the device: it is what ``pviommu faults list`` prints and what scenarios are checked against. A
test proves that it agrees with the probes that the code has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import NamedTuple

__all__ = [
    "ANYWHERE",
    "ARGUMENTS",
    "BITS",
    "PROBES",
    "Argument",
    "Kind",
    "Nature",
    "Place",
    "Probe",
    "marked",
    "places",
]


class Kind(Enum):
    """What an argument is, and so how a condition on it reads."""

    NUMBER = "a number or a range"
    SPAN = "a number or a range, which what is asked for overlaps"
    NAME = "a name, with wildcards as a shell has them"


class Nature(Enum):
    """Whether a correct IOMMU may do what an action does."""

    CONFORMING = "conforming"
    ADVERSARIAL = "adversarial"


class Argument(NamedTuple):
    """What a condition (``where``) may ask for."""

    kind: Kind
    text: str


ARGUMENTS = {
    "function": Argument(Kind.NAME, "name of the function, as in the topology"),
    "ctx": Argument(Kind.NUMBER, "context"),
    "dfn": Argument(Kind.SPAN, "device frames of 4 KiB"),
    "gfn": Argument(Kind.SPAN, "guest frames of 4 KiB"),
    "nr": Argument(Kind.NUMBER, "pages"),
    "flags": Argument(Kind.NUMBER, "flags of the structure"),
    "iova": Argument(Kind.SPAN, "device addresses in bytes"),
    "gpa": Argument(Kind.SPAN, "guest physical addresses in bytes"),
    "length": Argument(Kind.NUMBER, "bytes"),
    "access": Argument(Kind.NAME, "READ or WRITE"),
    "stream": Argument(Kind.NUMBER, "stream of the endpoint"),
    "device": Argument(Kind.NAME, "PCI address that the guest bound the stream to, as 0000:00:05.0"),
    "op": Argument(Kind.NUMBER, "number of the operation in the slot's header, or of an SMMU's command"),
    "class": Argument(Kind.NUMBER, "class of the slot"),
    "ring": Argument(Kind.NUMBER, "ring"),
    "index": Argument(Kind.NUMBER, "slots of the ring completed so far, modulo 2**32"),
    "count": Argument(Kind.NUMBER, "how many"),
    "register": Argument(Kind.NAME, "name of the register; of an access that is none, empty"),
    "offset": Argument(Kind.NUMBER, "byte within the register BAR"),
    "value": Argument(Kind.NUMBER, "what is written"),
    "vector": Argument(Kind.NUMBER, "MSI-X vector"),
    "reason": Argument(Kind.NAME, "name of an EventReason"),
    "message": Argument(Kind.NAME, "name of the command, as DMA_MAP"),
    "region": Argument(Kind.NUMBER, "region: BARs 0 to 5, 7 the configuration space"),
    "size": Argument(Kind.NUMBER, "bytes"),
    "command": Argument(Kind.NAME, "name of an SMMU's command, as TLBI_NH_VA"),
    "sid": Argument(Kind.NUMBER, "StreamID"),
    "structure": Argument(Kind.NAME, "STE, CD, or the first level of a table of them, L1STD or L1CD"),
    "event": Argument(Kind.NAME, "type of an SMMU's event, as F_TRANSLATION"),
}
"""All that a rule may be told, by name."""

BITS = {
    "ctx": 16,
    "dfn": 52,
    "gfn": 52,
    "nr": 32,
    "stream": 32,
    "gpa": 64,
    "iova": 64,
    "length": 64,
    "reason": 16,
    "access": 8,
    "class": 8,
    "op": 8,
    "flags": 16,
    "sid": 32,
    "event": 8,
}
"""Widths of what ``corrupt`` may change by name, but for operations, whose structures have widths of their own."""

ANYWHERE = {
    "log": Nature.CONFORMING,
    "assert": Nature.CONFORMING,
    "resume": Nature.CONFORMING,
    "interrupt": Nature.CONFORMING,
    "disconnect": Nature.ADVERSARIAL,
    "crash": Nature.ADVERSARIAL,
    "reset": Nature.ADVERSARIAL,
}
"""Actions that are possible at every place: they leave the call that is passing alone. A spurious interrupt is harmless
by PCI's rules; a client that is hung up on, a server that dies and a reset that nobody asked for are no IOMMU's.
"""


@dataclass(frozen=True)
class Place:
    """One side of a probe. A name is ``PROBE.SIDE``."""

    probe: Probe
    side: str
    actions: dict[str, Nature] = field(hash=False)

    @cached_property
    def name(self) -> str:
        return f"{self.probe.name}.{self.side}"


@dataclass(frozen=True)
class Probe:
    """A call that rules may meet before it (``pre``), in its stead (``apply``) and after it (``post``)."""

    name: str
    text: str
    arguments: tuple[str, ...]
    """what a condition may ask for, names of :data:`ARGUMENTS`; ``function`` everywhere"""
    sides: tuple[tuple[str, str], ...]
    """of each side the actions besides those of :data:`ANYWHERE`, those with ``!`` adversarial"""
    errors: tuple[str, ...] = ()
    """what a correct device may answer here, whatever was asked for"""
    refusals: tuple[str, ...] = ()
    """what it answers only if the request deserves it; as an answer to another one it is adversarial"""
    fields: tuple[str, ...] = ()
    """what ``corrupt`` may change by name, before or after"""
    payload: bool = False
    """whether there are bytes as well, which ``corrupt`` names by their offset; without :attr:`fields` there are"""
    native: tuple[str, ...] = ()
    """what the native core leaves to Python while a rule is here: map, unmap, translate, copy"""

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(Place(self, side, _natures(actions)) for side, actions in self.sides)


def marked(name: str, nature: Nature) -> str:
    """As lists have it: with ``!`` if it is adversarial."""
    return name if nature is Nature.CONFORMING else f"{name}!"


def _natures(actions: str) -> dict[str, Nature]:
    named = {
        action.rstrip("!"): Nature.ADVERSARIAL if action.endswith("!") else Nature.CONFORMING
        for action in actions.split()
    }
    return {**named, **ANYWHERE}


_HOLDS = "delay suspend wait hang!"
_BEFORE = f"fail status! corrupt! {_HOLDS} reorder"
_AFTER = f"status! corrupt! {_HOLDS} reorder"
_INSTEAD = "lie! duplicate!"


def _operation(
    name: str,
    text: str,
    arguments: str,
    errors: str = "",
    refusals: str = "EINVAL",
    instead: str = _INSTEAD,
    before: str = _BEFORE,
    **more: tuple[str, ...],
) -> Probe:
    """An operation that a slot carries."""
    return Probe(
        f"op.{name}",
        text,
        (*arguments.split(), "function"),
        (("pre", before), ("apply", instead), ("post", _AFTER)),
        tuple(errors.split()),
        (*refusals.split(), "EIO"),
        tuple(arguments.split()),
        payload=True,
        **more,
    )


_PAGES = "EINVAL ERANGE E2BIG EADDRNOTAVAIL ENOENT EOPNOTSUPP"
_CONTEXTS = "EINVAL ENOENT EBUSY"

_OPERATIONS = (
    _operation("query_capabilities", "QUERY_CAPABILITIES of either profile", "ctx flags"),
    _operation("init", "INIT of xen-v7", "", "ENOMEM", "E2BIG EACCES EINVAL"),
    _operation("alloc_context", "ALLOC_CONTEXT", "ctx flags", "ENOMEM ENOSPC"),
    _operation("free_context", "FREE_CONTEXT", "ctx flags", "", _CONTEXTS),
    _operation("reattach_device", "REATTACH_DEVICE", "ctx device", "ENOMEM", f"{_CONTEXTS} ENODEV EOPNOTSUPP"),
    _operation(
        "map_pages",
        "MAP_PAGES",
        "ctx dfn gfn nr flags",
        "ENOMEM",
        f"{_PAGES} EPERM EADDRINUSE",
        f"partial {_INSTEAD}",
        f"{_BEFORE} bandwidth",
        native=("map",),
    ),
    _operation(
        "unmap_pages",
        "UNMAP_PAGES",
        "ctx dfn nr",
        "",
        _PAGES,
        f"partial! {_INSTEAD}",
        f"{_BEFORE} bandwidth",
        native=("unmap",),
    ),
    _operation("lookup_page", "LOOKUP_PAGE of xen-2024", "ctx dfn gfn", "", "EINVAL ENOENT ERANGE EOPNOTSUPP"),
    _operation("remote_cmd", "REMOTE_CMD of xen-v7", "gpa", "EFAULT", "EPERM ENOENT EINVAL"),
    _operation("bind", "BIND", "device stream", "", "EINVAL ENODEV EEXIST EPERM"),
    _operation("unbind", "UNBIND", "device", "", "EINVAL ENOENT EPERM"),
    _operation("query_endpoint", "QUERY_ENDPOINT", "device stream ctx", "", "EINVAL ENOENT"),
    _operation("query_usage", "QUERY_USAGE", ""),
    _operation(
        "batch", "BATCH: an array of maps or unmaps", "ctx gpa count flags", "EFAULT", "EINVAL EPERM EOPNOTSUPP"
    ),
    _operation("call", "CALL: an operation in guest memory", "gpa op", "EFAULT"),
    _operation("reserve", "RESERVE: pool pages for a context", "ctx count", "ENOMEM", "EINVAL EPERM EOPNOTSUPP"),
    _operation("block", "BLOCK", "device", "", "EINVAL ENOENT"),
    _operation(
        *("alloc_tables", "ALLOC_TABLES: a context whose tables the guest owns", "gpa flags"),
        *("ENOSPC", "EINVAL EFAULT EPERM ENODEV EOPNOTSUPP"),
    ),
    _operation("flush", "FLUSH: DMA by such tables ends", "ctx", "", "EINVAL EOPNOTSUPP"),
)

_CORE = (
    Probe(
        "table.map",
        "a piece of a map enters the page table, whichever operation brought it",
        ("ctx", "dfn", "gfn", "nr", "function"),
        (("pre", "fail corrupt!"), ("apply", f"partial {_INSTEAD}"), ("post", "")),
        ("POOL_EXHAUSTED",),
        ("NO_DOMAIN", "NOT_PAGING", "GUEST_TABLES", "OUT_OF_APERTURE", "NOT_RAM", "RESERVED", "MAPPED"),
        ("ctx", "dfn", "gfn", "nr"),
        native=("map",),
    ),
    Probe(
        "table.unmap",
        "a piece of an unmap leaves the page table",
        ("ctx", "dfn", "nr", "function"),
        (("pre", "fail corrupt!"), ("apply", f"partial! {_INSTEAD}"), ("post", "")),
        (),
        ("NO_DOMAIN", "NOT_PAGING", "GUEST_TABLES", "OUT_OF_APERTURE", "RESERVED", "NOT_MAPPED"),
        ("ctx", "dfn", "nr"),
        native=("unmap",),
    ),
    Probe(
        "pool.reserve",
        "pool pages are set aside for a context",
        ("ctx", "count", "function"),
        (("pre", "fail"), ("apply", "lie!"), ("post", "")),
        ("POOL_EXHAUSTED",),
        ("NO_DOMAIN", "NOT_PAGING", "GUEST_TABLES"),
    ),
    Probe(
        "context.alloc",
        "a context is made",
        ("flags", "function"),
        (("pre", "fail"), ("post", "")),
        ("POOL_EXHAUSTED", "NO_FREE_CONTEXT"),
    ),
    Probe(
        "context.free",
        "a context goes",
        ("ctx", "flags", "function"),
        (("pre", "fail"), ("apply", "lie!"), ("post", "")),
        (),
        ("DEFAULT_CONTEXT", "NO_DOMAIN", "ENDPOINTS_ATTACHED", "NESTED_ATTACHED"),
    ),
    Probe(
        "context.attach",
        "an endpoint moves to a context",
        ("stream", "device", "ctx", "function"),
        (("pre", "fail corrupt!"), ("apply", "lie!"), ("post", "")),
        ("POOL_EXHAUSTED",),
        ("NO_ENDPOINT", "NO_DOMAIN", "RESERVED_CONFLICT"),
        ("stream", "ctx"),
    ),
    Probe(
        "context.hold",
        "an endpoint is taken out of its context and blocked",
        ("stream", "device", "function"),
        (("pre", ""), ("apply", "lie!"), ("post", "")),
    ),
    Probe(
        "iotlb.lookup",
        "a translation is looked for in the IOTLB",
        ("ctx", "dfn", "function"),
        (("pre", "miss"), ("post", "corrupt!")),
        fields=("gfn",),
        native=("unmap", "translate"),
    ),
    Probe(
        "iotlb.fill",
        "a translation that the tables gave enters the IOTLB",
        ("ctx", "dfn", "gfn", "nr", "function"),
        (("pre", "corrupt!"), ("apply", "drop duplicate"), ("post", "")),
        fields=("gfn", "nr"),
        native=("unmap", "translate"),
    ),
    Probe(
        "iotlb.invalidate",
        "pages leave the IOTLB; dropped, what is cached of them stays",
        ("ctx", "dfn", "nr", "function"),
        (("pre", ""), ("apply", "drop! duplicate"), ("post", "")),
        native=("unmap", "translate"),
    ),
)

_FAULTS = ("NOT_MAPPED", "PERMISSION", "OUT_OF_APERTURE", "RESERVED", "BLOCKED", "NOT_RAM")
_DMA = ("function", "stream", "device", "ctx", "iova", "length", "access")

_DMA_PROBES = (
    Probe(
        "dma.translate",
        "a request of an endpoint is translated; an endpoint that is held asks again in each turn",
        _DMA,
        (
            ("pre", "fail delay suspend wait hang! bandwidth"),
            ("post", "fail corrupt! stale! delay! suspend! wait! hang!"),
        ),
        _FAULTS,
        fields=("gpa",),
    ),
    Probe(
        "dma.read",
        "the bytes of a request are read",
        ("function", "iova", "length", "gpa"),
        (("pre", "fail"), ("apply", "lie!"), ("post", "corrupt!")),
        (),
        ("NOT_RAM", "ABORTED"),
    ),
    Probe(
        "dma.write",
        "the bytes of a request are written; partial: the first k bytes, then it is refused",
        ("function", "iova", "length", "gpa"),
        (("pre", "fail corrupt!"), ("apply", "lie! duplicate! partial!"), ("post", "")),
        (),
        ("NOT_RAM", "ABORTED"),
    ),
)

_RING_PROBES = (
    Probe(
        "ring.fetch",
        "slots are copied out of a ring",
        ("function", "ring", "index", "count"),
        (("pre", ""), ("post", "corrupt! truncate")),
        native=("map", "unmap"),
    ),
    Probe(
        "ring.decode",
        "a slot begins, whatever it carries",
        ("function", "class", "op", "flags"),
        (("pre", _BEFORE), ("apply", _INSTEAD), ("post", _AFTER)),
        (),
        ("EINVAL", "EOPNOTSUPP", "EIO"),
        ("class", "op", "flags"),
        True,
        ("map", "unmap"),
    ),
    Probe(
        "ring.complete",
        "completed slots are told of; dropped, the index that the guest sees stays until the next one",
        ("function", "ring", "index", "count"),
        (("pre", "delay suspend wait hang!"), ("apply", "drop! duplicate!"), ("post", "")),
        native=("map", "unmap"),
    ),
)

_TOLD = ("function", "reason", "stream", "device", "ctx", "iova", "length", "access")

_REPORTS = (
    Probe(
        "fault.record",
        "refused DMA is recorded, to be told in the log and in the event ring",
        _TOLD,
        (("pre", "delay suspend wait"), ("apply", "drop! duplicate!"), ("post", "")),
    ),
    Probe(
        "fault.deliver",
        "an event goes into the event ring; overflow: as if that were full",
        _TOLD,
        (("pre", "corrupt! delay suspend wait"), ("apply", "drop! duplicate! overflow"), ("post", "")),
        fields=("reason", "stream", "iova", "length", "ctx", "access"),
    ),
    Probe(
        "interrupt",
        "an interrupt is raised; dropped it is lost, duplicated it comes twice",
        ("function", "vector"),
        (("pre", "delay suspend wait"), ("apply", "drop! duplicate"), ("post", "")),
    ),
    Probe(
        "register.read",
        "a trapped register is read",
        ("function", "register", "offset", "size"),
        (("pre", ""), ("apply", "lie!"), ("post", "corrupt!")),
    ),
    Probe(
        "register.write",
        "a trapped register is written",
        ("function", "register", "offset", "size", "value"),
        (("pre", "corrupt!"), ("apply", "drop! duplicate!"), ("post", "")),
    ),
    Probe(
        "reset",
        "a function is reset, by its client, by its guest or because its client is gone",
        ("function",),
        (("pre", ""), ("apply", "drop! duplicate"), ("post", "")),
    ),
    Probe(
        "endpoint.work",
        "an endpoint does a step of what its guest has queued; failing, it stops until its reset",
        ("function", "stream", "device"),
        (("pre", "fail delay suspend wait hang!"), ("post", "")),
        ("FAILED",),
    ),
)

_SMMU = (
    Probe(
        "smmu.command",
        "an SMMU carries out a command; dropped, it counts as complete, and held, those behind it wait too",
        ("function", "command", "op", "sid", "iova"),
        (("pre", "fail! corrupt! delay suspend wait hang!"), ("apply", "drop! duplicate"), ("post", "")),
        (),
        ("CERROR_ILL",),
        payload=True,
    ),
    Probe(
        "smmu.fetch",
        "an SMMU reads an STE, a CD or a first level of a table of them; fail: an external abort",
        ("function", "structure", "gpa", "length"),
        (("pre", "fail"), ("post", "corrupt!")),
        ("ABORT",),
        payload=True,
    ),
    Probe(
        "smmu.event",
        "an SMMU writes an event; overflow: as if the queue were full",
        ("function", "event", "sid", "iova"),
        (("pre", "corrupt! delay suspend wait"), ("apply", "drop! duplicate! overflow"), ("post", "")),
        fields=("event", "sid", "iova"),
    ),
    Probe(
        "smmu.invalidated",
        "an endpoint's ATC answers an ATC_INV, which it has carried out; dropped, CMD_SYNC waits until its time is up",
        ("function", "sid"),
        (("pre", "delay suspend wait hang"), ("apply", "drop"), ("post", "")),
    ),
    Probe(
        "smmu.page-request",
        "an SMMU writes a page request of an endpoint; overflow: as if the queue were full",
        ("function", "sid", "iova"),
        (("apply", "drop! overflow"), ("post", "")),
    ),
    Probe(
        "smmu.response",
        "an endpoint gets the answer to a group of page requests; dropped, it waits for it until its reset",
        ("function", "sid"),
        (("pre", "delay suspend wait"), ("apply", "drop! duplicate!"), ("post", "")),
    ),
)

_FRAME = ("function", "stream", "device", "length")
_ON_ITS_WAY = "corrupt truncate unplug delay suspend wait bandwidth reorder"
_LINKS = (
    Probe(
        "link.send",
        "a frame of a network card enters its link; EBADFD: the link is gone for good, as a tap that is deleted",
        _FRAME,
        (("pre", f"fail {_ON_ITS_WAY}"), ("apply", "drop duplicate"), ("post", "")),
        ("ENOBUFS", "EAGAIN", "EIO", "EBADFD"),
    ),
    Probe(
        "link.receive",
        "a frame leaves the link of a network card, which has not looked at it yet",
        _FRAME,
        (("pre", _ON_ITS_WAY), ("apply", "drop duplicate"), ("post", "")),
    ),
)
"""What becomes of frames is no affair of an IOMMU: a network may do all of this."""


def _message(name: str, text: str, arguments: str = "", lie: str = "", errors: tuple[str, ...] = ()) -> Probe:
    """A command of a client."""
    return Probe(
        f"message.{name}",
        text,
        ("function", "message", "length", "count", *arguments.split()),
        (
            ("pre", "fail status! corrupt! truncate! withhold! delay suspend wait hang! bandwidth"),
            ("apply", f"drop! duplicate! {lie}"),
            ("post", "status! corrupt! truncate! withhold! drop! delay suspend wait hang!"),
        ),
        errors,
        ("EINVAL", "EIO", "EBUSY", "EPERM"),
    )


_ACCESS = "region offset size"
_TRANSPORT = (
    Probe(
        "socket.accept",
        "a client that waits at a socket is accepted",
        ("function",),
        (("pre", "fail"), ("post", "")),
        ("EMFILE", "ENFILE", "ENOMEM"),
    ),
    Probe(
        "socket.receive",
        "bytes and descriptors of a client are read; fail: the client seems to be gone",
        ("function", "length", "count"),
        (("pre", "fail! delay suspend wait hang! slice"), ("post", "corrupt! truncate! withhold!")),
        (),
        ("ECONNRESET",),
    ),
    Probe(
        "socket.send",
        "bytes and descriptors are sent to a client; fail: the client is hung up on",
        ("function", "length", "count"),
        (
            ("pre", "fail! corrupt! delay suspend wait hang! bandwidth slice"),
            ("apply", "drop! truncate!"),
            ("post", ""),
        ),
        (),
        ("ECONNRESET", "EPIPE"),
    ),
    _message("version", "a session is negotiated"),
    _message("dma_map", "guest memory comes", "gpa", "lie!", ("ENOMEM", "ENOSPC")),
    _message("dma_unmap", "guest memory goes", "gpa", "lie!"),
    _message("device_get_info", "the client asks what the device is"),
    _message("device_get_region_info", "the client asks for a region; withheld after it: it cannot be mapped"),
    _message("device_get_region_io_fds", "the client asks for descriptors of parts of a region"),
    _message("device_get_irq_info", "the client asks for an interrupt index"),
    _message("device_set_irqs", "the client sets interrupts up", "", "lie!"),
    _message("region_read", "a trapped read", _ACCESS),
    _message("region_write", "a trapped write", _ACCESS, "lie!"),
    _message("device_reset", "the client resets the function", "", "lie!"),
    _message("region_write_multi", "several trapped writes at once", "", "lie!"),
)


def _place(name: str, text: str, errors: str = "ENOMEM") -> Probe:
    """On the way through a request to /dev/iommu. What Linux runs short of there first comes first."""
    return Probe(f"iommufd.{name}", text, ("function",), (("pre", "fail"), ("post", "")), tuple(errors.split()))


_REQUESTS = (
    _place("file", "a file of /dev/iommu or /dev/vfio is opened, or gets a descriptor", "ENOMEM EMFILE ENFILE"),
    _place("copy_in", "a request copies from its program's memory", "EFAULT"),
    _place("copy_out", "a request copies to its program's memory", "EFAULT"),
    _place("object", "an object of an open /dev/iommu begins"),
    _place("area", "a mapping of an address space is noted, or cut in two"),
    _place("span", "IOVAs of an address space are reserved, or allowed"),
    _place("pin", "memory of a program is pinned", "ENOMEM EFAULT"),
    _place("table", "a page table of a device begins"),
    _place("leaves", "a mapping enters a page table of a device"),
    _place("attach", "a device's DMA is about to go through a page table"),
    _place("event", "a page request or an event is queued; failing, it is refused or lost"),
    _place("bitmap", "dirty bits need room: those that a program asks for, or of a mapping of type1 that notes them"),
    _place("interrupt", "what is given with interrupts of a VFIO device needs room"),
)

PROBES: dict[str, Probe] = {
    probe.name: probe
    for group in (_OPERATIONS, _CORE, _DMA_PROBES, _RING_PROBES, _REPORTS, _SMMU, _LINKS, _REQUESTS, _TRANSPORT)
    for probe in group
}
"""All of them, by name."""

_PLACES = tuple(place for probe in PROBES.values() for place in probe.places)


@lru_cache(256)
def places(pattern: str) -> tuple[Place, ...]:
    """Those whose name a shell's pattern fits."""
    return tuple(place for place in _PLACES if fnmatchcase(place.name, pattern))
