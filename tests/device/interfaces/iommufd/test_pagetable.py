"""Page tables of devices, attachment, dirty tracking, and what keeps objects alive."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, Region, RegionKind, System
from pviommu.interfaces.iommufd import structures as s

from .conftest import BOTH, LAST, PAGE, Handle, Program, fails

NEST, DIRTY, FAULT, PASID = s.HwptAllocFlag


@pytest.fixture
def ioas(program: Program) -> int:
    return program.ioas()


def destroy(program: Program, number: int) -> None:
    program.iommu(s.Destroy, id=number)


# Allocation


@pytest.mark.row("space", 55)
def test_what_a_page_table_cannot_be_allocated_for(program: Program, ioas: int, dma0: Handle) -> None:
    def alloc(**fields: int) -> None:
        program.iommu(s.HwptAlloc, **{"dev_id": dma0.id, "pt_id": ioas, **fields})

    with fails("ENOENT", "device 99"):
        alloc(dev_id=99)
    with fails("ENOENT", f"device {ioas}: {ioas} is IOAS"):
        alloc(dev_id=ioas)
    for number in (99, dma0.id):
        with fails("EINVAL", "it is no IOAS"):
            alloc(pt_id=number)
    for data in ({"data_type": 1}, {"data_len": 8}):
        with fails("EINVAL", "both are 0, or neither is"):
            alloc(**data)
    for wrong in ({"flags": 1 << 31}, {"flags": PASID}, {"flags": NEST}, {"data_type": 1, "data_len": 8}):
        with fails("EOPNOTSUPP", "has not all of it"):
            alloc(**wrong)
    with fails("ENOENT", "no fault queue"):
        alloc(flags=FAULT)
    with fails("EOPNOTSUPP", "8 bytes of data"):
        alloc(pt_id=dma0.table(ioas), data_type=1, data_len=8)
    patient = program.device("patient")
    with fails("EOPNOTSUPP", "has not all of it"):
        alloc(dev_id=patient.id, flags=FAULT)
    assert program.ioas() == 5


@pytest.mark.row("space", 55)
def test_dirty_tracking_is_for_devices_that_can(program: Program, ioas: int, dma0: Handle) -> None:
    plain = program.device("plain")

    with fails("EOPNOTSUPP"):
        plain.table(ioas, DIRTY)
    table = dma0.table(ioas, DIRTY)
    with fails("EINVAL", "cannot walk"):
        plain.attach(table)
    plain.attach(dma0.table(ioas))


@pytest.mark.row("space", 55)
def test_what_is_in_use_is_not_destroyed(program: Program, ioas: int, dma0: Handle) -> None:
    table = dma0.table(ioas)
    with fails("EBUSY", "IOAS 1: 1 others use it"):
        destroy(program, ioas)

    dma0.attach(table)
    with fails("EBUSY"):
        destroy(program, table)
    with fails("EBUSY"):
        destroy(program, dma0.id)
    dma0.detach()
    destroy(program, table)
    destroy(program, ioas)
    with fails("EBUSY"):
        destroy(program, dma0.id)


def test_a_page_table_that_came_with_an_attachment_goes_with_the_last_one(
    program: Program, ioas: int, dma0: Handle
) -> None:
    other = program.device("dma1")
    table = dma0.attach(ioas)
    assert other.attach(ioas) == table
    with fails("EBUSY"):
        destroy(program, ioas)

    dma0.detach()
    with fails("EBUSY"):
        destroy(program, table)
    other.detach()
    with fails("ENOENT"):
        destroy(program, table)
    destroy(program, ioas)


def test_a_page_table_is_narrowed_by_its_aperture_before_a_device_is_attached(
    program: Program, ioas: int, dma0: Handle
) -> None:
    table = dma0.table(ioas)
    assert program.ranges(ioas) == [(0, (1 << 48) - 1)]

    destroy(program, table)
    assert program.ranges(ioas) == [(0, LAST)]
    program.map(ioas, PAGE, 1 << 48)
    with fails("EADDRINUSE"):
        dma0.table(ioas)


# Attachment


def test_an_attached_device_reaches_what_is_mapped_before_and_after(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, PAGE, 0x10000)
    with pytest.raises(DmaRefusedError):
        dma0.write(0x10000, b"x")

    dma0.attach(ioas)
    program.map(ioas, PAGE, 0x20000, program.va + PAGE)
    dma0.write(0x10000, b"before")
    dma0.write(0x20000, b"after")
    assert program.data[:6] == b"before"
    assert program.data[PAGE : PAGE + 5] == b"after"
    assert dma0.read(0x10000, 6) == b"before"

    dma0.detach()
    with pytest.raises(DmaRefusedError):
        dma0.read(0x10000)
    dma0.detach()


def test_a_second_attachment_moves_the_device(program: Program, ioas: int, dma0: Handle) -> None:
    other = program.ioas()
    program.map(ioas, PAGE, 0x10000)
    program.map(other, PAGE, 0x10000, program.va + PAGE)
    first = dma0.attach(ioas)
    dma0.write(0x10000, b"1")

    second = dma0.attach(other)
    dma0.write(0x10000, b"2")

    assert (program.data[0], program.data[PAGE]) == (ord("1"), ord("2"))
    assert first != second
    with fails("ENOENT"):
        destroy(program, first)
    assert program.ranges(ioas) == [(0, LAST)]
    assert dma0.attach(second) == second
    destroy(program, ioas)


def test_a_move_that_is_refused_changes_nothing(program: Program, ioas: int, dma0: Handle) -> None:
    other = program.ioas()
    table = dma0.attach(ioas)
    program.map(ioas, PAGE, 0x10000)
    program.map(other, PAGE, 0xFEE00000)
    narrow = program.device("narrow").table(other)

    with fails("EADDRINUSE"):
        dma0.attach(other)
    with fails("ENOENT"):
        dma0.attach(99)
    with fails("EINVAL", "neither an IOAS nor a page table"):
        dma0.attach(dma0.id)
    assert dma0.read(0x10000) == bytes(4)
    program.unmap(other, 0, LAST)
    dma0.attach(narrow)  # whoever walks more walks less too
    with fails("ENOENT"):
        destroy(program, table)


def test_a_page_table_that_does_not_suit_gets_another_one_beside_it(program: Program, ioas: int, dma0: Handle) -> None:
    narrow = program.device("narrow")
    program.map(ioas, PAGE, 0x10000)
    wide_table = dma0.attach(ioas)

    narrow_table = narrow.attach(ioas)

    assert narrow_table != wide_table
    for handle in (dma0, narrow):
        assert handle.read(0x10000) == bytes(4)
    with fails("EINVAL", "cannot walk"):
        narrow.attach(dma0.table(ioas))
    program.unmap(ioas, 0x10000, PAGE)
    for handle in (dma0, narrow):
        with pytest.raises(DmaRefusedError):
            handle.read(0x10000)


@pytest.mark.row("space", 38)
def test_a_device_that_does_not_suit_reserves_nothing(program: Program, ioas: int, dma0: Handle) -> None:
    table = dma0.table(ioas)

    with fails("EINVAL", "cannot walk"):
        program.device("narrow").attach(table)

    assert program.ranges(ioas) == [(0, (1 << 48) - 1)]
    program.map(ioas, PAGE, 0xFEE00000)


@pytest.mark.row("space", 40)
def test_apertures_without_a_common_address_do_not_share_a_space() -> None:
    low, high = (0, 0xFFFFFFF), (0x10000000, 0xFFFFFFFF)
    program = Program(System([DeviceConfig("low", aperture=low, regions=()), DeviceConfig("high", aperture=high)]))
    ioas = program.ioas()
    program.device("low").attach(ioas)

    # Linux lets it be: what is left is nothing, and no map succeeds.
    program.device("high").attach(ioas)
    assert program.ranges(ioas) == []
    with fails("ENOSPC"):
        program.map(ioas, PAGE)


def test_a_group_is_in_one_page_table(program: Program, ioas: int) -> None:
    first, second = program.device("twin0"), program.device("twin1")
    program.map(ioas, PAGE, 0x10000)
    table = first.attach(ioas)
    assert second.read(0x10000) == bytes(4)  # not isolated from its twin

    with fails("EINVAL", "its group is attached"):
        second.attach(second.table(program.ioas()))
    assert second.attach(ioas) == table
    first.detach()
    assert first.read(0x10000) == bytes(4)
    second.detach()
    for twin in (first, second):
        with pytest.raises(DmaRefusedError):
            twin.read(0x10000)


def test_a_group_moves_with_the_regions_of_all_its_devices(program: Program) -> None:
    regions = [Region(number << 20, (number << 20) + 0xFFF, RegionKind.RESERVED) for number in (1, 2)]
    system = System([DeviceConfig(f"twin{n}", regions=(region,), group="twins") for n, region in enumerate(regions)])
    program = Program(system)
    first, second = program.device("twin0"), program.device("twin1")
    left, entered = program.ioas(), program.ioas()
    first.attach(left)
    second.attach(left)
    program.map(entered, PAGE, 0x200000)

    with fails("EADDRINUSE"):
        first.attach(entered)
    assert len(program.ranges(entered)) == 1
    program.unmap(entered, 0, LAST)
    table = first.attach(entered)

    assert program.ranges(left) == [(0, LAST)]
    assert program.ranges(entered) == [(0, 0xFFFFF), (0x101000, 0x1FFFFF), (0x201000, (1 << 48) - 1)]
    with fails("EBUSY", "2 others use it"):
        destroy(program, table)


# Hardware


def test_hw_info_says_what_can_be_done_and_clears_the_buffer(program: Program, dma0: Handle) -> None:
    buffer = bytearray(b"\xff" * 100)
    place = program.memory.add(buffer)

    answer = program.iommu(s.GetHwInfo, dev_id=dma0.id, data_len=64, data_uptr=place)

    assert (answer.data_type, answer.data_len, answer.out_max_pasid_log2) == (0, 0, 0)
    assert answer.out_capabilities == s.HwCapability.DIRTY_TRACKING | s.HwCapability.ATS_NOT_SUPPORTED
    assert buffer == bytes(64) + b"\xff" * 36
    plain = program.iommu(s.GetHwInfo, dev_id=program.device("plain").id)
    assert plain.out_capabilities == s.HwCapability.ATS_NOT_SUPPORTED
    with fails("ENOENT"):
        program.iommu(s.GetHwInfo, dev_id=99)
    with fails("EFAULT"):
        program.iommu(s.GetHwInfo, dev_id=dma0.id, data_len=8)


# Dirty tracking


class Tracked:
    """A page table that tracks, in which 1024 pages are mapped at IOVA 0x100000."""

    BASE = 0x100000

    def __init__(self, program: Program, device: Handle) -> None:
        self.program = program
        self.device = device
        self.ioas = program.ioas()
        self.id = device.table(self.ioas, DIRTY)
        device.attach(self.id)
        program.map(self.ioas, 1024 * PAGE, self.BASE)
        self.bitmap = bytearray(128)
        self.place = program.memory.add(self.bitmap)
        self.track()

    def track(self, enabled: bool = True) -> None:
        self.program.iommu(s.HwptSetDirtyTracking, hwpt_id=self.id, flags=int(enabled))

    def write(self, page: int, length: int = 1) -> None:
        self.device.write(self.BASE + page * PAGE, b"x" * length)

    def read(self, iova: int = BASE, length: int = 1024 * PAGE, page_size: int = PAGE, flags: int = 0) -> list[int]:
        """The bits that were set in an empty bitmap."""
        self.bitmap[:] = bytes(len(self.bitmap))
        self.fetch(iova=iova, length=length, page_size=page_size, flags=flags)
        bits = int.from_bytes(self.bitmap, "little")
        return [bit for bit in range(1024) if bits >> bit & 1]

    def fetch(self, **fields: int) -> None:
        values = {"iova": self.BASE, "length": 1024 * PAGE, "page_size": PAGE, "data": self.place, "hwpt_id": self.id}
        self.program.iommu(s.HwptGetDirtyBitmap, **{**values, **fields})


@pytest.fixture
def tracked(program: Program, dma0: Handle) -> Tracked:
    return Tracked(program, dma0)


@pytest.mark.row("space", 57)
def test_what_dma_wrote_is_in_the_bitmap_once(tracked: Tracked) -> None:
    tracked.write(5)
    tracked.write(700, 2 * PAGE + 1)

    assert tracked.read(flags=1) == [5, 700, 701, 702]
    assert tracked.read(flags=1) == [5, 700, 701, 702]
    assert tracked.read() == [5, 700, 701, 702]
    assert tracked.read() == []


@pytest.mark.row("space", 57)
def test_bits_are_added_to_what_the_bitmap_has(tracked: Tracked) -> None:
    tracked.write(9)
    tracked.bitmap[:] = b"\x81" * 128

    tracked.fetch()

    assert tracked.bitmap == bytearray(b"\x81\x83" + b"\x81" * 126)


@pytest.mark.row("space", 57)
def test_a_bit_may_be_of_more_or_less_than_a_page(tracked: Tracked) -> None:
    base = Tracked.BASE
    tracked.write(17)
    assert tracked.read(page_size=16 * PAGE, flags=1) == [1]
    assert tracked.read(page_size=1024, length=256 * 1024, flags=1) == [68, 69, 70, 71]
    assert tracked.read(iova=base + 16 * PAGE, length=16 * PAGE) == [1]
    assert tracked.read() == []


@pytest.mark.row("space", 57)
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"length": 0}, "EINVAL"),
        ({"iova": LAST - 0xFFF, "length": 2 * PAGE}, "EOVERFLOW"),
        ({"iova": Tracked.BASE + 1}, "EINVAL"),
        ({"length": PAGE + 1}, "EINVAL"),
        ({"page_size": 0}, "EINVAL"),
        ({"page_size": 1 << 30}, "EINVAL"),
        ({"hwpt_id": 99}, "ENOENT"),
        ({"data": 8}, "EFAULT"),
    ],
)
def test_a_bitmap_that_cannot_be_had_clears_nothing(tracked: Tracked, fields: dict[str, int], error: str) -> None:
    tracked.write(5)

    with fails(error):
        tracked.fetch(**fields)
    assert tracked.read() == [5]


@pytest.mark.row("space", 57)
def test_what_is_behind_a_hole_is_not_looked_at(tracked: Tracked) -> None:
    """As Linux 7.3 has it, which forgets the error. Adjacent areas are no hole."""
    base = Tracked.BASE + 1024 * PAGE
    tracked.program.map(tracked.ioas, PAGE, base)
    tracked.program.map(tracked.ioas, PAGE, base + 2 * PAGE)
    for iova in (base, base + 2 * PAGE):
        tracked.device.write(iova, b"x")
    tracked.write(1023)

    assert tracked.read(iova=base - PAGE, length=4 * PAGE) == [0, 1]
    assert tracked.read(iova=base + PAGE, length=2 * PAGE) == []
    assert tracked.read(iova=base + 2 * PAGE, length=PAGE) == [0]


@pytest.mark.row("space", 57)
def test_enabling_clears_and_disabling_ends(tracked: Tracked) -> None:
    tracked.write(5)
    tracked.track()
    assert tracked.read() == []

    tracked.write(5)
    tracked.track(False)
    assert tracked.read() == []
    tracked.write(5)
    assert tracked.read() == []


@pytest.mark.row("space", 57)
def test_only_page_tables_that_were_allocated_for_it_track(program: Program, ioas: int, dma0: Handle) -> None:
    table = dma0.table(ioas)
    with fails("EOPNOTSUPP", "not allocated for that"):
        program.iommu(s.HwptSetDirtyTracking, hwpt_id=table, flags=1)
    with fails("EOPNOTSUPP", "not allocated for that"):
        program.iommu(s.HwptGetDirtyBitmap, hwpt_id=table, iova=0, length=PAGE, page_size=PAGE)
    for number in (99, ioas, dma0.id):
        with fails("ENOENT"):
            program.iommu(s.HwptSetDirtyTracking, hwpt_id=number, flags=1)


# Devices and files


def test_a_device_has_one_owner(program: Program, system: System, dma0: Handle) -> None:
    with fails("EINVAL", "another descriptor"):
        program.device("dma0")
    other = Program(system)
    program.device("twin0")
    with fails("EPERM"):
        other.device("twin1")
    program.device("twin1")

    dma0.close()
    other.device("dma0")


def test_a_device_that_can_interrupt_others_is_not_given_away(program: Program) -> None:
    with fails("EPERM", "unsafe"):
        program.device("unsafe")
    program = Program(System([DeviceConfig("unsafe", isolated_msi=False)], allows_unsafe_interrupts=True))
    program.device("unsafe").attach(program.ioas())


def test_closing_a_device_detaches_it(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, PAGE, 0x10000)
    dma0.attach(ioas)

    dma0.close()

    with pytest.raises(DmaRefusedError):
        program.system.read("dma0", 0x10000, 1)
    destroy(program, ioas)


def test_an_open_file_lives_as_long_as_a_descriptor_or_a_device(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, PAGE, 0x10000)
    table = dma0.table(ioas, DIRTY)
    dma0.attach(table)
    again = program.dup(program.fd)

    program.close(program.fd)
    assert program.call(again, s.IoasAlloc).out_ioas_id == 4
    program.close(again)
    assert dma0.read(0x10000) == bytes(4)

    dma0.close()
    with pytest.raises(DmaRefusedError):
        program.system.read("dma0", 0x10000, 1)
    engine = program.system.hardware.engine
    assert engine.domains() == ()
    assert engine.pool_pages()[0] == 0
    assert program.system.devices["dma0"].owner is None


def test_a_process_that_ends_leaves_nothing(program: Program, dma0: Handle) -> None:
    for handle in (dma0, program.device("dma1"), program.device("twin0")):
        ioas = program.ioas()
        handle.attach(ioas)
        program.map(ioas, 16 * PAGE)

    program.exit()

    assert program.system.hardware.engine.domains() == ()
    assert program.system.hardware.engine.pool_pages()[0] == 0
    with fails("EBADF"):
        program.iommu(s.IoasAlloc)


def test_processes_have_memory_of_their_own(program: Program, system: System, dma0: Handle) -> None:
    other = Program(system)
    assert other.va == program.va
    for handle, text in ((dma0, b"one"), (other.device("dma1"), b"two")):
        owner = handle.program
        ioas = owner.ioas()
        handle.attach(ioas)
        handle.write(owner.map(ioas, PAGE, flags=BOTH), text)

    assert (program.data[:3], other.data[:3]) == (b"one", b"two")
