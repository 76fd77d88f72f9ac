"""Queues that a program reads: page requests, and events of virtual IOMMUs."""

from __future__ import annotations

import pytest

from pviommu.engine import TranslationPending
from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.devices import Device, Group
from pviommu.interfaces.iommufd.events import EventQueue, FaultQueue, PageRequests
from pviommu.interfaces.iommufd.nesting import KIND, NESTING
from pviommu.interfaces.iommufd.places import Places

from .conftest import PAGE, Handle, Program, fails

FAULT, NEST = s.HwptAllocFlag.FAULT_ID_VALID, s.HwptAllocFlag.NEST_PARENT
IOVA = 0x10000
SUCCESS, INVALID = s.PageResponseCode.SUCCESS, s.PageResponseCode.INVALID


class Queue:
    """A descriptor that is read."""

    def __init__(self, program: Program, fd: int) -> None:
        self.program, self.fd = program, fd
        self.buffer = bytearray(4096)
        self.place = program.memory.add(self.buffer)

    @property
    def is_readable(self) -> bool:
        file = self.program.file(self.fd)
        assert isinstance(file, FaultQueue | EventQueue)
        return file.is_readable

    def read(self, count: int) -> bytes:
        return bytes(self.buffer[: self.program.read(self.fd, self.place, count)])

    def fault(self) -> s.Pgfault:
        return s.Pgfault.unpack(self.read(s.Pgfault.SIZE))

    def answer(self, *answers: tuple[int, int], cut: int = 0) -> int:
        data = b"".join(s.PageResponse(*answer).pack() for answer in answers)
        return self.program.write(self.fd, self.program.memory.add(data), len(data) - cut)


@pytest.fixture
def program() -> Program:
    return Program(System([DeviceConfig("dev", model=NESTING, pasid_bits=4)]))


@pytest.fixture
def device(program: Program) -> Handle:
    return program.device("dev")


@pytest.fixture
def queue(program: Program) -> Queue:
    return Queue(program, program.iommu(s.FaultQueueAlloc).out_fault_fd)


@pytest.fixture
def table(program: Program, device: Handle, queue: Queue) -> int:
    """A page table with the queue, to which the device is attached."""
    found = program.iommu(s.HwptAlloc, dev_id=device.id, pt_id=program.ioas(), flags=FAULT, fault_id=2).out_hwpt_id
    device.attach(found)
    return found


def waits(device: Handle, iova: int = IOVA, data: bytes = b"data") -> bool:
    """Whether a write waits for an answer; else it is done."""
    try:
        device.write(iova, data)
    except DmaRefusedError as refused:
        if isinstance(refused.fault, TranslationPending):
            return True
        raise
    return False


@pytest.mark.row("space", 59)
def test_dma_waits_for_the_page_that_it_asked_for(program: Program, device: Handle, queue: Queue, table: int) -> None:
    assert queue.read(40) == b""
    assert waits(device)
    assert waits(device)  # and asks once

    assert queue.is_readable
    fault = queue.fault()
    assert not queue.is_readable
    assert queue.read(40) == b""
    wanted = s.PgfaultPermission.WRITE
    assert fault == s.Pgfault(s.PgfaultFlag.LAST_PAGE, device.id, 0, fault.grpid, wanted, 0, IOVA, 0, 1)
    program.map(3, PAGE, IOVA)
    assert queue.answer((fault.cookie, SUCCESS)) == 8
    assert not waits(device)
    assert program.data[:4] == b"data"


@pytest.mark.row("space", 59)
def test_answers_that_are_refused(device: Handle, queue: Queue, table: int) -> None:
    waits(device)
    for count in (39, 41, 79):
        with fails("ESPIPE"):
            queue.read(count)
    with fails("EINVAL", "40 belong together"):
        queue.read(0)
    cookie = queue.fault().cookie

    with fails("EINVAL", "must be 0 or 1"):
        queue.answer((cookie, 2))
    with fails("EINVAL", "nothing waits"):
        queue.answer((cookie + 1, SUCCESS))
    with fails("ESPIPE"):
        queue.answer((cookie, SUCCESS), cut=1)
    assert queue.answer((cookie, SUCCESS), (cookie, SUCCESS)) == 8  # the second one is not taken
    with fails("EINVAL", "nothing waits"):
        queue.answer((cookie, SUCCESS))


@pytest.mark.row("space", 59)
def test_a_refusal_ends_the_dma_and_a_later_one_asks_again(device: Handle, queue: Queue, table: int) -> None:
    waits(device)
    queue.answer((queue.fault().cookie, INVALID))

    with pytest.raises(DmaRefusedError, match="not mapped"):
        device.write(IOVA, b"data")
    assert waits(device)
    assert queue.fault().addr == IOVA


def test_a_page_that_is_still_not_there_is_asked_for_again(device: Handle, queue: Queue, table: int) -> None:
    waits(device)
    queue.answer((queue.fault().cookie, SUCCESS))

    assert waits(device, IOVA + 5)
    assert queue.fault().addr == IOVA


def test_pages_are_asked_for_one_by_one_and_read_together(device: Handle, queue: Queue, table: int) -> None:
    for page in range(3):
        waits(device, IOVA + page * PAGE)

    data = queue.read(80)
    faults = [s.Pgfault.unpack(data[:40]), s.Pgfault.unpack(data[40:])]
    assert [(fault.addr, fault.cookie) for fault in faults] == [(IOVA, 1), (IOVA + PAGE, 2)]
    queue.answer((1, SUCCESS))
    assert queue.fault().cookie == 1


def test_who_leaves_waits_no_more(device: Handle, queue: Queue, table: int, program: Program) -> None:
    waits(device)
    waits(device, IOVA + PAGE)
    cookie = queue.fault().cookie
    device.detach()

    assert not queue.is_readable
    with fails("EINVAL", "nothing waits"):
        queue.answer((cookie, SUCCESS))
    with pytest.raises(DmaRefusedError, match="blocked"):
        device.write(IOVA, b"data")
    device.attach(table)
    assert waits(device)  # it asks again
    device.attach(3)  # another page table, without a queue
    with pytest.raises(DmaRefusedError, match="not mapped"):
        device.write(IOVA, b"data")


def test_a_request_with_a_pasid_says_so(program: Program, device: Handle, queue: Queue) -> None:
    flags = FAULT | s.HwptAllocFlag.PASID
    number = program.iommu(s.HwptAlloc, dev_id=device.id, pt_id=program.ioas(), flags=flags, fault_id=2).out_hwpt_id

    program.call(device.fd, v.AttachIommufdPasid, flags=1, pt_id=number, pasid=5)
    with pytest.raises(DmaRefusedError, match="answered first"):
        program.system.read("dev", IOVA, 4, pasid=5)

    fault = queue.fault()
    assert (fault.flags, fault.pasid, fault.perm) == (3, 5, s.PgfaultPermission.READ)


def test_a_queue_lives_while_it_is_used(program: Program, device: Handle, queue: Queue, table: int) -> None:
    with fails("EBUSY"):
        program.iommu(s.Destroy, id=2)
    program.close(queue.fd)
    with fails("EBUSY"):
        program.iommu(s.Destroy, id=2)
    device.detach()
    program.iommu(s.Destroy, id=table)
    program.iommu(s.Destroy, id=2)
    with fails("ENOENT", "no fault queue"):
        program.iommu(s.HwptAlloc, dev_id=device.id, pt_id=3, flags=FAULT, fault_id=2)


def test_a_queue_keeps_the_file_alive(program: Program, queue: Queue) -> None:
    device = program.device("dev")
    device.close()
    program.close(program.fd)

    assert queue.read(40) == b""
    program.close(queue.fd)
    for request in (program.read, program.write):
        with fails("EBADF"):
            request(queue.fd, queue.place, 40)


def test_other_files_are_neither_read_nor_written(program: Program, queue: Queue) -> None:
    for request in (program.read, program.write):
        with fails("EINVAL", "cannot be read or written"):
            request(program.fd, queue.place, 40)
    with fails("ENOTTY"):
        program.ioctl(queue.fd, 0x3B80, queue.place)


def test_what_cannot_be_written_back_leaves_no_queue(program: Program) -> None:
    place = program.memory.add(s.FaultQueueAlloc(16, 0, 0, 0).pack())
    with fails("EFAULT"):
        program.ioctl(program.fd, 0x3B8E, place)

    assert program.ioas() == 1
    assert program.open("/dev/iommu") == program.fd + 1


def test_what_does_not_reach_memory_stays_in_the_queue(
    program: Program, device: Handle, queue: Queue, table: int
) -> None:
    waits(device)
    waits(device, IOVA + PAGE)
    with fails("EFAULT"):
        program.read(queue.fd, 0, 40)
    last = program.memory.add(40)
    assert program.read(queue.fd, last, 80) == 40
    with fails("EFAULT"):
        program.write(queue.fd, 0, 8)
    assert queue.fault().addr == IOVA + PAGE


def test_requests_of_several_pages_are_read_whole() -> None:
    queue = FaultQueue(Places(), lambda: None, lambda: None)
    answers: list[bool | None] = []
    device = Device(DeviceConfig("dev"), 0, Group(0))
    faults = [s.Pgfault(0, 1, 0, 1, 1, 0, page * PAGE, 0, 0) for page in range(2)]
    queue.add(PageRequests(device, None, faults, answers.append))
    program = Program(System())
    place = program.memory.add(80)

    with fails("EINVAL", "80 belong together"):
        queue.read_to(program.memory, place, 40)
    assert queue.read_to(program.memory, place, 80) == 80
    queue.destroy()
    assert answers == [None]


# -- events of virtual IOMMUs


@pytest.fixture
def viommu(program: Program, device: Handle) -> int:
    parent = device.table(program.ioas(), NEST)
    return program.iommu(s.ViommuAlloc, type=KIND, dev_id=device.id, hwpt_id=parent).out_viommu_id


def alloc(program: Program, viommu: int, depth: int = 2, kind: int = 5) -> s.VeventqAlloc:
    return program.iommu(s.VeventqAlloc, viommu_id=viommu, type=kind, veventq_depth=depth)


def happen(program: Program, viommu: int, *events: bytes) -> None:
    found = program.file(program.fd).objects.find(viommu)
    for event in events:
        found.event_queues[5].add(event)


def header(flags: int, sequence: int) -> bytes:
    return s.VeventHeader(flags, sequence).pack()


@pytest.mark.row("space", 58)
def test_events_that_do_not_fit_are_lost_and_that_is_said_at_the_end(program: Program, viommu: int) -> None:
    queue = Queue(program, alloc(program, viommu).out_veventq_fd)
    happen(program, viommu, b"ev-0", b"ev-1", b"ev-2")

    assert queue.read(64) == header(0, 0) + b"ev-0" + header(0, 1) + b"ev-1" + header(1, 2)
    assert queue.read(64) == b""
    happen(program, viommu, b"ev-3")
    assert queue.read(64) == header(0, 3) + b"ev-3"
    assert queue.read(64) == b""


@pytest.mark.row("space", 58)
def test_with_room_again_only_the_gap_in_the_numbers_says_what_is_lost(program: Program, viommu: int) -> None:
    queue = Queue(program, alloc(program, viommu).out_veventq_fd)
    happen(program, viommu, b"ev-0", b"ev-1", b"ev-2", b"ev-3")

    assert queue.read(12) == header(0, 0) + b"ev-0"
    happen(program, viommu, b"ev-4")
    assert queue.read(64) == header(0, 1) + b"ev-1" + header(0, 4) + b"ev-4"


@pytest.mark.row("space", 58)
def test_reads_that_are_too_short(program: Program, viommu: int) -> None:
    queue = Queue(program, alloc(program, viommu).out_veventq_fd)
    for count in (0, 7):
        with fails("EINVAL", "a header has 8"):
            queue.read(count)
    happen(program, viommu, b"event", b"more")

    with fails("EINVAL", "an event has 13"):
        queue.read(12)
    with fails("EFAULT"):
        program.read(queue.fd, 0, 64)
    assert program.read(queue.fd, program.memory.add(13), 64) == 13  # the other one does not reach memory
    assert queue.read(12) == header(0, 1) + b"more"
    with fails("EINVAL", "only read"):
        program.write(queue.fd, queue.place, 8)


@pytest.mark.row("space", 58)
def test_queues_that_cannot_be_made(program: Program, viommu: int) -> None:
    for depth in (0, (1 << 19) + 1):
        with fails("EINVAL", "must be 1..524288"):
            alloc(program, viommu, depth)
    with fails("EOPNOTSUPP", "type 0"):
        alloc(program, viommu, kind=0)
    for fields in ({"flags": 1}, {"reserved": 1}):
        with fails("EOPNOTSUPP"):
            program.iommu(s.VeventqAlloc, viommu_id=viommu, type=5, veventq_depth=1, **fields)
    with fails("ENOENT"):
        alloc(program, 99)
    first = alloc(program, viommu)
    with fails("EEXIST"):
        alloc(program, viommu)
    alloc(program, viommu, kind=6)
    for number in (first.out_veventq_id, viommu):
        with fails("EBUSY"):
            program.iommu(s.Destroy, id=number)
    program.close(first.out_veventq_fd)
    program.iommu(s.Destroy, id=first.out_veventq_id)
    alloc(program, viommu)


def test_the_cookie_is_the_lowest_that_is_free(queue: Queue, program: Program) -> None:
    file = program.file(queue.fd)
    assert isinstance(file, FaultQueue)
    device = program.system.devices["dev"]

    def cookies(number: int) -> list[int]:
        for _ in range(number):
            file.add(PageRequests(device, None, [s.Pgfault(0, 0, 0, 0, 0, 0, 0, 0, 0)], lambda answer: None))
        data = queue.read(number * s.Pgfault.SIZE)
        return [fault.cookie for fault in (s.Pgfault.unpack(data[at : at + 40]) for at in range(0, len(data), 40))]

    assert cookies(4) == [1, 2, 3, 4]
    queue.answer((3, SUCCESS), (2, INVALID))
    assert cookies(3) == [2, 3, 5]
    file.give_up(device.group, None)
    assert cookies(1) == [1]


def test_a_refusal_is_forgotten_with_its_page_table(program: Program, device: Handle, queue: Queue, table: int) -> None:
    waits(device)
    queue.answer((queue.fault().cookie, INVALID))
    other = program.iommu(s.HwptAlloc, dev_id=device.id, pt_id=3, flags=FAULT, fault_id=2).out_hwpt_id
    device.attach(other)

    assert waits(device)
    assert queue.fault().addr == IOVA
