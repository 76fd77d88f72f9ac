import json
import subprocess

import pytest

from pviommu_abi.dma_test import REGISTER as DMA_REGISTER
from pviommu_abi.dma_test import Descriptor, DescriptorFlags, DescriptorStatus, DmaOp
from pviommu_abi.registers import ENDPOINT_SIGNATURE, EndpointCapability
from pviommu_abi.shared import (
    EVENT_INDEX_OFFSET,
    AddressRange,
    CapabilityId,
    EventAccess,
    EventReason,
    RegionKind,
)
from pviommu_abi.slots import Errno
from pviommu_abi.xen_2024 import PvIommuOp

from .guest import DEVFN, RAM_SIZE, command, environment, spin_until

IOVA = 0x40000000
DFN = IOVA >> 12
GFN = 0x100
GPA = GFN << 12
PATTERN = 0x0807060504030201
PATTERN_BYTES = PATTERN.to_bytes(8, "little")
NOOP = PvIommuOp(0, 0, 0).pack()


def endpoint_capability(function):
    at = function.client.config_read(0x34, 1)
    while at:
        found = EndpointCapability.unpack(function.client.region_read(7, at, EndpointCapability.SIZE))
        if found.cap_id == 0x09:
            return found
        at = found.next
    raise AssertionError("no vendor capability")


def test_the_capability_chain_is_what_print_capabilities_says(guest, topology):
    told = json.loads(subprocess.check_output(command(topology, "--print-capabilities"), env=environment()))
    chain = guest.iommu.capabilities()
    limits = chain[CapabilityId.LIMITS]
    found = [
        f"instance {guest.iommu.read('INSTANCE')}",
        "profiles xen-2024 xen-v7 batch-2014",
        f"page_sizes {limits.page_sizes:#x}",
        f"max_nr_pages {limits.max_nr_pages}",
        f"max_contexts {limits.max_contexts}",
        f"pool_pages {limits.pool_pages}",
        f"rings {limits.rings}",
        f"aperture_bits {limits.aperture_bits}",
        f"default_policy {'identity' if limits.default_policy else 'blocked'}",
        "table_formats vtd-ss x86-64",
        *(f"iova_range {entry.start:#x} {entry.last:#x}" for entry in chain[CapabilityId.IOVA_RANGES]),
        *(
            f"reserved {entry.start:#x} {entry.last:#x} {RegionKind(entry.kind).name.lower()} global"
            for entry in chain[CapabilityId.RESERVED_REGIONS]
        ),
        *(f"endpoint {entry.stream}" for entry in chain[CapabilityId.ENDPOINTS]),
    ]
    assert found == told["driver_capabilities"]
    assert chain[CapabilityId.GUEST_TABLES].formats == 0b11
    assert chain[CapabilityId.RAM_RANGES] == [AddressRange(0, RAM_SIZE - 1)]


def test_endpoints_name_their_instance_and_stream(guest):
    for name, stream in (("dma0", 1), ("dma1", 2)):
        found = endpoint_capability(guest.engines[name])
        assert (found.signature, found.instance, found.stream) == (ENDPOINT_SIGNATURE, 1, stream)
    assert endpoint_capability(guest.iommu).stream == 0xFFFFFFFF


def test_dma_reaches_what_is_mapped_and_faults_once_it_is_unmapped(guest):
    ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
    assert guest.iommu.map(ctx, DFN, GFN, 2) == (0, 2)
    done = engine.run(DmaOp.FILL, 16, dst=IOVA + 0xFF8, pattern=PATTERN)
    assert done.status == DescriptorStatus.DONE
    assert guest.ram.bytes[GPA + 0xFF8 : GPA + 0x1008] == PATTERN_BYTES * 2
    assert guest.iommu.unmap(ctx, DFN, 2) == (0, 2)
    before = guest.ram.bytes[:]
    fault = engine.run(DmaOp.FILL, 16, dst=IOVA + 0xFF8, pattern=0)
    assert (fault.status, fault.detail) == (DescriptorStatus.FAULT, IOVA + 0xFF8)
    assert (fault.reason, fault.access) == (EventReason.NOT_MAPPED, EventAccess.WRITE)
    assert guest.ram.bytes[:] == before
    (event,) = guest.iommu.events()
    assert (event.sequence, event.reason, event.access) == (0, EventReason.NOT_MAPPED, EventAccess.WRITE)
    assert (event.stream, event.sbdf, event.ctx_no) == (1, DEVFN["dma0"], ctx)
    assert (event.iova, event.length) == (IOVA + 0xFF8, 16)


@pytest.mark.row("defect", "C2")
def test_one_missing_page_in_the_middle_moves_nothing(guest):
    ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
    guest.iommu.map(ctx, DFN, GFN, 1)
    guest.iommu.map(ctx, DFN + 2, GFN + 2, 1)
    fault = engine.run(DmaOp.FILL, 3 * 4096, dst=IOVA, pattern=PATTERN)
    assert (fault.status, fault.detail) == (DescriptorStatus.FAULT, IOVA + 4096)
    assert not any(guest.ram.bytes[GPA : GPA + 3 * 4096])


def test_a_write_through_a_read_only_mapping_changes_nothing(guest):
    ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
    guest.iommu.map(ctx, DFN, GFN, 1, flags=1)
    fault = engine.run(DmaOp.FILL, 8, dst=IOVA, pattern=PATTERN)
    assert (fault.status, fault.reason) == (DescriptorStatus.FAULT, EventReason.PERMISSION)
    assert engine.run(DmaOp.CHECKSUM, 8, src=IOVA).status == DescriptorStatus.DONE
    assert not any(guest.ram.bytes[GPA : GPA + 8])


def test_two_engines_in_two_contexts_use_one_address_for_their_own_pages(guest):
    contexts = {name: guest.attach(name) for name in ("dma0", "dma1")}
    guest.iommu.map(contexts["dma0"], DFN, GFN, 1)
    guest.iommu.map(contexts["dma1"], DFN, GFN + 1, 1)
    guest.engines["dma0"].run(DmaOp.FILL, 8, dst=IOVA, pattern=PATTERN)
    guest.engines["dma1"].run(DmaOp.FILL, 8, dst=IOVA, pattern=0xFFFFFFFFFFFFFFFF)
    assert guest.ram.bytes[GPA : GPA + 8] == PATTERN_BYTES
    assert guest.ram.bytes[GPA + 4096 : GPA + 4104] == b"\xff" * 8
    guest.iommu.unmap(contexts["dma0"], DFN, 1)
    assert guest.engines["dma0"].run(DmaOp.CHECKSUM, 8, src=IOVA).status == DescriptorStatus.FAULT
    assert guest.engines["dma1"].run(DmaOp.CHECKSUM, 8, src=IOVA).status == DescriptorStatus.DONE


@pytest.mark.row("defect", "C19")
@pytest.mark.row("defect", "C20")
@pytest.mark.row("defect", "D1")
def test_reattach_moves_an_engine_at_once(guest):
    first, second = guest.attach("dma0"), guest.iommu.alloc()
    guest.iommu.map(first, DFN, GFN, 1)
    guest.iommu.map(second, DFN, GFN + 1, 1)
    guest.engines["dma0"].run(DmaOp.FILL, 8, dst=IOVA, pattern=PATTERN)
    assert guest.iommu.reattach("dma0", second) == 0
    guest.engines["dma0"].run(DmaOp.FILL, 8, dst=IOVA, pattern=PATTERN)
    assert guest.ram.bytes[GPA + 4096 : GPA + 4104] == PATTERN_BYTES


@pytest.mark.row("defect", "C6")
def test_partial_results_are_counted_and_kept(guest):
    ctx = guest.attach("dma0")
    guest.iommu.map(ctx, DFN + 2, GFN + 9, 1)
    assert guest.iommu.map(ctx, DFN, GFN, 5) == (-Errno.EADDRINUSE, 2)
    assert guest.iommu.unmap(ctx, DFN, 5) == (-Errno.ENOENT, 3)
    assert guest.iommu.usage().mapped_pages == 0


def test_a_posted_map_is_seen_by_the_dma_that_follows(guest):
    ctx, engine, iommu = guest.attach("dma0"), guest.engines["dma0"], guest.iommu
    for round_number in range(200):
        dfn = DFN + round_number
        iommu.submit(iommu.map_payload(ctx, dfn, GFN + round_number, 1), posted=True)
        done = engine.run(DmaOp.FILL, 8, dst=dfn << 12, pattern=round_number)
        assert done.status == DescriptorStatus.DONE, round_number
    assert iommu.events() == []
    assert guest.ram.bytes[GPA + 199 * 4096] == 199


def test_a_posted_failure_is_an_event(guest):
    position = guest.iommu.submit(guest.iommu.map_payload(9, DFN, GFN, 1), posted=True)
    guest.iommu.wait(position)
    (event,) = guest.iommu.events()
    assert (event.reason, event.result, event.slot) == (EventReason.POSTED_FAILED, -Errno.EINVAL, position)


def test_a_fault_interrupts_a_guest_that_armed_for_it(guest):
    guest.iommu.vectors = guest.iommu.client.enable_msix(2)
    guest.attach("dma0")
    guest.iommu.words[EVENT_INDEX_OFFSET // 4 + 1] = 0
    guest.engines["dma0"].run(DmaOp.CHECKSUM, 8, src=IOVA)
    assert guest.iommu.interrupted(0)
    assert [event.iova for event in guest.iommu.events()] == [IOVA]


def test_a_sleeping_server_is_woken_by_the_doorbell_and_interrupts(guest):
    guest.iommu.vectors = guest.iommu.client.enable_msix(2)
    guest.iommu.call(NOOP)
    # the device's doorbell word follows its completed word: asking is how it says that it goes to sleep
    spin_until(lambda: guest.iommu.words[17] == guest.iommu.completed, "the server to arm")
    guest.iommu.words[1] = guest.iommu.completed  # interrupt at the next completion
    position = guest.iommu.submit(NOOP, ring=False)
    guest.iommu.ring_doorbell()
    assert guest.iommu.interrupted(1)
    assert guest.iommu.wait(position)[0] == 0


def test_a_busy_server_asks_for_no_doorbell(guest, serve):
    before, sleeps = guest.iommu.doorbells, serve.sleeps()
    for _ in range(10):
        for _ in range(50):
            position = guest.iommu.submit(NOOP)
        guest.iommu.wait(position)
    # one each time it fell asleep, or was about to; not one a slot
    assert guest.iommu.doorbells - before < serve.sleeps() - sleeps + 100


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 1 << 20, 4 << 20])
@pytest.mark.row("defect", "A8")
def test_copies_of_every_size_arrive_byte_for_byte(guest, length):
    ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
    pages = (length + 8191) // 4096
    source = bytes((place * 7 + place // 251) & 0xFF for place in range(length))
    guest.ram.bytes[GPA + 5 : GPA + 5 + length] = source
    guest.iommu.map(ctx, DFN, GFN, pages)
    guest.iommu.map(ctx, 0x200000, GFN + 0x500, pages)
    guest.engines["dma0"].vectors = engine.client.enable_msix(1)
    done = engine.run(DmaOp.COPY, length, src=IOVA + 5, dst=(0x200000 << 12) + 3, flags=DescriptorFlags.INTERRUPT)
    assert done.status == DescriptorStatus.DONE
    assert engine.interrupted(0)
    start = GPA + (0x500 << 12) + 3
    assert guest.ram.bytes[start : start + length] == source
    assert (guest.ram.bytes[start - 1], guest.ram.bytes[start + length]) == (0, 0)


def put_bar(function, bar, address):
    """What QEMU sends when a guest places a 64-bit BAR."""
    function.client.config_write(4, 2, 4)
    function.client.config_write(0x10 + 4 * bar, 4, address & 0xFFFFFFFF)
    function.client.config_write(0x14 + 4 * bar, 4, address >> 32)
    function.client.config_write(4, 2, 6)


@pytest.mark.row("driver", 44)
@pytest.mark.row("driver", 45)
def test_an_engine_reaches_the_bar_of_another_until_it_moves(guest):
    first, second = guest.engines["dma0"], guest.engines["dma1"]
    bar, scratch = 0x8_0000_0000, 0x8000
    put_bar(second, 2, bar)
    ctx = guest.attach("dma0")
    assert guest.iommu.map(ctx, DFN, bar + scratch >> 12, 2) == (0, 2)
    assert guest.iommu.map(ctx, DFN + 2, GFN, 1) == (0, 1)

    assert first.run(DmaOp.FILL, 8192, dst=IOVA, pattern=PATTERN).status == DescriptorStatus.DONE
    assert bytes(second.view[scratch : scratch + 8192]) == PATTERN_BYTES * 1024
    assert first.run(DmaOp.COPY, 4096, src=IOVA + 4096, dst=IOVA + 8192).status == DescriptorStatus.DONE
    assert guest.ram.bytes[GPA : GPA + 4096] == PATTERN_BYTES * 512

    put_bar(second, 2, bar + 0x1000_0000)
    fault = first.run(DmaOp.FILL, 8, dst=IOVA, pattern=0)
    assert (fault.status, fault.reason, fault.detail) == (DescriptorStatus.FAULT, EventReason.NOT_RAM, IOVA)
    assert guest.iommu.map(ctx, DFN + 3, bar >> 12, 1) == (-Errno.EPERM, 0)


@pytest.mark.row("driver", 46)
def test_an_engine_rings_the_doorbell_of_another_by_dma(guest):
    first, second = guest.engines["dma0"], guest.engines["dma1"]
    registers = 0xE0000000
    second.client.config_write(0x10, 4, registers)
    ctx, other = guest.attach("dma0"), guest.attach("dma1")
    assert guest.iommu.map(ctx, DFN, registers >> 12, 1) == (0, 1)
    assert guest.iommu.map(other, DFN, GFN, 1) == (0, 1)
    place = second.put(DmaOp.FILL, 8, dst=IOVA, pattern=PATTERN, start=False)

    done = first.run(DmaOp.FILL, 4, dst=IOVA + DMA_REGISTER["PRODUCER"].offset, pattern=second.descriptors.producer)

    assert done.status == DescriptorStatus.DONE
    spin_until(lambda: Descriptor.unpack(second.view, place).status == DescriptorStatus.DONE, "the other descriptor")
    assert guest.ram.bytes[GPA : GPA + 8] == PATTERN_BYTES
