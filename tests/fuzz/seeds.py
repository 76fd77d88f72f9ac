"""The seeds of the corpus: ``python -m tests.fuzz.seeds`` writes them again. Reproducers lie beside them, named after
what they showed.
"""

from __future__ import annotations

import struct

from pviommu.endpoints.virtio_net import HEADER, MAX_FRAME
from pviommu_abi.registers import REGISTER, Profile, RingControl
from pviommu_abi.shared import RING_AREA_OFFSET
from pviommu_abi.slots import DEFAULT_CONTEXT, OpClass, Slot
from pviommu_abi.vendor import BatchFlags, Reserve, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op
from pviommu_abi.xen_v7 import XenV7Op
from smmuv3.commands import Opcode
from smmuv3.registers import REGISTER as REGISTER_OF_SMMU
from smmuv3.registers import REGISTERS as REGISTERS_OF_SMMU
from vfio_user import Command, Header, IrqIndex, RegionIndex
from vfio_user.messages import (
    DmaMap,
    DmaUnmap,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    RegionAccess,
    SetIrqsFlags,
    Version,
)

from . import dma_maps, irqs, regions, smmu, tables, vfio, virtio
from .machine import VERSION
from .rings import STEP
from .run import CORPUS, NAMES

__all__ = ["main", "seeds"]

_QEMU = (
    b'{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535,'
    b' "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "write_multiple": true}}\0'
)


def seeds(name: str) -> dict[str, bytes]:
    """The seeds of a target by file name."""
    return {
        "frames": _frames,
        "version": _version,
        "regions": _regions,
        "irqs": _irqs,
        "dma_maps": _dma_maps,
        "rings": _rings,
        "topology": _topology,
        "smmu": _smmu,
        "tables": _tables,
        "vfio": _vfio,
        "virtio": _virtio,
    }[name]()


def main() -> None:
    """Write all seeds."""
    for name in NAMES:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in seeds(name).items():
            (folder / seed).write_bytes(data)


def _message(command: int, payload: bytes = b"", fds: int = 0, flags: int = 0) -> bytes:
    message = Header(command, command, Header.SIZE + len(payload), flags, 0).pack() + payload
    return struct.pack("<H", len(message) | fds << 12) + message


def _frames() -> dict[str, bytes]:
    talk = (
        _message(Command.DMA_MAP, DmaMap(32, 3, 0, 0, 1 << 20).pack(), fds=1)
        + _message(Command.DEVICE_GET_INFO, GetInfo(16, 0, 0, 0).pack())
        + b"".join(
            _message(Command.DEVICE_GET_REGION_INFO, GetRegionInfo(64, 0, 2 * n, 0, 0, 0).pack()) for n in (0, 1)
        )
        + _message(Command.DEVICE_GET_IRQ_INFO, GetIrqInfo(16, 0, 2, 0).pack())
        + _message(Command.REGION_READ, RegionAccess(0, 7, 64).pack())
        + _message(Command.REGION_WRITE, RegionAccess(4, 7, 2).pack() + b"\6\0", flags=0x10)
        + _message(Command.DMA_UNMAP, DmaUnmap(24, 0, 0, 1 << 20).pack())
        + _message(Command.DEVICE_RESET)
    )
    cut = _message(Command.DEVICE_GET_INFO, GetInfo(16, 0, 0, 0).pack())[2:]
    pieces = b"".join(struct.pack("<H", 5) + cut[at : at + 5] for at in range(0, len(cut), 5))
    return {
        "conversation": b"\1" + talk,
        "conversation-endpoint": b"\3" + talk,
        "version-first": b"\0" + _message(Command.VERSION, VERSION) + talk,
        "cut-everywhere": b"\1" + pieces,
        "impossible-size": b"\1" + struct.pack("<H", 16) + Header(0, 9, 0xFFFFFFFF, 0, 0).pack(),
        "too-many-descriptors": b"\1" + _message(Command.DMA_MAP, DmaMap(32, 3, 0, 0, 4096).pack(), fds=15),
        "multi-write": b"\1" + _message(Command.REGION_WRITE_MULTI, struct.pack("<QQII8s", 1, 4, 7, 2, b"\6")),
    }


def _version() -> dict[str, bytes]:
    head = Version(0, 0).pack()
    return {
        "ours": VERSION,
        "qemu": head + _QEMU,
        "no-json": Version(0, 2).pack(),
        "twin-socket": Version(0, 1).pack() + b'{"capabilities":{"twin_socket":{"supported":true}}}\0',
        "deep": head + b"[" * 400 + b"\0",
        "huge-number": head + b'{"capabilities":{"max_msg_fds":1e999}}\0',
        "no-nul": head + b"{}",
        "major": Version(1, 0).pack() + b"{}\0",
    }


def _access(what: int, region: int, offset: int, data: bytes | int) -> bytes:
    count, written = (data, b"") if isinstance(data, int) else (len(data), data)
    return struct.pack("<BIB", what | region << 4, offset, count) + written


def _write_register(name: str, value: int) -> bytes:
    return _access(regions.WRITE, RegionIndex.BAR0, REGISTER[name].offset, value.to_bytes(4, "little"))


def _smmu() -> dict[str, bytes]:
    step = {name: bytes([number]) for name, number in smmu.STEP.items()}
    names = [register.name for register in REGISTERS_OF_SMMU]
    start, settle = [step["start"] + bytes([config]) for config in range(8)], step["settle"]

    def dma(where: int, *, is_write: bool = False, length: int = 64, ssid: int = 0) -> bytes:
        """``where``: 0 IOVA, 1 PAGE."""
        return step["dma"] + struct.pack("<BBBHBH", ssid, is_write, 0, 0, where, length)

    def poke(place: int, index: int, word: int) -> bytes:
        return step["poke"] + struct.pack("<BBBQ", place, index, 0xFF, word)

    def register(name: str, value: int) -> bytes:
        size = REGISTER_OF_SMMU[name].size
        packed = struct.pack("<BQ", 0xFF, value) if size == 8 else value.to_bytes(4, "little")
        return step["register"] + bytes([names.index(name)]) + packed

    def command(opcode: int, first: int = 0, second: int = 0) -> bytes:
        code = smmu.COMMAND_CODES.index(opcode)
        return step["command"] + struct.pack("<QBBQ", first, code, 0xFF, second)

    both = dma(0, is_write=True) + dma(1) + dma(0, length=0x2000)
    commands = b"".join(command(opcode, 3 << 32) for opcode in Opcode) + step["settle"] + step["acknowledge"]
    ats = step["configure"] + b"\0\4" + step["start"] + b"\x0d"
    pri = step["configure"] + b"\3\3" + step["configure"] + b"\1\1"
    absent = poke(5, 3, 0) + dma(0, length=0x3000) + dma(0) + dma(1)
    return {
        "stage-1": b"\x00\0" + start[5] + both + settle,
        "bypass-and-abort": b"\x00\0" + start[4] + both + start[0] + both,
        "stage-2": b"\x01\0" + start[6] + both,
        "nested": b"\x01\0" + start[7] + both + start[7] + both,
        "substreams": b"\x02\0" + start[5] + poke(1, 0, smmu.CDS | 0xB | 2 << 59) + dma(0, ssid=3) + dma(0, ssid=4),
        "strict": b"\x04\0" + start[5] + both + poke(8, 0x67 & 0x1F, 0) + both,
        "uncached": b"\x08\0" + start[5] + both + step["save"] + both,
        "commands": b"\x01\0" + start[5] + both + commands + commands,
        "illegal": b"\x00\0" + start[5] + command(0xFF) + settle + step["acknowledge"] + settle,
        "registers": b"\x00\0" + b"".join(register(name, 0xFFFFFFFF) for name in names) + settle,
        "queues-outside": b"\x00\0"
        + register("CMDQ_BASE", smmu.OUTSIDE)
        + register("CR0", 0xD)
        + command(0x46)
        + settle,
        "reset": b"\x00\0" + start[5] + both + step["reset"] + both + start[5] + both,
        "any-access": b"\x00\0" + step["access"] + struct.pack("<IBQ", 0x98, 2, 1) + step["access"] + bytes(6),
        "memory-that-changes": b"\x81\0" + start[7] + both * 3 + bytes(range(64)) * 2,
        "ats": b"\x05\1" + ats + both + commands + both + poke(8, 0x67 & 0x1F, 0) + both + settle,
        "split-stage-ats": b"\x01\1" + step["configure"] + b"\0\4" + step["start"] + b"\x17" + both + commands + both,
        "page-requests": b"\x00\3" + ats + pri + (absent + step["requests"] + b"\1\2") * 3 + commands + both,
        "too-many-page-requests": b"\x00\3" + ats + pri + absent * 2 + dma(1) * 6 + step["requests"] + settle,
        "native-stage-1": b"\x10\0" + start[5] + both + settle,
        "native-nested": b"\x11\0" + start[7] + both + start[7] + both,
        "native-strict": b"\x14\0" + start[5] + both + poke(8, 0x67 & 0x1F, 0) + both,
        "native-memory-that-changes": b"\x91\0" + start[7] + both * 3 + bytes(range(64)) * 2,
    }


def _tables() -> dict[str, bytes]:
    step = {name: bytes([number]) for name, number in tables.STEP.items()}
    alloc = step["alloc"] + struct.pack("<BBBB", 1, 32, 0, 0)
    x86 = step["alloc"] + struct.pack("<BBBB", 1, 32, 1, 0)
    enter, leave = step["enter"] + b"\1", step["leave"] + b"\1\1"
    begin = step["chain"] + alloc + enter

    def dma(*spans: tuple[int, int, int], is_write: bool = False) -> bytes:
        """Spans are (place in IOVAS, offset, length)."""
        packed = b"".join(struct.pack("<BHH", place, offset, length - 1) for place, offset, length in spans)
        return step["dma"] + bytes([len(spans) - 1]) + packed + bytes([is_write])

    def poke(place: int, index: int, entry: int) -> bytes:
        return step["poke"] + struct.pack("<BBBQ", place, index, 0xFF, entry)

    some = dma((0, 0, 8)) + dma((0, 0x10, 0x100), is_write=True) + dma((0, 0xFF0, 0x20)) + dma(*[(0, 8, 8)] * 5)
    operate = b"".join(step["operate"] + bytes([ctx, what]) for ctx in range(3) for what in range(3))
    itself = poke(0, 0, tables.PLACES[0] | 3)
    rest = step["flush_one"] + b"\1" + step["flush_one"] + b"\2" + step["look"] + b"\0\0" + step["plan"] + b"\0"
    return {
        "map-dma-unmap": b"\0" + begin + some + poke(3, 0, 0) + some + rest,
        "other-format": b"\0" + step["chain"] + x86 + enter + some,
        "large-leaves": b"\0" + begin + poke(2, 1, 0x83) + poke(1, 1, 0x83) + dma((2, 0x500, 0x2000)) + dma((3, 0, 64)),
        "to-itself": b"\0" + begin + itself + some + rest,
        "to-nowhere": b"\0" + begin + poke(2, 0, 1 << 50 | 3) + some + poke(0, 0, 1 << 41 | 3) + some + rest,
        "closed-and-direct": b"\0" + begin + dma((4, 0, 4), is_write=True) + dma((5, 0xFF8, 16)) + dma((6, 0, 8)),
        "small-aperture": b"\1" + begin + dma((6, 0, 8)) + some,
        "other-contexts": b"\0"
        + step["alloc_plain"]
        + begin
        + operate
        + step["enter"]
        + b"\2"
        + some
        + leave
        + operate,
        "refused-allocations": b"\0" + b"".join(step["alloc"] + bytes([2, 0, bits, 0, 0]) for bits in range(48)),
        "memory-goes": b"\0" + begin + some + step["plug"] + some + rest + step["plug"] + some,
        "reset-and-save": b"\0" + begin + some + step["save"] + some + step["reset"] + some + begin + some + leave,
        "memory-that-changes": b"\x80" + begin + some * 3 + bytes(range(64)) * 2,
    }


def _virtio() -> dict[str, bytes]:
    step = {name: bytes([number]) for name, number in virtio.STEP.items()}

    def poke(at: int, data: bytes) -> bytes:
        return step["poke"] + struct.pack("<HB", at, len(data)) + data

    def add(queue: int, shape: int, *lengths: int) -> bytes:
        return step["add"] + bytes([queue, shape, *lengths]).ljust(10, b"\1")

    def write(at: int, size: int, value: int) -> bytes:
        return step["write"] + struct.pack("<HB", at, size.bit_length() - 1) + value.to_bytes(size, "little")

    notify = [step["notify"] + bytes([queue]) for queue in range(3)]
    plain = bytes(12) + b"\xff" * 6 + bytes(60)
    frame = step["frame"] + bytes([len(plain)]) + plain
    sent = frame + add(1, 1, 5) + notify[1] + step["settle"]
    received = add(0, 0x0C, 1, 1, 1, 1, 9, 9, 9) + notify[0] + step["answer"] + bytes(14) + b"\x20" + step["settle"]
    arriving = step["answer"] + bytes(10) + b"\xff" * 14
    heard = add(0, 0x0C, 1, 1, 1, 1, 9, 9, 9) + notify[0] + arriving + b"\x20" + step["settle"]
    command = step["frame"] + b"\3\0\0\0" + add(2, 0x05, 1, 1, 1, 1, 1) + notify[2] + step["settle"]
    ip = struct.pack(">BBHHHBBH8s", 0x45, 0, 1000, 0, 0, 64, 6, 0, b"\n\0\0\1\n\0\0\2")
    large = struct.pack("<BBHHHHH", 1, 1, 54, 256, 34, 16, 0) + b"\xff" * 12 + b"\x08\0" + ip + bytes(12) + b"\x50"
    segmented = step["frame"] + bytes([len(large)]) + large + add(1, 1, 63) + notify[1]
    longest = large[:4] + b"\xff\xff" + large[6:]  # of one segment, whose length no IP header can have
    return {
        "exchange-split": b"\0" + sent + received + command + step["save"] + sent,
        "exchange-packed": b"\7" + sent + received + command + step["save"] + received,
        "indirect": b"\1"
        + add(1, 0x82, 5, 5)
        + notify[1]
        + step["settle"]
        + add(0, 0x8C, 1, 1, 1, 1, 9)
        + step["answer"],
        "merged": b"\x1f"
        + received
        + add(0, 0x04, 1, 1, 1, 1, 1) * 9
        + notify[0]
        + step["answer"]
        + b"\0" * 14
        + b"\xff",
        "segments": b"\x20" + segmented + step["settle"],
        "segment-too-long": b"\x20"
        + step["frame"]
        + bytes([len(longest)])
        + longest
        + add(1, 1, 63)
        + poke(0x3008, struct.pack("<L", HEADER + MAX_FRAME))
        + notify[1]
        + step["settle"],
        "loop": b"\0" + add(1, 3) + poke(0x3000 + 14, b"\0\0") + poke(0x3000 + 12, b"\1\0") + notify[1],
        "runaway-index": b"\0" + poke(0x1002, b"\xff\xff") + notify[0] + step["answer"] + b"\0" * 15,
        "endless-list": b"\4" + b"".join(poke(0x3000 + 16 * at + 14, b"\x81\0") for at in range(16)) + notify[1],
        "table-of-a-wrong-size": b"\1" + add(1, 0x82) + poke(0x3008, b"\x11") + notify[1],
        "reset-and-again": b"\x0a"
        + sent
        + step["reset"]
        + step["start"]
        + sent
        + write(0x14, 1, 0)
        + step["start"]
        + sent,
        "one-queue-reset": b"\x0a" + write(0x16, 2, 1) + write(0x3A, 2, 1) + sent + step["save"],
        "registers": b"\0" + b"".join(write(at, 2, 0xFFFF) for at in range(0, 0x3C, 2)) + step["read"] + b"\0\0\2",
        "configuration": b"\0" + step["configure"] + b"\x9c\x0f" + bytes(16) + step["read"] + b"\0\2\2",
        "memory-that-changes": b"\xbf" + sent + received + command + bytes(range(64)),
        "helped": b"\x42" + sent + heard + command + step["save"] + sent + heard,
        "helped-merged": b"\x70"
        + add(0, 0x0C, 1, 1, 1, 1, 2, 2, 2) * 3
        + notify[0]
        + arriving
        + b"\xc0"
        + step["settle"]
        + segmented
        + step["settle"],
        "helped-loop": b"\x40" + add(1, 3) + poke(0x3000 + 14, b"\0\0") + poke(0x3000 + 12, b"\1\0") + notify[1],
        "helped-indirect": b"\x43" + frame + add(1, 0x82, 1, 4) + notify[1] + step["settle"],
    }


def _regions() -> dict[str, bytes]:
    slot = Slot(OpClass.XEN_2024, 0, 0, 1).pack() + PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()
    started = b"".join(
        _write_register(name, value)
        for name, value in (
            ("PROFILE", Profile.XEN_2024),
            ("RING_ENTRIES", 16),
            ("RING_BASE_LO", RING_AREA_OFFSET),
            ("RING_CONTROL", RingControl.ENABLE),
        )
    )
    submitted = _access(regions.WRITE, 2, RING_AREA_OFFSET, slot) + _access(regions.WRITE, 2, 0, b"\1\0\0\0")
    work = _access(regions.WORK, 0, 0, 0)
    return {
        "ring": b"\0" + started + submitted + work + _access(regions.READ, 2, RING_AREA_OFFSET, 64),
        "registers": b"\0" + b"".join(_access(regions.READ, 0, 4 * at, 4) for at in range(12)),
        "odd-accesses": b"\0" + b"".join(_access(regions.READ, at, 3 * at, at) for at in range(10)),
        "configuration": b"\1"
        + _access(regions.READ, 7, 0, 255)
        + _access(regions.WRITE, 7, 4, b"\6\4")
        + _access(regions.WRITE, 7, 0x10, b"\xff" * 24)
        + _access(regions.READ, 7, 0x10, 24)
        + _access(regions.WRITE_INSIDE, 7, 0x48, b"\0\x80")
        + _access(regions.RESET, 0, 0, 0),
        "past-the-end": b"\0" + _access(regions.READ, 7, 0xFFF, 2) + _access(regions.WRITE, 0, 0xFFFFFFFF, b"12345678"),
        "dma-descriptor": b"\1"
        + _access(regions.WRITE, 7, 4, b"\6\0")
        + _access(regions.WRITE, 2, 0, struct.pack("<HHIQQQ", 2, 0, 4096, 0, 4096, 0x5A))
        + _access(regions.WRITE, 0, 0x20, b"\1\0\0\0")
        + work,
    }


def _set_irqs(flags: int, start: int, count: int, fds: int, index: int = IrqIndex.MSIX, bools: bytes = b"") -> bytes:
    return struct.pack("<BIBIIBB", irqs.SET, flags, index, start, count, fds, len(bools)) + bools


def _irqs() -> dict[str, bytes]:
    eventfds = int(SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.ACTION_TRIGGER)
    none = int(SetIrqsFlags.DATA_NONE | SetIrqsFlags.ACTION_TRIGGER)
    bools = int(SetIrqsFlags.DATA_BOOL | SetIrqsFlags.ACTION_TRIGGER)
    armed = _set_irqs(eventfds, 0, 5, 0xF5)
    return {
        "armed": armed + _set_irqs(none, 1, 2, 0) + _set_irqs(bools, 0, 3, 0, bools=b"\1\0\1") + bytes([irqs.RESET]),
        "disabled": armed + _set_irqs(none, 0, 0, 0) + _set_irqs(none, 0, 0, 0, index=IrqIndex.INTX),
        "taken-away": armed + _set_irqs(eventfds, 2, 2, 0) + armed,
        "not-eventfds": _set_irqs(eventfds, 0, 3, 0x03),
        "full-and-blocking": armed + bytes([irqs.FILL, irqs.BLOCKING]) + _set_irqs(none, 0, 5, 0),
        "error-index": _set_irqs(eventfds, 0, 1, 0xF1, index=IrqIndex.ERR) + _set_irqs(none, 0, 1, 0, IrqIndex.ERR),
        "too-many": _set_irqs(eventfds, 8, 0xFFFFFFFF, 0xF2) + _set_irqs(eventfds, 7, 3, 0xF3),
    }


def _map(function: int, sort: int | None, page: int, pages: int, at: int = 0, flags: int = 3) -> bytes:
    head = dma_maps.MAP | function << 4 | (0 if sort is None else sort + 1) << 5
    return bytes([head, page, pages, at, flags])


def _dma_maps() -> dict[str, bytes]:
    both = _map(0, dma_maps.SEALED, 0, 8) + _map(1, dma_maps.SEALED, 0, 8)
    read = bytes([dma_maps.READ, 3, dma_maps.READ | 0x10, 9])
    unmap = bytes([dma_maps.UNMAP, 0, 8])
    return {
        "map-read-unmap": both + read + unmap + read + unmap,
        "again": both + bytes([dma_maps.AGAIN | 0x10, dma_maps.AGAIN]) + unmap + bytes([dma_maps.UNMAP_ALL]),
        "overlap": both + _map(0, dma_maps.SEALED, 4, 8) + _map(0, dma_maps.SEALED, 8, 8, 8) + read,
        "other-memory": both + _map(1, dma_maps.UNSEALED, 0, 4) + _map(1, dma_maps.SEALED, 8, 4, 1),
        "shrunk": _map(0, dma_maps.UNSEALED, 0, 8) + read + bytes([dma_maps.SHRINK]) + read + bytes([dma_maps.RESET]),
        "sorts": b"".join(_map(0, sort, 8 * sort, 4) for sort in range(5)) + _map(0, None, 64, 4),
        "read-only": _map(0, dma_maps.READ_ONLY, 0, 4) + _map(1, dma_maps.SEALED, 0, 4, flags=1) + read,
        "wrong": _map(0, 0, 0, 1, flags=0x13) + b"\1" * 8 + _map(0, 0, 0, 1, flags=0x23) + b"\xff" * 8,
    }


def _frame(low: int, spread: int = 0) -> bytes:
    return bytes([low, spread])


_WORK = bytes([STEP["work"]])
_ALLOC = bytes([STEP["context_2024"], 0, 0, 0]) + _WORK
_ATTACH = bytes([STEP["binding"], 0, 0, 1, STEP["attach_2024"], 1, 0]) + _WORK


def _bind(which: int) -> bytes:
    """BIND, UNBIND, QUERY_ENDPOINT or BLOCK of the endpoint."""
    return bytes([STEP["binding"], which, 0, 1]) + _WORK


def _map_2024(dfn: bytes, nr: int, how: int = 0, gfn: int = 0, ctx: int = 1) -> bytes:
    return bytes([STEP["map_2024"], how, ctx, 3]) + _frame(gfn) + dfn + struct.pack("<H", nr)


def _unmap_2024(dfn: bytes, nr: int, how: int = 0, ctx: int = 1) -> bytes:
    return bytes([STEP["unmap_2024"], how, ctx]) + dfn + struct.pack("<H", nr)


def _reserve(pages: int, how: int = 0, ctx: int = 1) -> bytes:
    payload = Reserve(ctx, 0, pages).pack()
    return bytes([STEP["own"], VendorOp.RESERVE, how, len(payload)]) + payload


def _dma(what: int, dfn: bytes, length: int) -> bytes:
    return bytes([STEP["do_dma"], what]) + dfn + struct.pack("<BI", 0, length - 1)


def _rings() -> dict[str, bytes]:
    start, start_v7 = b"\0\0", b"\0\1"
    dfn, high = _frame(16), _frame(0xF8, 0x13)
    init = (
        bytes([STEP["context_v7"], XenV7Op.INIT, 0, 8, 6, STEP["context_v7"], XenV7Op.ALLOC_CONTEXT, 0, 0, 0]) + _WORK
    )
    map_v7 = bytes([STEP["map_v7"], 0, 1, 3]) + _frame(0) + dfn + struct.pack("<IB", 32, 0)
    unmap_v7 = bytes([STEP["unmap_v7"], 0, 1]) + dfn + struct.pack("<IB", 40, 0)
    element = _frame(9) + _frame(9) + b"\3"
    batch = bytes([STEP["batch"], 0, 1, 0, 2]) + struct.pack("<H", 512) + element + _frame(10) + _frame(3) + b"\3"
    unbatch = bytes([STEP["batch"], 0, 1, int(BatchFlags.UNMAP), 2]) + struct.pack("<H", 512) + element + element
    noop = PvIommuOp(Xen2024Op.NOOP, DEFAULT_CONTEXT, 0).pack()
    call = bytes([STEP["call"], 0, 0]) + struct.pack("<HB", 600, len(noop)) + noop
    meddle = bytes([STEP["meddle"]]) + struct.pack("<IB", RING_AREA_OFFSET, 16) + b"\xff" * 16
    return {
        "map-dma-unmap": start
        + _ALLOC
        + _ATTACH
        + _map_2024(dfn, 32)
        + _dma(1, dfn, 8192)
        + _unmap_2024(dfn, 32)
        + _WORK
        + _dma(0, dfn, 1),
        "posted": start
        + _ALLOC
        + _ATTACH
        + _map_2024(high, 64, how=3)
        + _dma(0, high, 5000)
        + _unmap_2024(_frame(0xFF, 0x13), 4, how=2)
        + _WORK
        + _dma(1, high, 65536),
        "exhaustion": b"\x04\0" + _ALLOC + _map_2024(dfn, 4) + _map_2024(high, 9) + _ALLOC + _WORK,
        "reserved": start
        + _ALLOC
        + _ALLOC
        + _ATTACH
        + _reserve(5)
        + _WORK
        + _map_2024(dfn, 4, ctx=2)
        + _map_2024(high, 9, how=2)
        + _reserve(1000)
        + _reserve(0, how=2)
        + _WORK
        + _map_2024(high, 9, ctx=2)
        + _WORK
        + _dma(0, high, 4096),
        "superpage-cut": b"\x08\0"
        + _ALLOC
        + _ATTACH
        + b"".join(
            _map_2024(_frame(0, 0x12), 256) + _unmap_2024(_frame(7, 0x12), 3) + _WORK + _dma(0, _frame(0, 0x12), 28672)
            for _ in range(2)
        ),
        "clone": start
        + bytes([STEP["context_2024"], 0, 0, 1])
        + _ATTACH
        + _dma(1, _frame(2), 4096)
        + bytes([STEP["memory"], 0, 0])
        + _dma(1, _frame(2), 4096),
        "impossible-index": start
        + bytes([STEP["index"], 0])
        + struct.pack("<I", 17)
        + _WORK
        + bytes([STEP["device_line"], 0, 5, 0, 0, 0])
        + bytes([STEP["restart"], 0])
        + _ALLOC,
        "meddled": start + meddle + _ALLOC + _map_2024(dfn, 2) + _WORK,
        "read-only": start
        + _ALLOC
        + _ATTACH
        + bytes([STEP["map_2024"], 0, 1, 1, *_frame(0), *dfn, 8, 0])
        + _WORK
        + _dma(0, dfn, 4096)
        + _dma(1, dfn, 4096),
        "held": start
        + _ALLOC
        + _ATTACH
        + _map_2024(dfn, 2)
        + _bind(3)
        + _dma(0, dfn, 1)
        + bytes([STEP["endpoint"], 1])
        + _dma(0, dfn, 1)
        + _bind(1)
        + _bind(0)
        + bytes([STEP["endpoint"], 0])
        + _dma(1, _frame(0), 1)
        + _ATTACH
        + _dma(1, dfn, 1)
        + _bind(3)
        + bytes([STEP["reset"], STEP["endpoint"], 0])
        + _dma(1, _frame(0), 1),
        "bars": start
        + _bar(12, _frame(1, 0x15))
        + _bar(2, _frame(0, 0x18))
        + _ALLOC
        + _ATTACH
        + bytes([STEP["map_2024"], 0, 1, 3, *_frame(1, 0x15), *dfn, 1, 0])
        + bytes([STEP["map_2024"], 0, 1, 3, *_frame(0, 0x18), *high, 16, 0])
        + _WORK
        + _descriptor(1, high, dfn, 64)
        + _descriptor(2, dfn, high, 4096, 3)
        + _descriptor(2, dfn, dfn, 4096, 0x0000000200000003)
        + _dma(0, dfn, 5000)
        + _bar(8, _frame(0))
        + _dma(1, dfn, 100)
        + _bar(12, _frame(0))
        + _bar(12, _frame(0xFF, 0x18))
        + _dma(0, high, 65536)
        + _WORK,
        "bar-in-identity": start
        + _bar(14, _frame(0, 0x18))
        + _dma(1, _frame(0, 0x18), 60000)
        + _dma(0, _frame(1, 0x18), 5000),
        "reset": start
        + _ALLOC
        + _ATTACH
        + bytes([STEP["reset"], STEP["endpoint"], 0])
        + _dma(1, dfn, 1)
        + bytes([STEP["restart"], 1])
        + init,
        "v7": start_v7
        + init
        + map_v7
        + _WORK
        + unmap_v7
        + _WORK
        + bytes([STEP["context_v7"], XenV7Op.FREE_CONTEXT, 1, 1, 1]),
        "batch": start + _ALLOC + batch + _WORK + unbatch + _WORK,
        "batch-v7": start_v7 + init + batch + _WORK + unbatch + _WORK,
        "call": start + call + call + bytes([STEP["call"], 1, 9]) + struct.pack("<HB", 0xFFFF, 0) + _WORK,
        "own": start
        + b"".join(bytes([STEP["own"], op, 0, 0]) for op in VendorOp)
        + _WORK
        + bytes([STEP["any_slot"], 7, 7, 7, STEP["arm"], STEP["drain"]]),
        "blocked": b"\x80\0" + _ATTACH + _dma(0, dfn, 16) + bytes([STEP["index"], 6, 1, 0, 0, 0, STEP["arm"]]),
    }


def _bar(which: int, frame: bytes) -> bytes:
    """BAR ``which & 3`` to a frame, with ``which & 12`` decoding on."""
    return bytes([STEP["bar"], which, *frame])


def _descriptor(op: int, src: bytes, dst: bytes, length: int, pattern: int = 0) -> bytes:
    return bytes([STEP["descriptor"], op, 0, *src, *dst]) + struct.pack("<IQ", length, pattern)


def _vfio() -> dict[str, bytes]:
    """Files are counted in the order in which they were opened."""
    step = vfio.STEP

    def at(offset: int) -> int:
        return vfio.POINTER << 32 | offset

    def asks(file: int, number: int, layout: str, *values: int, others: bytes = b"") -> bytes:
        size = struct.calcsize(layout)
        return bytes([step["request"], file, number, size]) + struct.pack(layout, size, *values) + others

    iommu, device = bytes([step["open"], 0]), bytes([step["open"], 1])
    ioas = asks(0, 0x81, "<III", 0, 0)
    bound = iommu + device + asks(1, 0x76, "<IIiIQ", 0, 3, 0, 0, others=b"\0") + ioas
    attached = bound + asks(1, 0x77, "<III", 0, 2)
    mapped = attached + asks(0, 0x85, "<IIIIQQQ", 7, 2, 0, at(0x8000), 0x4000, 0x100000)
    copy = struct.pack("<BBHIQQ", 1, 0, 0, 64, 0x100000, 0x102000)
    engine = (
        bytes([step["write"], 1, 7, 4, 0, 2, 6, 0, step["write"], 1, 2, 0, 0, len(copy)])
        + copy
        + bytes([step["write"], 1, 0, 0x14, 0, 4, 1, 0, 0, 0, step["write"], 1, 0, 0x18, 0, 4, 1, 0, 0, 0])
        + bytes([step["work"]] * 3 + [step["read"], 1, 0, 0x1C, 0, 4])
    )
    hwpt = asks(0, 0x89, "<IIIIIIIIQII", 2, 1, 2, 0, 0, 0, 0, 0, 0, 0)
    group = bytes([step["open"], 3, step["open"], 2]) + asks(1, 0x68, "<i", others=b"\0")[:4] + bytes(4) + b"\0"
    name = b"0000:01:00.0\0"
    return {
        "mapped": b"\5" + mapped + engine + bytes([step["map"], 1, 2, 0, 0, 1, step["work"]]),
        "unmapped": b"\3" + mapped + asks(0, 0x86, "<IIQQ", 2, 0x100000, 0x4000) + asks(0, 0x80, "<II", 2),
        "device": b"\4"
        + bound
        + asks(1, 0x6B, "<IIIIII", 0, 0, 0, 0, 0)
        + asks(1, 0x6C, "<IIIIQQ", 0, 0, 0, 0, 0)
        + asks(1, 0x6D, "<IIII", 0, 2, 0)
        + asks(1, 0x6E, "<IIIIIi", 0x24, 2, 0, 1, 9, others=b"\1")
        + asks(1, 0x70, "<IIIQ", 0, 0, 0)
        + asks(1, 0x71, "<III", 0, 0)
        + asks(1, 0x75, "<II", 0)
        + bytes([step["number"], 1, 0x6F, 0, step["read"], 1, 0, 0, 0, 8, step["map"], 1, 0, 0, 0, 1])
        + bytes([step["stream"], 1, 0, 8, step["stream"], 1, 1, 4, step["map"], 0, 0, 0, 0, 1]),
        "group": b"\0"
        + group
        + bytes([step["number"], 0, 0x66, 3])
        + bytes([step["request"], 1, 0x6A, len(name)])
        + name
        + asks(0, 0x71, "<IIQQQ", 3, at(0), 0x1000, 0)
        + asks(0, 0x72, "<IIQQ", 0, 0, 0x1000)
        + asks(0, 0x70, "<IIQIIQQQQ", 0, 0, 0, 0, 0, 0, 0, 0)
        + asks(1, 0x67, "<II", 0)
        + bytes([step["close"], 0, step["close"], 0]),
        "dirty": b"\1"
        + bound
        + hwpt
        + asks(1, 0x77, "<III", 0, 3)
        + asks(0, 0x8B, "<IIII", 1, 3, 0)
        + asks(0, 0x8C, "<IIIIQQQQ", 3, 0, 0, 0, 0x1000, 0x1000, at(0x1000)),
        "nested": b"\1"
        + bound
        + asks(0, 0x89, "<IIIIIIIIQII", 1, 1, 2, 0, 0, 0, 0, 0, 0, 0)
        + asks(0, 0x90, "<IIIIIIQ", 0, 0x70760001, 1, 3, 0, 0)
        + asks(0, 0x91, "<IIIIQ", 4, 1, 0, 7)
        + asks(0, 0x8E, "<IIII", 0, 0, 0)
        + bytes([step["stream"], 2, 0, 64]),
        "mock": b"\2" + iommu + ioas + asks(0, 0xA0, "<IIII56x", 1, 1, 0) + asks(0, 0xA0, "<IIII56x", 5, 1, 3),
        "other": b"\3"
        + iommu
        + ioas
        + asks(0, 0x84, "<IIIIQQ", 1, 2, 0, at(0), 0)
        + asks(0, 0x82, "<IIIIQ", 1, 1, 0, at(0x1000))
        + asks(0, 0x83, "<IIIIQQQ", 7, 1, 1, 0x1000, 0, 0)
        + asks(0, 0x87, "<IIHHIQ", 0, 0, 0, 0, 0)
        + asks(0, 0x88, "<IIHH", 1, 1, 0)
        + asks(0, 0x8A, "<IIIIQII", 0, 1, 64, at(0x2000), 0, 0)
        + asks(0, 0x8F, "<IIIiQQQ", 7, 1, 9, 0, 0x1000, 0, others=b"\0")
        + asks(0, 0x92, "<II", 0)
        + bytes([step["out of place"], 0, 3]),
    }


def _topology() -> dict[str, bytes]:
    fixed = b'[[endpoint]]\nname = "a"\nkind = "dma-test"\nstream = 0\nsbdf = "00:05.0"\n'
    return {
        "fixed": fixed,
        "fixed-twice": fixed + fixed.replace(b'"a"', b'"b"').replace(b"= 0", b"= 1"),
        "name-twice": b'[iommu]\nname = "a"\n' + fixed,
        "limits": b"[iommu]\ncontexts = 65535\npool-pages = 1\naperture-bits = 48\nrings = 8\nmax-pages-per-op = 1\n",
        "unknown-key": b"[iommu]\nspeed = 11\n",
        "no-toml": b"[iommu\n\xff",
    }


if __name__ == "__main__":
    main()
