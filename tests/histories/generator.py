"""Random histories of requests to iommufd and VFIO, as text that guest-tools/programs/pviommu_history plays.

A history is the same for the same name on every machine. What it asks for is often right, as far as the generator
knows what was allocated and mapped; it does not know what the requests before have given, and so does not depend on
the model. Numbers that requests give (ids, IOVAs that were chosen) are kept by the program that plays it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pviommu.bench.players import Value, Word, call
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.process import REQUEST_OF
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest
from pviommu_abi.dma_test import REGISTER, Descriptor, DmaOp
from wire_layout import Record

__all__ = ["FUNCTIONS", "KINDS", "histories"]

FUNCTIONS = 2
"""DMA test engines that a history has."""
PAGE = 4096
HUGE = 2 << 20
MOST = (1 << 64) - 1

# As pviommu_history.c has them.
ARENA, ARENA_SIZE = 0x200000000000, 8 << 20
READABLE = ARENA + ARENA_SIZE + 4 * PAGE
LOCKED = READABLE + 4 * PAGE
BITMAP = ARENA + ARENA_SIZE - PAGE

# Files of the program
IOMMU, OTHER_IOMMU, CONTAINER, MEMORY, QUEUE = 0, 1, 2, 3, 4
CDEVS, GROUPS, OPENED = (6, 7), (8, 9), (10, 11)
"""Of each function: its own file, that of its group, and what that one gives."""

# Numbers that it keeps
SPACES, TABLES, DEVICES, OTHERS, CHOSEN = (0, 1, 2), (4, 5, 6), (8, 9), (10,), (16, 17, 18, 19)
"""Ids of address spaces, of page tables, of devices, of other objects; IOVAs that were chosen."""

BASE, BASE_PAGES = 0x100000, 24
"""Where most is mapped, so that much of it meets."""
PLACES = (
    *(0, PAGE, 0xFEDFF000, 0xFEDFE000, 0xFEE00000, 0xFEEFF000, 0xFEF00000, (1 << 39) - PAGE, 1 << 39),
    *((1 << 47) - PAGE, (1 << 48) - PAGE, (1 << 48) - HUGE, 1 << 48, (1 << 63), MOST - 0x1FFF, MOST - 0xFFF, MOST),
)
ODD_LENGTHS = (0, 1, 0x800, PAGE - 1, PAGE + 1, 0x1800, HUGE, HUGE + PAGE, 4 << 20, 1 << 33, 1 << 47, 1 << 63)
ODD_LENGTHS += (MOST - 0x1FFF, MOST - 0xFFF, MOST)
ODD_ADDRESSES = (
    *(0, ARENA + 1, ARENA + 0x800, ARENA + ARENA_SIZE - PAGE, ARENA + ARENA_SIZE, READABLE, READABLE + PAGE, LOCKED),
    *((1 << 47) - PAGE, 1 << 47, 1 << 63, MOST - 0xFFF, MOST),
)
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 0xFFFF, 1 << 31, 0x7FFFFFFF, 0xFFFFFFFF)
_CONFIG, _BAR, _SHARED = 7 << 40, 0, 2 << 40
_NOTHING = "aa"
"""What bytes are before they are written."""


def kept(number: int) -> Word:
    """The lower 4 bytes of a number that the program keeps."""
    return Word(f"r{number:x}")


def descriptor(file: int) -> Word:
    """Of a file of the program."""
    return Word(f"%{file:x}")


class Mapping(NamedTuple):
    """What was perhaps mapped."""

    iova: int
    length: int
    address: int


class History:
    """One history, call by call. ``functions`` are those that the machine has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.chance = random.Random(name)
        self.mapped: list[Mapping] = []

    # Chances

    def one_in(self, number: int) -> bool:
        return self.chance.randrange(number) == 0

    def iova(self) -> int:
        """Mostly a page where others are."""
        if self.one_in(8):
            return self.chance.choice(PLACES)
        return (
            BASE + PAGE * self.chance.randrange(BASE_PAGES) + (self.chance.choice((1, 0x800)) if self.one_in(20) else 0)
        )

    def length(self) -> int:
        return self.chance.choice(ODD_LENGTHS) if self.one_in(7) else PAGE * self.chance.choice((1, 1, 2, 3, 4, 8))

    def address(self) -> int:
        """Of memory, mostly where there is some."""
        if self.one_in(10):
            return self.chance.choice(ODD_ADDRESSES)
        return ARENA + PAGE * self.chance.randrange(ARENA_SIZE // PAGE // 2)

    def id_of(self, kind: Sequence[int]) -> Value:
        """An id, mostly of the right kind."""
        if self.one_in(25):
            return self.chance.choice(NUMBERS)
        if self.one_in(25):
            kind = (*SPACES, *TABLES, *DEVICES, *OTHERS)
        return kept(kind[min(self.chance.randrange(len(kind)), self.chance.randrange(len(kind)))])

    # Lines

    def say(self, *words: object) -> None:
        self.lines.append(" ".join(map(str, words)))

    def request(
        self,
        record: type[Record],
        file: int = IOMMU,
        *,
        after: Sequence[str] = (),
        tail: str = "",
        exact: bool = False,
        code: int = 0,
        **fields: Value,
    ) -> None:
        """A request with a structure, now and then with something wrong in it. ``after``: words of what is kept;
        ``tail``: bytes behind the structure.
        """
        values: dict[str, Value] = {entry.name: 0 for entry in record.FIELDS} | dict(fields)
        size = record.FIELDS[0].name
        values.setdefault(size, 0)
        if not values[size]:
            values[size] = record.SIZE + len(tail) // 2
        code = code or REQUEST_OF[record]
        if not exact and self.one_in(12):
            tail, code = self._spoil(record, values, tail, code)
        self.lines.append(call(file, code, record, values, after=after, tail=tail))

    def _spoil(self, record: type[Record], values: dict[str, Value], tail: str, code: int) -> tuple[str, int]:
        """Put something wrong into a structure."""
        size = record.FIELDS[0].name
        how = self.chance.randrange(8)
        if how == 0:
            values[size] = self.chance.choice((0, 3, 4, 8, record.SIZE - 8, record.SIZE - 4, record.SIZE - 1))
        elif how == 1:
            values[size], tail = record.SIZE + 8, tail + "00" * 8
        elif how == 2:
            values[size], tail = record.SIZE + 8, tail + "0000010000000000"
        elif how == 3:
            values[size] = record.SIZE + self.chance.choice((1, 8, PAGE, 1 << 20, (1 << 32) - 1 - record.SIZE))
        elif how == 4:
            return tail, self.chance.choice((0x3B7F, 0x3B96, 0x3BA0, 0x3BFF, 0x3C81, code | 0xC0000000))
        else:
            entry = self.chance.choice(record.FIELDS[1:] or record.FIELDS)
            bits = 8 * entry.size
            values[entry.name] = self.chance.choice(
                (1, 1 << bits - 1, (1 << bits) - 1, 1 << self.chance.randrange(bits))
            )
            if entry.format[-1] == "s":
                values[entry.name] = bytes([1]) + bytes(entry.size - 1)
        return tail, code

    # iommufd

    def ioas_alloc(self) -> None:
        self.request(s.IoasAlloc, after=[f">{self.chance.choice(SPACES):x}@8"])

    def ioas_map(self) -> None:
        space, address, length, iova = self.id_of(SPACES), self.address(), self.length(), self.iova()
        flags = self.chance.choice((6, 6, 6, 6, 4, 2, 0)) | self.chance.choice((1, 1, 0))
        after = [] if flags & 1 else [f">{self.chance.choice(CHOSEN):x}@20"]
        self.request(s.IoasMap, flags=flags, ioas_id=space, user_va=address, length=length, iova=iova, after=after)
        if flags & 1 and isinstance(space, Word):
            self.mapped.append(Mapping(iova, length, address))

    def ioas_map_file(self) -> None:
        start = self.chance.choice((0, 0, 0, PAGE, 0x800, 1, HUGE, MOST))
        self.request(
            s.IoasMapFile,
            flags=self.chance.choice((7, 7, 6, 5)),
            ioas_id=self.id_of(SPACES),
            fd=descriptor(self.chance.choice((MEMORY, MEMORY, MEMORY, IOMMU))),
            start=start,
            length=self.length(),
            iova=self.iova(),
        )

    def _some_mapping(self) -> tuple[int, int]:
        """IOVA and length of what was perhaps mapped, or not quite."""
        if not self.mapped or self.one_in(5):
            return self.iova(), self.length()
        found = self.chance.choice(self.mapped[-12:])
        iova, length = found.iova, found.length
        if self.one_in(3):
            iova += self.chance.choice((-PAGE, PAGE, -4 * PAGE, 1))
        if self.one_in(3):
            length += self.chance.choice((-PAGE, PAGE, 8 * PAGE, -1))
        return iova & MOST, length & MOST

    def ioas_unmap(self) -> None:
        iova, length = self._some_mapping()
        place: Value = iova
        if self.one_in(6):
            place, length = Word(f"q{self.chance.choice(CHOSEN):x}"), PAGE * self.chance.choice((1, 2, 3, 4, 8))
        if self.one_in(15):
            place, length = 0, MOST
        self.request(s.IoasUnmap, ioas_id=self.id_of(SPACES), iova=place, length=length)

    def ioas_copy(self) -> None:
        iova, length = self._some_mapping()
        fixed = self.chance.choice((0, 1, 1))
        self.request(
            s.IoasCopy,
            flags=self.chance.choice((6, 6, 4, 2, 0)) | fixed,
            dst_ioas_id=self.id_of(SPACES),
            src_ioas_id=self.id_of(SPACES),
            length=length,
            dst_iova=self.iova(),
            src_iova=iova,
            after=[] if fixed else [f">{self.chance.choice(CHOSEN):x}@18"],
        )

    def _ranges(self) -> list[tuple[int, int]]:
        whole = [(0, 0xFEDFFFFF), (0x10000, 0x1FFFFF), (0xFEF00000, (1 << 39) - 1), (1 << 32, 1 << 33)]
        odd = [(0xFEE00000, 0xFEEFFFFF), (PAGE, PAGE), (2, 1), (0, MOST), (BASE, BASE + 0xFFFF)]
        return [self.chance.choice(whole if not self.one_in(3) else odd) for _ in range(self.chance.randrange(4))]

    def ioas_allow_iovas(self) -> None:
        ranges = self._ranges()
        at = ARENA + ARENA_SIZE - max(1, len(ranges)) * s.IovaRange.SIZE if self.one_in(3) else ARENA + 0x700000
        self.say("poke", f"{at:x}", b"".join(s.IovaRange(*each).pack() for each in ranges).hex() or "00")
        number = len(ranges) + (self.chance.choice((1, -1)) if self.one_in(6) and ranges else 0)
        self.request(s.IoasAllowIovas, ioas_id=self.id_of(SPACES), num_iovas=number, allowed_iovas=at)

    def ioas_iova_ranges(self) -> None:
        at, room = ARENA + 0x710000, self.chance.choice((0, 1, 2, 3, 4, 8))
        self.say("poke", f"{at:x}", _NOTHING * 4 * s.IovaRange.SIZE)
        if self.one_in(8):
            at = self.chance.choice(ODD_ADDRESSES)
        self.request(s.IoasIovaRanges, ioas_id=self.id_of(SPACES), num_iovas=room, allowed_iovas=at)
        self.say("peek", f"{ARENA + 0x710000:x}", f"{4 * s.IovaRange.SIZE:x}")

    def option(self) -> None:
        kind = self.chance.choice((0, 1, 1, 1, 2))
        self.request(
            s.Option,
            option_id=kind,
            op=self.chance.choice((0, 0, 1, 1, 2)),
            object_id=self.id_of(SPACES) if kind or self.one_in(4) else 0,
            val64=self.chance.choice((0, 0, 1, 1, 2)),
        )

    def vfio_ioas(self) -> None:
        self.request(s.VfioIoas, ioas_id=self.id_of(SPACES), op=self.chance.choice((0, 0, 1, 1, 1, 2, 3)))

    def destroy(self) -> None:
        kind = self.chance.choice((SPACES, TABLES, TABLES, DEVICES, OTHERS))
        self.request(s.Destroy, id=self.id_of(kind))

    def hwpt_alloc(self) -> None:
        parent = self.id_of(TABLES) if self.one_in(6) else self.id_of(SPACES)
        flags = self.chance.choice((0, 0, 0, 0, 1, 2, 4, 8, 16))
        self.request(
            s.HwptAlloc,
            flags=flags,
            dev_id=self.id_of(DEVICES),
            pt_id=parent,
            data_type=self.chance.choice((0, 0, 0, 0, 0, 1, 2, 9)),
            data_len=self.chance.choice((0, 0, 0, 0, 0, 16)),
            fault_id=self.id_of(OTHERS) if flags & 4 else 0,
            after=[f">{self.chance.choice(TABLES):x}@10"],
        )

    def get_hw_info(self) -> None:
        at = ARENA + 0x720000
        self.say("poke", f"{at:x}", _NOTHING * 32)
        self.request(
            s.GetHwInfo,
            flags=self.chance.choice((0, 0, 0, 1, 2)),
            dev_id=self.id_of(DEVICES),
            data_len=self.chance.choice((0, 8, 16, 64)),
            data_uptr=self.chance.choice((at, at, at, 0, *ODD_ADDRESSES)),
            data_type=self.chance.choice((0, 0, 1, 9)),
        )
        self.say("peek", f"{at:x}", "20")

    def dirty_tracking(self) -> None:
        self.request(s.HwptSetDirtyTracking, flags=self.chance.choice((0, 1)), hwpt_id=self.id_of(TABLES))

    def dirty_bitmap(self) -> None:
        iova, length = self._some_mapping()
        self.request(
            s.HwptGetDirtyBitmap,
            flags=self.chance.choice((0, 1)),
            hwpt_id=self.id_of(TABLES),
            iova=iova,
            length=length,
            page_size=self.chance.choice((PAGE, PAGE, HUGE, 0)),
            data=ARENA + 0x730000,
        )

    def invalidate(self) -> None:
        self.request(
            s.HwptInvalidate,
            hwpt_id=self.id_of(TABLES),
            data_uptr=self.chance.choice((0, ARENA)),
            data_type=self.chance.choice((0, 1)),
            entry_len=self.chance.choice((0, 16, PAGE + 1)),
            entry_num=self.chance.choice((0, 1, 2)),
        )

    def fault_queue(self) -> None:
        if self.one_in(3):
            self.say("close", f"{QUEUE:x}")
        else:
            self.request(s.FaultQueueAlloc, after=[f">{OTHERS[0]:x}@8", f"+{QUEUE:x}@c"])

    def viommu(self) -> None:
        record = self.chance.choice((s.ViommuAlloc, s.VdeviceAlloc, s.VeventqAlloc, s.HwQueueAlloc))
        fields: dict[str, Value] = {}
        for entry in record.FIELDS[1:]:
            if entry.name in ("dev_id", "hwpt_id", "viommu_id"):
                fields[entry.name] = self.id_of({"dev_id": DEVICES, "hwpt_id": TABLES}.get(entry.name, OTHERS))
            elif entry.name in ("type", "veventq_depth", "length", "data_len"):
                fields[entry.name] = self.chance.choice((0, 1, 1, 2, PAGE))
        self.request(record, **fields)

    def physical(self) -> None:
        self.request(s.IoasNoiommuGetPa, ioas_id=self.id_of(SPACES), iova=self.iova(), length=self.length())

    def change_process(self) -> None:
        self.request(s.IoasChangeProcess)

    # Devices by their own files

    def number(self) -> int:
        """Of a function: mostly the first."""
        return self.chance.choice((0, 0, 0, 1))

    def bind(self) -> None:
        number = self.number()
        iommu = self.chance.choice((IOMMU,) * 10 + (OTHER_IOMMU, CDEVS[1], 15))
        self.request(
            v.BindIommufd,
            CDEVS[number],
            iommufd=descriptor(iommu),
            after=[f">{DEVICES[number]:x}@c"],
            token_uuid_ptr=0,
        )

    def attach(self) -> None:
        table = self.id_of(self.chance.choice((SPACES, SPACES, TABLES, TABLES, DEVICES)))
        self.request(v.AttachIommufdPt, CDEVS[self.number()], pt_id=table)

    def attach_pasid(self) -> None:
        number, pasid = CDEVS[self.number()], self.chance.choice((0, 0, 0, 1, 1 << 19, 1 << 20))
        if self.one_in(2):
            self.request(
                v.AttachIommufdPasid,
                number,
                code=VfioRequest.DEVICE_ATTACH_IOMMUFD_PT,
                flags=1,
                pt_id=self.id_of(self.chance.choice((SPACES, TABLES))),
                pasid=pasid,
            )
        else:
            self.request(v.DetachIommufdPasid, number, code=VfioRequest.DEVICE_DETACH_IOMMUFD_PT, flags=1, pasid=pasid)

    def detach(self) -> None:
        self.request(v.DetachIommufdPt, CDEVS[self.number()])

    def close_cdev(self) -> None:
        self.say("close", f"{CDEVS[self.number()]:x}")

    def open_cdev(self) -> None:
        number = self.number()
        self.say("cdev", f"{CDEVS[number]:x}", number)

    def device_info(self, file: int | None = None) -> None:
        """What devices say of themselves, with any room."""
        file = CDEVS[self.number()] if file is None else file
        record = self.chance.choice((v.DeviceInfo, v.RegionInfo, v.IrqInfo))
        fields: dict[str, Value] = {}
        if record is not v.DeviceInfo:
            fields["index"] = self.chance.randrange(11)
        room = self.chance.choice((record.SIZE, record.SIZE, record.SIZE - 4, record.SIZE + 64, 16, 4))
        self.request(record, file, tail=_NOTHING * 64, argsz=room, **fields)

    def dma(self, file: int | None = None) -> None:
        """Reset an engine, have it do something, and look at what came of it."""
        file = CDEVS[self.number()] if file is None else file
        iova, length = self._some_mapping()
        length = min(length or 1, 2 * PAGE)
        found = self.chance.choice(self.mapped[-12:]) if self.mapped else Mapping(BASE, PAGE, ARENA)
        op = self.chance.choice((DmaOp.FILL, DmaOp.FILL, DmaOp.CHECKSUM, DmaOp.COPY))
        pattern = self.chance.getrandbits(64)
        request = Descriptor(op, 0, 0, length, iova, found.iova if op == DmaOp.COPY else iova, pattern)
        self.say("write", f"{file:x}", f"{_CONFIG + 4:x}", "0600")
        for name, value in (("CONTROL", 2), ("CONTROL", 1)):
            self.say("write", f"{file:x}", f"{_BAR + REGISTER[name].offset:x}", value.to_bytes(4, "little").hex())
        self.say("write", f"{file:x}", f"{_SHARED:x}", request.pack().hex())
        self.say("write", f"{file:x}", f"{_BAR + REGISTER['PRODUCER'].offset:x}", "01000000")
        self.say("wait", f"{file:x}", f"{_BAR + REGISTER['CONSUMER'].offset:x}", "1")
        self.say("read", f"{file:x}", f"{_SHARED:x}", f"{Descriptor.SIZE:x}")
        if ARENA <= found.address < ARENA + ARENA_SIZE - 64:
            self.say("peek", f"{found.address:x}", "20")

    # type1, on an open /dev/iommu or in a container

    def map_dma(self, file: int = IOMMU) -> None:
        address, size, iova = self.address(), self.length(), self.iova()
        flags = self.chance.choice((3, 3, 3, 3, 1, 2)) if not self.one_in(12) else self.chance.choice((0, 4, 7))
        self.request(v.DmaMap, file, flags=flags, vaddr=address, iova=iova, size=size)
        self.mapped.append(Mapping(iova, size, address))

    def unmap_dma(self, file: int = IOMMU) -> None:
        iova, size = self._some_mapping()
        flags = 0
        if self.one_in(10):
            flags = self.chance.choice((2,) * 8 + (1, 3, 4))
            iova, size = self.chance.choice(((0, 0), (0, 0), (iova, size), (0, MOST)))
        self.request(v.DmaUnmap, file, flags=flags, iova=iova, size=size)

    def dirty_pages(self, file: int = IOMMU) -> None:
        """Begin or end to note them, or ask for some, perhaps while they are unmapped; and look at the bitmap."""
        flags = (
            self.chance.choice((1, 1, 1, 2, 4, 4, 4, 4)) if not self.one_in(12) else self.chance.choice((0, 3, 5, 8))
        )
        iova, size = self._some_mapping()
        if self.one_in(2):
            iova, size = BASE - PAGE * self.chance.choice((0, 1, 62)), PAGE * self.chance.choice((64, 128, 192))
        page = PAGE if not self.one_in(12) else self.chance.choice((1, 0x800, 0x1800, 2 * PAGE, 1 << 63))
        room = self.chance.choice((24, 24, 64, 8)) if not self.one_in(12) else self.chance.choice((0, 7, 1 << 28, MOST))
        data = BITMAP + self.chance.choice((0, 0, 8)) if not self.one_in(12) else self.chance.choice(ODD_ADDRESSES)
        if self.one_in(5):
            tail = v.DirtyBitmap(page, room, data).pack().hex()
            self.request(v.DmaUnmap, file, tail=tail, flags=self.chance.choice((1,) * 8 + (3, 5)), iova=iova, size=size)
        else:
            self.request(v.DirtyPages, file, tail=v.DirtyRange(iova, size, page, room, data).pack().hex(), flags=flags)
        self.say("peek", f"{BITMAP:x}", "28")

    def get_info(self, file: int = IOMMU) -> None:
        room = self.chance.choice((200, 200, 112, 104, 88, 80, 72, 64, 56, 48, 40, 36, 32, 28, 24, 20, 16, 15, 8, 0))
        self.request(v.Type1Info, file, tail=_NOTHING * 176, argsz=room or 1, flags=self.chance.choice((0, 0, 3)))

    def version(self, file: int = IOMMU) -> None:
        request = self.chance.choice((VfioRequest.GET_API_VERSION, VfioRequest.CHECK_EXTENSION, VfioRequest.SET_IOMMU))
        self.say("value", f"{file:x}", f"{request:x}", f"{self.chance.choice((*range(12), 1, 3, 4, 9)):x}")

    def set_iommu(self, file: int = IOMMU) -> None:
        self.say("value", f"{file:x}", f"{VfioRequest.SET_IOMMU:x}", self.chance.choice((1, 3)))

    # Groups

    def open_group(self) -> None:
        number = self.number()
        self.say("group", f"{GROUPS[number]:x}", number)

    def group_status(self) -> None:
        self.request(v.GroupStatus, GROUPS[self.number()], tail="")

    def set_container(self) -> None:
        file = self.chance.choice((CONTAINER,) * 8 + (IOMMU, IOMMU, MEMORY))
        self.say("call", f"{GROUPS[self.number()]:x}", f"{VfioRequest.GROUP_SET_CONTAINER:x}", f"%{file:x}")

    def unset_container(self) -> None:
        self.say("value", f"{GROUPS[self.number()]:x}", f"{VfioRequest.GROUP_UNSET_CONTAINER:x}", "0")

    def get_device(self) -> None:
        number = self.number()
        name = self.number() if self.one_in(8) else number
        words = (f"{GROUPS[number]:x}", f"{VfioRequest.GROUP_GET_DEVICE_FD:x}", f"n{name}", f"+{OPENED[number]:x}")
        self.say("call", *words)

    def close_group(self) -> None:
        files = (*GROUPS, *OPENED, *OPENED, CONTAINER)
        self.say("close", f"{self.chance.choice(files):x}")

    def open_container(self) -> None:
        self.say("open", f"{CONTAINER:x}", "/dev/vfio/vfio")


Step = Callable[[History], None]


def _in_container(step: Callable[[History, int], None]) -> Step:
    return lambda history: step(history, CONTAINER)


def _of_group(step: Callable[[History, int], None]) -> Step:
    return lambda history: step(history, OPENED[history.number()])


_H = History
_SPACES: dict[Step, float] = {
    _H.ioas_alloc: 3,
    _H.ioas_map: 24,
    _H.ioas_unmap: 14,
    _H.ioas_copy: 8,
    _H.ioas_allow_iovas: 4,
    _H.ioas_iova_ranges: 5,
    _H.option: 4,
    _H.vfio_ioas: 1,
    _H.destroy: 3,
    _H.ioas_map_file: 3,
    _H.fault_queue: 1,
    _H.change_process: 1,
    _H.viommu: 1,
    _H.physical: 1,
}
_DEVICES: dict[Step, float] = {
    **_SPACES,
    _H.bind: 2,
    _H.attach: 8,
    _H.detach: 4,
    _H.attach_pasid: 2,
    _H.close_cdev: 0.4,
    _H.open_cdev: 0.6,
    _H.hwpt_alloc: 6,
    _H.get_hw_info: 2,
    _H.dirty_tracking: 1,
    _H.dirty_bitmap: 1,
    _H.invalidate: 1,
    _H.device_info: 2,
    _H.dma: 10,
    _H.viommu: 2,
}
_COMPAT: dict[Step, float] = {
    _H.map_dma: 20,
    _H.unmap_dma: 12,
    _H.get_info: 5,
    _H.version: 3,
    _H.vfio_ioas: 3,
    _H.ioas_alloc: 1,
    _H.attach: 3,
    _H.detach: 1,
    _H.dma: 6,
    _H.ioas_unmap: 2,
    _H.option: 2,
    _H.ioas_iova_ranges: 1,
    _H.destroy: 1,
    _H.set_iommu: 2,
    _H.bind: 1,
}
_TYPE1: dict[Step, float] = {
    _in_container(_H.map_dma): 20,
    _in_container(_H.unmap_dma): 12,
    _in_container(_H.get_info): 5,
    _in_container(_H.dirty_pages): 10,
    _in_container(_H.version): 3,
    _in_container(_H.set_iommu): 2,
    _H.open_group: 1,
    _H.set_container: 3,
    _H.unset_container: 1,
    _H.get_device: 2,
    _H.close_group: 0.5,
    _H.open_container: 0.2,
    _H.group_status: 1,
    _of_group(_H.dma): 8,
    _of_group(_H.device_info): 1,
}


def _begin_spaces(history: History) -> None:
    history.say("open", f"{IOMMU:x}", "/dev/iommu")
    history.say("memfd", f"{MEMORY:x}", f"{HUGE + PAGE:x}")
    if history.one_in(10):
        history.request(s.Option, option_id=0, op=0, val64=1)
    for number in SPACES[:2]:
        history.request(s.IoasAlloc, after=[f">{number:x}@8"], exact=True)


def _begin_devices(history: History) -> None:
    _begin_spaces(history)
    history.say("open", f"{OTHER_IOMMU:x}", "/dev/iommu")
    for number in range(FUNCTIONS):
        if number == 0 or history.one_in(2):
            history.say("cdev", f"{CDEVS[number]:x}", number)
            words = descriptor(IOMMU)
            history.request(v.BindIommufd, CDEVS[number], iommufd=words, after=[f">{DEVICES[number]:x}@c"], exact=True)
    if not history.one_in(4):
        history.attach()


def _begin_compat(history: History) -> None:
    _begin_devices(history)
    if not history.one_in(6):
        history.request(s.VfioIoas, ioas_id=kept(SPACES[0]), op=1, exact=True)
    if history.one_in(2):
        history.set_iommu()


def _begin_type1(history: History) -> None:
    history.say("open", f"{IOMMU:x}", "/dev/iommu")
    history.say("memfd", f"{MEMORY:x}", f"{PAGE:x}")
    history.open_container()
    for number in range(FUNCTIONS):
        if number == 0 or history.one_in(2):
            history.say("group", f"{GROUPS[number]:x}", number)
            set_container = f"{VfioRequest.GROUP_SET_CONTAINER:x}"
            history.say("call", f"{GROUPS[number]:x}", set_container, f"%{CONTAINER:x}")
    history.set_iommu(CONTAINER)
    history.get_device()


KINDS: dict[str, tuple[Callable[[History], None], dict[Step, float]]] = {
    "spaces": (_begin_spaces, _SPACES),
    "devices": (_begin_devices, _DEVICES),
    "compat": (_begin_compat, _COMPAT),
    "type1": (_begin_type1, _TYPE1),
}
"""What histories are about: how they begin, and what happens then, how often."""


def history(name: str, steps: int) -> list[str]:
    """The lines of one history; its kind is what its name begins with."""
    begin, weights = KINDS[name.partition("-")[0]]
    found = History(name)
    begin(found)
    for step in found.chance.choices(list(weights), list(weights.values()), k=steps):
        step(found)
    return [f"history {name}", *found.lines]


def histories(seed: int, count: int, steps: int) -> list[str]:
    """The lines of so many histories, of all kinds in turn, each with so many steps after its beginning."""
    kinds = list(KINDS)
    names = [f"{kinds[number % len(kinds)]}-{seed}-{number}" for number in range(count)]
    return [line for name in names for line in history(name, steps)]
