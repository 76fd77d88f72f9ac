"""What a guest must see: each profile's slots, errno values and OUT fields, written a second time, independently.

Nothing here comes from the device's own profiles, so a wrong errno there shows as a difference. The layouts are those
of the modules of :mod:`pviommu_abi`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol

from pviommu_abi import registers, slots, vendor, xen_2024, xen_v7
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import VendorOp
from pviommu_abi.xen_2024 import Xen2024Op
from pviommu_abi.xen_v7 import XenV7Op

from .model import Answer
from .operations import (
    Alloc,
    Attach,
    Batch,
    Bind,
    Block,
    Free,
    Lookup,
    Malformed,
    Map,
    Operation,
    SlotOperation,
    Unbind,
    Unmap,
)
from .settings import Setting

__all__ = ["ERRNO", "PROFILES", "UNTOUCHED", "Interface", "Seen", "Submission", "interface"]

UNTOUCHED = 0xAAAA
"""The value of OUT fields when they are submitted."""

_COMMON = {"NO_DOMAIN": Errno.EINVAL, "NOT_PAGING": Errno.EINVAL, "OUT_OF_APERTURE": Errno.ERANGE}
_CONTEXTS = {
    "DEFAULT_CONTEXT": Errno.EINVAL,
    "NO_DOMAIN": Errno.ENOENT,
    "ENDPOINTS_ATTACHED": Errno.EBUSY,
    "NO_FREE_CONTEXT": Errno.ENOSPC,
    "POOL_EXHAUSTED": Errno.ENOMEM,
}
_BINDINGS = {
    "bind": {"NO_ENDPOINT": Errno.ENODEV, "BOUND": Errno.EEXIST},
    "unbind": {"NOT_BOUND": Errno.ENOENT},
    "block": {"NOT_BOUND": Errno.ENOENT},
}
ERRNO: dict[str, dict[str, dict[str, Errno]]] = {
    "xen-2024": {
        "map": _COMMON
        | {
            "NO_ACCESS": Errno.EINVAL,
            "NOT_RAM": Errno.EPERM,
            "RESERVED": Errno.EADDRINUSE,
            "MAPPED": Errno.EADDRINUSE,
            "POOL_EXHAUSTED": Errno.ENOMEM,
        },
        "unmap": _COMMON | {"RESERVED": Errno.ENOENT, "NOT_MAPPED": Errno.ENOENT},
        "attach": _CONTEXTS | {"NO_ENDPOINT": Errno.ENOENT},
        "alloc": _CONTEXTS,
        "free": _CONTEXTS,
        **_BINDINGS,
    },
    "xen-v7": {
        "map": _COMMON
        | {
            "NO_ACCESS": Errno.EINVAL,
            "NOT_RAM": Errno.ENOENT,
            "RESERVED": Errno.EADDRNOTAVAIL,
            "MAPPED": Errno.EADDRINUSE,
            "POOL_EXHAUSTED": Errno.ENOMEM,
        },
        "unmap": _COMMON | {"RESERVED": Errno.EADDRNOTAVAIL, "NOT_MAPPED": Errno.ENOENT},
        "attach": _CONTEXTS | {"NO_ENDPOINT": Errno.ENODEV},
        "alloc": _CONTEXTS,
        "free": _CONTEXTS,
        **_BINDINGS,
    },
}
"""profile -> operation -> why the engine stopped -> errno."""
PROFILES = tuple(ERRNO)


class Submission(NamedTuple):
    """A slot to submit."""

    op_class: int
    op: int
    flags: int
    payload: bytes
    """48 bytes"""


class Seen(NamedTuple):
    """State that some answers contain."""

    usage: Callable[[], tuple[int, int, int, int]]
    bound: int
    contexts: Container[int]


def _bad(op_class: int, op: int, payload: bytes = b"", flags: int = 0, errno: int = Errno.EINVAL) -> Malformed:
    return Malformed(int(op_class), int(op), flags, payload.ljust(slots.PAYLOAD_SIZE, b"\0"), int(errno))


_MALFORMED = (
    _bad(0x55, 0),
    _bad(OpClass.VENDOR, VendorOp.QUERY_USAGE, flags=2),
    _bad(OpClass.VENDOR, VendorOp.QUERY_USAGE, bytes(47) + b"\1"),
    _bad(OpClass.VENDOR, 0x77, errno=Errno.EOPNOTSUPP),
)
_MAP_2024, _UNMAP_2024 = xen_2024.MapPages.STRUCT.pack, xen_2024.UnmapPages.STRUCT.pack
_MAP_V7, _UNMAP_V7 = xen_v7.V7MapPages.STRUCT.pack, xen_v7.V7UnmapPages.STRUCT.pack
_MSI_WINDOW = range(0xFEE00, 0xFEF00)


class Interface(Protocol):
    """A profile, as a guest sees it."""

    number: int
    """value of register PROFILE"""
    has_lookup: bool
    malformed: tuple[Malformed, ...]
    """slots that break a rule"""
    set_up: tuple[Submission, ...]
    """slots to submit first after the profile was selected"""

    def refuses(self, op: Operation) -> int:
        """The errno with which the profile refuses an operation before the engine is asked, or 0."""

    def submission(self, op: SlotOperation) -> Submission:
        """The slot of an operation. BATCH is not among them: the guest makes that itself."""

    def expected(self, op: SlotOperation, given: bytes, refused: int, outcome: Any, seen: Seen) -> tuple[int, bytes]:
        """Result and payload of a completed slot that was submitted with payload ``given``."""

    def errno(self, kind: str, answer: Answer) -> int:
        """The result of an operation of this kind: 0 or a negative errno."""


class _Common:
    """What both profiles share: the vendor operations, and errno values by table."""

    name: str
    number: int
    malformed: tuple[Malformed, ...]
    set_up: tuple[Submission, ...] = ()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def errno(self, kind: str, answer: Answer) -> int:
        stop = answer[1]
        return 0 if stop is None else -int(ERRNO[self.name][kind][stop])

    def own_submission(self, op: SlotOperation) -> Submission:
        match op:
            case Malformed():
                return Submission(op.op_class, op.op, op.flags, op.payload)
            case Bind():
                payload = vendor.Binding(0, 0, op.devfn, op.stream).pack()
                return Submission(OpClass.VENDOR, VendorOp.BIND, 0, _padded(payload))
            case Unbind():
                return Submission(OpClass.VENDOR, VendorOp.UNBIND, 0, _padded(vendor.Binding(0, 0, op.devfn).pack()))
            case Block():
                return Submission(OpClass.VENDOR, VendorOp.BLOCK, 0, _padded(vendor.Binding(0, 0, op.devfn).pack()))
        return Submission(OpClass.VENDOR, VendorOp.QUERY_USAGE, 0, bytes(slots.PAYLOAD_SIZE))

    def own_expected(
        self, op: SlotOperation, given: bytes, refused: int, outcome: Any, seen: Seen
    ) -> tuple[int, bytes]:
        if refused:
            return -refused, given
        match op:
            case Bind():
                return self.errno("bind", outcome), given
            case Unbind():
                return self.errno("unbind", outcome), given
            case Block():
                return self.errno("block", outcome), given
            case Batch():
                done = sum(answer[1] is None for answer in outcome.answers)
                return (0 if done == len(op.elements) else -Errno.EFAULT), _put(given, _BATCH_DONE, "I", done)
        contexts, used, total, mapped = seen.usage()
        return 0, _padded(vendor.Usage(contexts, seen.bound, used, total, mapped, 0).pack())


_BATCH_DONE = vendor.Batch.offset_of("done")
_NO_TABLE = ("NO_DOMAIN", "NOT_PAGING")


def _padded(record: bytes) -> bytes:
    return record.ljust(slots.PAYLOAD_SIZE, b"\0")


def _put(payload: bytes, offset: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return payload[:offset] + struct.pack(f"<{form}", value) + payload[offset + size :]


class Xen2024Interface(_Common):
    """The seven operations of June 2024."""

    name = "xen-2024"
    number: int = registers.Profile.XEN_2024
    has_lookup = True
    malformed: tuple[Malformed, ...] = (
        *_MALFORMED,
        _bad(OpClass.XEN_2024, 1),
        _bad(OpClass.XEN_2024, 0, b"\x63"),
        _bad(OpClass.XEN_V7, 3),
        _bad(OpClass.XEN_2024, 0, b"\2\0\0\0\2"),
        _bad(OpClass.XEN_2024, 0, b"\7" + bytes(31) + b"\1"),
    )

    def refuses(self, op: Operation) -> int:
        match op:
            case Map() if op.access & ~3:
                return Errno.EINVAL
            case Map() | Unmap() if op.nr > self.setting.max_nr_pages:
                return Errno.E2BIG
            case Malformed():
                return op.errno
        return 0

    def submission(self, op: SlotOperation) -> Submission:
        match op:
            case Map():
                record = _MAP_2024(Xen2024Op.MAP_PAGES, op.ctx, op.access, op.gfn, op.dfn, op.nr, UNTOUCHED)
            case Unmap():
                record = _UNMAP_2024(Xen2024Op.UNMAP_PAGES, op.ctx, 0, op.dfn, op.nr, UNTOUCHED)
            case Lookup():
                record = xen_2024.LookupPage(Xen2024Op.LOOKUP_PAGE, op.ctx, 0, UNTOUCHED, op.dfn).pack()
            case Alloc():
                record = xen_2024.PvIommuOp(Xen2024Op.ALLOC_CONTEXT, UNTOUCHED, int(op.clone)).pack()
            case Free():
                record = xen_2024.PvIommuOp(Xen2024Op.FREE_CONTEXT, op.ctx, int(op.reattach)).pack()
            case Attach():
                record = xen_2024.ReattachDevice(Xen2024Op.REATTACH_DEVICE, op.ctx, 0, 0, 0, op.devfn).pack()
            case _:
                return self.own_submission(op)
        return Submission(OpClass.XEN_2024, 0, 0, _padded(record))

    def expected(self, op: SlotOperation, given: bytes, refused: int, outcome: Any, seen: Seen) -> tuple[int, bytes]:
        if refused:
            return -refused, given
        match op:
            case Map() | Unmap():
                result = self.errno("map" if isinstance(op, Map) else "unmap", outcome)
                if outcome[1] in _NO_TABLE:
                    return result, given
                return result, _put(given, 28 if isinstance(op, Map) else 20, "I", outcome[0])
            case Lookup():
                if op.ctx and op.ctx not in seen.contexts:
                    return -Errno.EINVAL, given
                if isinstance(outcome, str) or not op.ctx:
                    return -Errno.ENOENT, given
                return 0, _put(given, 8, "Q", outcome[0])
            case Alloc():
                result = self.errno("alloc", outcome)
                return result, given if result else _put(given, 2, "H", outcome[0])
            case Free():
                return self.errno("free", outcome), given
            case Attach():
                return self.errno("attach", outcome), given
        return self.own_expected(op, given, refused, outcome, seen)


class XenV7Interface(_Common):
    """The structures of versions 4 to 7."""

    name = "xen-v7"
    number: int = registers.Profile.XEN_V7
    has_lookup = False
    malformed: tuple[Malformed, ...] = (
        *_MALFORMED,
        _bad(OpClass.XEN_2024, 0, b"\2"),
        _bad(OpClass.XEN_V7, 0x63, errno=Errno.EOPNOTSUPP),
        _bad(OpClass.XEN_V7, XenV7Op.ATTACH_PASID, errno=Errno.EOPNOTSUPP),
        _bad(OpClass.XEN_V7, XenV7Op.INIT, b"\1", errno=Errno.EACCES),
        _bad(OpClass.XEN_V7, XenV7Op.ALLOC_CONTEXT, b"\0\0\1"),
        _bad(OpClass.XEN_V7, XenV7Op.ALLOC_CONTEXT, b"\0\0\0\0\2"),
        _bad(OpClass.XEN_V7, XenV7Op.MAP_PAGES, xen_v7.V7MapPages(1, 0, 0, 0, 0x200, 3, 8192, 1, 5).pack()),
        _bad(OpClass.XEN_V7, XenV7Op.UNMAP_PAGES, xen_v7.V7UnmapPages(1, 0, 0, 0x200, 0, 1, 5, 0).pack()),
        _bad(OpClass.XEN_V7, XenV7Op.REATTACH_DEVICE, bytes(8) + b"\1", errno=Errno.EOPNOTSUPP),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        init = xen_v7.V7Init(setting.max_contexts, setting.pool_pages.bit_length() - 1).pack()
        self.set_up = (Submission(OpClass.XEN_V7, XenV7Op.INIT, 0, _padded(init)),)

    def refuses(self, op: Operation) -> int:
        match op:
            case Map() if op.access & ~3:
                return Errno.EINVAL
            case Malformed():
                return op.errno
        return 0

    def submission(self, op: SlotOperation) -> Submission:
        match op:
            case Map():
                number, record = (
                    XenV7Op.MAP_PAGES,
                    _MAP_V7(op.ctx, 0, 0, op.gfn, op.dfn, op.access, 4096, op.nr, UNTOUCHED),
                )
            case Unmap():
                number, record = XenV7Op.UNMAP_PAGES, _UNMAP_V7(op.ctx, 0, 0, op.dfn, 4096, op.nr, UNTOUCHED, 0)
            case Alloc():
                number, record = XenV7Op.ALLOC_CONTEXT, xen_v7.V7Alloc(UNTOUCHED, 0, int(op.clone)).pack()
            case Free():
                number, record = XenV7Op.FREE_CONTEXT, xen_v7.V7Free(op.ctx, 0, int(op.reattach)).pack()
            case Attach():
                record = xen_v7.V7ReattachDevice(op.ctx, 0, 0, op.devfn, 0, 0).pack()
                number = XenV7Op.REATTACH_DEVICE
            case _:
                return self.own_submission(op)
        return Submission(OpClass.XEN_V7, number, 0, _padded(record))

    def errno(self, kind: str, answer: Answer) -> int:
        # a reserved page outranks a frame that is not RAM
        if answer[1] == "NOT_RAM" and answer[2] is not None and answer[2] in _MSI_WINDOW:
            answer = (answer[0], "RESERVED", answer[2])
        return super().errno(kind, answer)

    def expected(self, op: SlotOperation, given: bytes, refused: int, outcome: Any, seen: Seen) -> tuple[int, bytes]:
        if refused:
            return -refused, given
        match op:
            case Map():
                return self.errno("map", outcome), _put(given, 36, "I", UNTOUCHED + outcome[0])
            case Unmap():
                return self.errno("unmap", outcome), _put(given, 24, "I", UNTOUCHED + outcome[0])
            case Alloc():
                result = self.errno("alloc", outcome)
                return result, given if result else _put(given, 0, "H", outcome[0])
            case Free():
                return self.errno("free", outcome), given
            case Attach():
                return self.errno("attach", outcome), given
        return self.own_expected(op, given, refused, outcome, seen)


def interface(setting: Setting) -> Interface:
    """What the guest of a machine with this setting sees."""
    if setting.profile == Xen2024Interface.name:
        return Xen2024Interface(setting)
    return XenV7Interface(setting)
