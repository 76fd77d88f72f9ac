"""Page tables that a guest keeps by itself, on one that maps the guest's memory."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd.nesting import KIND, NESTING, FirstStageData, Invalidation, Nesting, NestingInfo

from .conftest import PAGE, Handle, Program, fails

NEST, DIRTY, PASID = s.HwptAllocFlag.NEST_PARENT, s.HwptAllocFlag.DIRTY_TRACKING, s.HwptAllocFlag.PASID
BASE = 0x40000000
"""Where the parent maps the program's memory: the guest's address 0 of it."""
ROOT, MIDDLE, LOW, LEAVES, DATA = range(5)
"""Pages of the guest's memory: its tables, and what they lead to."""
PRESENT, WRITEABLE, LARGE = 1, 2, 1 << 7


class Guest:
    """A guest whose memory is that of the program, from BASE on, with tables for IOVAs below 2 MiB."""

    def __init__(self, program: Program, device: Handle) -> None:
        self.program, self.device = program, device
        self.ioas = program.ioas()
        program.map(self.ioas, 64 * PAGE, BASE)
        self.parent = device.table(self.ioas, NEST)
        for table, below in ((ROOT, MIDDLE), (MIDDLE, LOW), (LOW, LEAVES)):
            self.entry(table, 0, BASE + below * PAGE | PRESENT | WRITEABLE)

    def entry(self, table: int, index: int, value: int) -> None:
        place = table * PAGE + index * 8
        self.program.data[place : place + 8] = value.to_bytes(8, "little")

    def leaf(self, page: int, to: int, flags: int = PRESENT | WRITEABLE) -> None:
        self.entry(LEAVES, page, BASE + to * PAGE | flags)

    def nested(self, on: int | None = None, root: int = BASE, **fields: int) -> int:
        data = self.program.memory.add(FirstStageData(root).pack())
        fields = {"data_type": KIND, "data_len": FirstStageData.SIZE, "data_uptr": data, **fields}
        request = {"dev_id": self.device.id, "pt_id": on or self.parent, **fields}
        return self.program.iommu(s.HwptAlloc, **request).out_hwpt_id

    def invalidate(self, table: int, entries: Sequence[tuple[int, int]], **fields: int) -> tuple[int, int]:
        """(errno or 0, how many were carried out)"""
        data = b"".join(Invalidation(*entry).pack() for entry in entries)
        request = {
            "hwpt_id": table,
            "data_type": KIND,
            "data_uptr": self.program.memory.add(data) if data else 0,
            "entry_len": Invalidation.SIZE,
            "entry_num": len(entries),
            **fields,
        }
        code = 0
        try:
            self.program.iommu(s.HwptInvalidate, **request)
        except OSError as error:
            code = error.errno or -1
        return code, s.HwptInvalidate.unpack(self.program._scratch).entry_num


class Foreign(Nesting):
    """Another kind of IOMMU."""


@pytest.fixture
def guest() -> Guest:
    configs = [
        DeviceConfig("dev", model=NESTING, pasid_bits=4),
        DeviceConfig("other"),
        DeviceConfig("foreign", model=Foreign()),
    ]
    program = Program(System(configs))
    return Guest(program, program.device("dev"))


def test_dma_goes_through_both_stages(guest: Guest) -> None:
    guest.leaf(3, DATA)
    guest.leaf(4, DATA + 2)
    guest.device.attach(guest.nested())

    guest.device.write(3 * PAGE + 4090, b"across pages")

    assert guest.program.data[DATA * PAGE + 4090 : (DATA + 1) * PAGE] == b"across"
    assert guest.program.data[(DATA + 2) * PAGE :][:6] == b" pages"
    assert guest.device.read(3 * PAGE + 4090, 12) == b"across pages"


def test_what_a_first_stage_refuses(guest: Guest) -> None:
    guest.leaf(3, DATA, PRESENT)
    guest.leaf(4, 100)  # beyond what the parent maps
    guest.device.attach(guest.nested())

    assert guest.device.read(3 * PAGE) == bytes(4)
    for iova, data, why in (
        (3 * PAGE, b"x", "not allow"),
        (5 * PAGE, b"", "not mapped"),
        (4 * PAGE, b"", "not mapped"),
        (1 << 48, b"", "aperture"),
    ):
        with pytest.raises(DmaRefusedError, match=why):
            guest.device.write(iova, data) if data else guest.device.read(iova)


def test_tables_that_the_parent_does_not_map_are_refused(guest: Guest) -> None:
    guest.device.attach(guest.nested(root=0x1000))

    with pytest.raises(DmaRefusedError) as caught:
        guest.device.read(0)
    assert (caught.value.fault.ipa, caught.value.fault.during_walk) == (0x1000, True)


def test_large_pages(guest: Guest) -> None:
    guest.entry(LOW, 1, BASE | PRESENT | WRITEABLE | LARGE)
    guest.entry(MIDDLE, 1, BASE | PRESENT | WRITEABLE | LARGE)
    guest.program.data[DATA * PAGE : DATA * PAGE + 4] = b"data"
    guest.device.attach(guest.nested())

    assert guest.device.read((1 << 21) + DATA * PAGE) == b"data"
    assert guest.device.read((1 << 30) + DATA * PAGE) == b"data"


@pytest.mark.row("space", 56)
def test_a_change_is_seen_once_it_is_invalidated(guest: Guest) -> None:
    guest.leaf(3, DATA)
    guest.leaf(4, DATA)
    table = guest.nested()
    guest.device.attach(table)
    guest.program.data[DATA * PAGE : DATA * PAGE + 3] = b"old"
    guest.program.data[(DATA + 1) * PAGE : (DATA + 1) * PAGE + 3] = b"new"
    assert guest.device.read(3 * PAGE, 3) + guest.device.read(4 * PAGE, 3) == b"oldold"

    guest.leaf(3, DATA + 1)
    guest.leaf(4, DATA + 1)
    assert guest.device.read(3 * PAGE, 3) == b"old"
    assert guest.invalidate(table, [(3 * PAGE, 1)]) == (0, 1)
    assert guest.device.read(3 * PAGE, 3) + guest.device.read(4 * PAGE, 3) == b"newold"
    assert guest.invalidate(table, [(0, 0)]) == (0, 1)
    assert guest.device.read(4 * PAGE, 3) == b"new"


@pytest.mark.row("space", 56)
def test_how_many_entries_of_an_invalidation_were_carried_out(guest: Guest) -> None:
    guest.leaf(3, DATA)
    table = guest.nested()
    guest.device.attach(table)
    assert guest.device.read(3 * PAGE) == bytes(4)
    guest.leaf(3, 0, 0)

    assert guest.invalidate(table, [(3 * PAGE, 1), (5, 1)]) == (errno.EINVAL, 1)
    with pytest.raises(DmaRefusedError):
        guest.device.read(3 * PAGE)  # the first one is effective
    assert guest.invalidate(table, []) == (0, 0)
    for wrong in (
        {"data_type": KIND + 1},
        {"data_uptr": 0},
        {"entry_len": 0},
        {"entry_len": PAGE + 1},
        {"entry_len": Invalidation.SIZE - 1},
        {"entry_len": Invalidation.SIZE + 1},
        {"entry_num": (1 << 19) + 1},
        {"hwpt_id": guest.parent},
    ):
        assert guest.invalidate(table, [(0, 0)], **wrong) == (errno.EINVAL, 0), wrong
    assert guest.invalidate(table, [(0, 0)], reserved=1) == (errno.EOPNOTSUPP, 0)
    assert guest.invalidate(99, [(0, 0)]) == (errno.ENOENT, 0)


@pytest.mark.row("space", 55)
def test_what_a_nested_page_table_cannot_be_allocated_on(guest: Guest) -> None:
    program, device = guest.program, guest.device
    nested = guest.nested()

    with fails("EINVAL", "was not allocated for that"):
        guest.nested(device.table(guest.ioas))
    with fails("EINVAL", "it is no IOAS"):
        guest.nested(nested)
    with fails("EINVAL", "was not allocated for that"):
        guest.nested(device.attach(guest.ioas))
    other, foreign = program.device("other"), program.device("foreign")
    with fails("EOPNOTSUPP", "has not all of it"):
        other.table(guest.ioas, NEST)
    with fails("EINVAL", "was not allocated for that"):
        guest.nested(foreign.table(guest.ioas, NEST))
    for flags in (NEST, DIRTY, 1 << 31):
        with fails("EOPNOTSUPP"):
            guest.nested(flags=flags)
    with fails("EOPNOTSUPP", "must be"):
        guest.nested(data_type=KIND + 1)
    with fails("EINVAL", "must be 8..8"):
        guest.nested(data_len=7)
    with fails("EFAULT"):
        guest.nested(data_uptr=0)
    for root in (5, 1 << 52):
        with fails("EINVAL", "must be a page"):
            guest.nested(root=root)
    with fails("EINVAL", "cannot walk"):
        other.attach(nested)


@pytest.mark.row("space", 55)
def test_a_parent_stays_while_something_stands_on_it(guest: Guest) -> None:
    nested = guest.nested()
    guest.device.attach(nested)

    for number in (guest.parent, nested):
        with fails("EBUSY"):
            guest.program.iommu(s.Destroy, id=number)
    guest.device.detach()
    for number in (nested, guest.parent, guest.ioas):
        guest.program.iommu(s.Destroy, id=number)


def test_a_nested_page_table_has_no_dirty_pages_of_its_own(guest: Guest) -> None:
    with fails("ENOENT", "is nested page table"):
        guest.program.iommu(s.HwptSetDirtyTracking, hwpt_id=guest.nested(), flags=1)


def test_reserved_regions_of_a_device_count_in_the_address_space_of_the_parent(guest: Guest) -> None:
    before = guest.program.ranges(guest.ioas)
    guest.device.attach(guest.nested())

    assert before == [(0, (1 << 48) - 1)]  # the aperture, since there is a page table
    assert guest.program.ranges(guest.ioas) == [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)]
    guest.device.detach()
    assert guest.program.ranges(guest.ioas) == before


def test_hardware_information_says_what_a_first_stage_is(guest: Guest) -> None:
    buffer = bytearray(b"\xff" * 24)
    place = guest.program.memory.add(buffer)

    info = guest.program.iommu(s.GetHwInfo, dev_id=guest.device.id, data_len=24, data_uptr=place)

    assert (info.data_type, info.data_len, info.out_max_pasid_log2) == (KIND, NestingInfo.SIZE, 4)
    assert NestingInfo.unpack(buffer[:16]) == NestingInfo(4, 0, 1 << 12 | 1 << 21 | 1 << 30)
    assert buffer[16:] == bytes(8)
    flag = s.HwInfoFlag.INPUT_TYPE
    guest.program.iommu(s.GetHwInfo, dev_id=guest.device.id, flags=flag, data_type=KIND)
    with fails("EOPNOTSUPP", "there is no such"):
        guest.program.iommu(s.GetHwInfo, dev_id=guest.device.id, flags=flag, data_type=KIND + 1)


def test_a_file_that_is_closed_takes_everything_with_it(guest: Guest) -> None:
    guest.device.attach(guest.nested())
    guest.program.exit()

    assert not list(guest.program.system.hardware.engine.domains())
