"""Operations of class ``VENDOR``: this device's own, beside those of the selected profile."""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U8, U16, U32, U64, Record


class VendorOp(IntEnum):
    """Operations of class VENDOR."""

    BIND = 1
    """tell the device which stream the function at an SBDF is (a vfio-user device never learns its address)"""
    UNBIND = 2
    """forget the binding; the endpoint reaches nothing until it is bound and attached again"""
    QUERY_ENDPOINT = 3
    """stream and context of a bound function"""
    QUERY_USAGE = 4
    """what is in use"""
    BATCH = 5
    """map or unmap each element of an array in guest memory, with a status each (the interface of 2014)"""
    CALL = 6
    """carry out an operation of the selected profile whose structure lies in guest memory, as a hypercall's does"""
    RESERVE = 7
    """set pool pages aside for a context, so that maps which need no more of them cannot fail for lack of any"""
    BLOCK = 8
    """take the function out of its context; it reaches nothing, no direct region either, until it is attached again"""
    ALLOC_TABLES = 9
    """make a context that translates by tables in guest memory, which the guest owns and changes as it likes"""
    FLUSH = 10
    """wait until all DMA is over that such a context translated before"""


class Binding(Record):
    """BIND, UNBIND, QUERY_ENDPOINT and BLOCK.

    BIND: unknown stream -ENODEV; SBDF or stream bound elsewhere -EEXIST; fixed by the configuration -EPERM; the
    same binding again 0.
    UNBIND, QUERY_ENDPOINT and BLOCK: not bound -ENOENT.
    """

    seg: Annotated[int, U16, "PCI segment"]
    bus: Annotated[int, U8, "PCI bus"]
    devfn: Annotated[int, U8, "device << 3 | function"]
    stream: Annotated[int, U32, "stream id; IN for BIND, OUT for QUERY_ENDPOINT"] = 0
    ctx_no: Annotated[int, U16, "OUT of QUERY_ENDPOINT: the context it is attached to"] = 0
    blocked: Annotated[int, U16, "OUT of QUERY_ENDPOINT: 1 while it reaches nothing, whatever the context"] = 0
    pad0: Annotated[int, U32, "0"] = 0


class Usage(Record):
    """QUERY_USAGE: all fields are OUT."""

    contexts: Annotated[int, U32, "contexts allocated, the default one not counted"] = 0
    bindings: Annotated[int, U32, "functions bound"] = 0
    pool_used: Annotated[int, U32, "page-table pages charged"] = 0
    pool_total: Annotated[int, U32, "page-table pages of the pool"] = 0
    mapped_pages: Annotated[int, U64, "pages mapped in all contexts"] = 0
    events_lost: Annotated[int, U64, "events dropped because the ring was full, since reset"] = 0


class BatchFlags(IntFlag):
    """Flags of BATCH."""

    UNMAP = 1 << 0
    """unmap the elements; ``mfn`` and ``flags`` of each are ignored then"""


class Batch(Record):
    """BATCH: -EFAULT if an element fails or the array is not in guest memory; later elements are not looked at."""

    address: Annotated[int, U64, "guest physical address of the array, a multiple of 8"]
    count: Annotated[int, U32, "elements of 24 bytes"]
    flags: Annotated[int, U32, "BatchFlags"]
    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"] = 0
    done: Annotated[int, U32, "OUT: elements carried out before the first that failed"] = 0


class MapOp(Record):
    """Element of a batch, ``iommu_map_op`` of 2014, one page each."""

    bfn: Annotated[int, U64, "device frame"]
    mfn: Annotated[int, U64, "guest frame"]
    flags: Annotated[int, U32, "MapFlags"]
    status: Annotated[int, S32, "OUT: 0 or a negative errno"] = 0


class Call(Record):
    """CALL: -EFAULT if the structure cannot be read, or not be written back; what was done stays done."""

    address: Annotated[int, U64, "guest physical address of the structure, a multiple of 8"]
    op: Annotated[int, U32, "XenV7Op; 0 under profile xen-2024, whose structure holds its number"]
    pad0: Annotated[int, U32, "0"] = 0


class Reserve(Record):
    """RESERVE: the context holds at least ``pages`` pages of the pool from now on, whatever it has mapped.

    A number lower than before gives pages back. Default or unknown context -EINVAL; pool exhausted -ENOMEM, and then
    nothing changes. The reservation ends with the context.
    """

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"] = 0
    pages: Annotated[int, U32, "pool pages, the root's included"] = 0


class TablesFlags(IntFlag):
    """Flags of ALLOC_TABLES."""

    DIRTY = 1 << 0
    """the device sets accessed bits, and in leaves that it writes through dirty bits, by atomic compare and exchange"""


class AllocTables(Record):
    """ALLOC_TABLES: make a context whose tables the guest owns.

    The context is attached and freed as any other; nothing can be mapped in it by operations, which answer -EOPNOTSUPP.
    A format or flag that the capability or this page does not name, a root that is not aligned, or an aperture that is
    not one of 12 bits up to the device's and the format's: -EINVAL. A root outside guest memory: -EFAULT. No context
    left: -ENOSPC. Tables are read anew for each DMA and nothing of them is kept beyond it.
    """

    format: Annotated[int, U32, "TableFormat"]
    flags: Annotated[int, U32, "TablesFlags"]
    root: Annotated[int, U64, "guest physical address of the table of the highest level, a multiple of 4096"]
    aperture_bits: Annotated[int, U32, "device addresses from ``1 << aperture_bits`` on are refused"]
    ctx_no: Annotated[int, U16, "OUT: the context"] = 0
    pad0: Annotated[int, U16, "0"] = 0
    line: Annotated[int, U32, "OUT: index of its InFlightLine, which contexts may share"] = 0
    pad1: Annotated[int, U32, "0"] = 0


class Flush(Record):
    """FLUSH: wait for the DMA of a context with guest tables.

    A context that has no guest tables, or does not exist: -EINVAL.
    """

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"] = 0
    pad1: Annotated[int, U32, "0"] = 0
