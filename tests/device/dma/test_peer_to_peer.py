"""DMA to BARs of functions of the same machine."""

import os

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.dma.windows import MAX_REGISTER_BYTES
from pviommu_abi import dma_test as abi
from pviommu_abi.dma_test import Control, Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.registers import Profile
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno
from vfio_user import DmaMapping

from ..conftest import RAM_PAGES, reason_of

SHARED = 0x8_0000_0000
"""Where the guest puts BAR 2 of dma1, and BAR 0."""
REGISTERS = 0xE000_0000
IOVA = 0x10_0000
PAGE = 4096


def put(function, bar, address, width=4):
    """Write a BAR as a hypervisor passes it on: decoding off, the address by 32-bit words, decoding on."""
    decode(function, False)
    for part in range(0, width, 4):
        function.region_write(7, 0x10 + 4 * bar + part, (address >> 8 * part & 0xFFFFFFFF).to_bytes(4, "little"))
    decode(function, True)


def decode(function, on):
    function.region_write(7, 4, (6 if on else 4).to_bytes(2, "little"))


def register(function, name):
    return int.from_bytes(function.region_read(0, abi.REGISTER[name].offset, 4), "little")


def write_register(function, name, value):
    function.region_write(0, abi.REGISTER[name].offset, value.to_bytes(4, "little"))


def refusal(driver, iova, length=4, write=False):
    """(reason, address) of refused DMA of dma0."""
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_write("dma0", iova, bytes(length)) if write else driver.dma_read("dma0", iova, length)
    return reason_of(caught.value), caught.value.fault.iova


@pytest.fixture
def peer(driver):
    """dma1, whose BARs 0 and 2 have addresses; dma0 is in context 1."""
    function = driver.machine.endpoints["dma1"]
    put(function, 0, REGISTERS)
    put(function, 2, SHARED, 8)
    assert driver.attached("dma0") == 1
    return function


def mapped(driver, gpa, pages=1, dfn=IOVA >> 12):
    assert driver.map(1, dfn, gpa >> 12, pages) == (0, pages)


# -- mapping ----------------------------------------------------------------------------------------------------------


@pytest.mark.row("driver", 43)
@pytest.mark.row("xen", 35)
@pytest.mark.parametrize("first", [0, 3])
def test_a_bar_can_be_mapped_whole_and_in_part(driver, peer, first):
    pages = abi.SHARED_BAR_SIZE // PAGE - first
    assert driver.map(1, 0x100, (SHARED >> 12) + first, pages) == (0, pages)
    assert driver.lookup(1, 0x100 + pages - 1) == (0, (SHARED >> 12) + first + pages - 1)


@pytest.mark.row("driver", 43)
def test_a_map_that_runs_past_a_bar_has_the_prefix(driver, peer):
    pages = abi.SHARED_BAR_SIZE // PAGE
    assert driver.map(1, 0x100, SHARED >> 12, pages + 1) == (-Errno.EPERM, pages)


@pytest.mark.parametrize("how", ["decoding off", "no address", "reset", "sizing", "client gone"])
@pytest.mark.row("driver", 45)
def test_a_bar_that_does_not_answer_cannot_be_mapped(driver, peer, how):
    if how == "decoding off":
        decode(peer, False)
    elif how == "no address":
        put(peer, 0, 0)
    elif how == "reset":
        peer.reset()
    elif how == "sizing":
        put(peer, 0, 0xFFFFFFFF)
    else:
        peer.disconnected()
    assert driver.map(1, 0x100, REGISTERS >> 12, 1) == (-Errno.EPERM, 0)


@pytest.mark.row("driver", 47)
def test_bars_of_the_iommu_itself_cannot_be_mapped(driver, peer):
    put(driver.iommu, 2, 0x9_0000_0000, 8)
    put(driver.iommu, 0, 0xE100_0000)
    assert [driver.map(1, 0x100, gpa >> 12, 1)[0] for gpa in (0x9_0000_0000, 0xE100_0000)] == [-Errno.EPERM] * 2


@pytest.mark.row("driver", 47)
def test_a_bar_in_the_msi_window_cannot_be_mapped(driver, peer):
    put(peer, 0, 0xFEE0_0000)
    assert driver.map(1, 0x100, 0xFEE00, 1) == (-Errno.EPERM, 0)


def test_a_clone_is_of_ram_only(driver, peer):
    result, ctx = driver.alloc(1)
    assert (result, driver.lookup(ctx, SHARED >> 12)[0]) == (0, -Errno.ENOENT)
    assert driver.iommu.engine.usage().mapped_pages == RAM_PAGES


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("driver", 44)
def test_dma_reaches_shared_memory_of_a_peer_at_any_byte(driver, peer):
    mapped(driver, SHARED, 2)
    driver.dma_write("dma0", IOVA + 4093, b"seven b")
    assert bytes(peer.shared.view[4093:4100]) == b"seven b"
    assert driver.dma_read("dma0", IOVA + 4093, 7) == b"seven b"


@pytest.mark.row("driver", 44)
def test_one_request_goes_from_ram_to_a_bar_and_back_to_ram(driver, peer):
    mapped(driver, 0x40000)
    mapped(driver, SHARED, 1, (IOVA >> 12) + 1)
    mapped(driver, 0x50000, 1, (IOVA >> 12) + 2)
    data = os.urandom(PAGE + 20)
    driver.dma_write("dma0", IOVA + PAGE - 10, data)
    assert driver.ram[0x40FF6:0x41000] + bytes(peer.shared.view[:PAGE]) + driver.ram[0x50000:0x5000A] == data
    assert driver.dma_read("dma0", IOVA + PAGE - 10, len(data)) == data


@pytest.mark.row("driver", 44)
@pytest.mark.parametrize(("source", "destination"), [("ram", "bar"), ("bar", "ram"), ("bar", "bar")])
def test_an_engine_copies_between_ram_and_bars(driver, peer, source, destination):
    engine, data = driver.machine.endpoints["dma0"], os.urandom(9001)
    mapped(driver, 0x40000, 4)
    mapped(driver, SHARED + 0x4000, 8, 0x200)
    place = {"ram": IOVA, "bar": 0x200_000}
    if source == "ram":
        driver.ram[0x40000 : 0x40000 + len(data)] = data
    else:
        peer.shared.view[0x4000 : 0x4000 + len(data)] = data
    target = place[destination] + (0x4000 if source == destination else 0)

    assert run(driver, engine, DmaOp.COPY, len(data), src=place[source], dst=target).status == DescriptorStatus.DONE

    assert driver.dma_read("dma0", target, len(data)) == data


def descriptor(op, length, src=0, dst=0, pattern=0):
    return Descriptor(op, 0, 0, length, src, dst, pattern).pack()


def run(driver, engine, op, length, turns=1, **fields):
    """Carry a descriptor out by turns of the machine; what became of it."""
    position = register(engine, "PRODUCER")
    place = position % abi.ENTRIES * Descriptor.SIZE
    engine.shared.view[place : place + Descriptor.SIZE] = descriptor(op, length, **fields)
    write_register(engine, "CONTROL", Control.ENABLE)
    write_register(engine, "PRODUCER", position + 1)
    for _ in range(turns):
        driver.work()
    return Descriptor.unpack(engine.shared.view, place)


@pytest.mark.row("driver", 44)
def test_the_default_context_reaches_bars_as_it_reaches_ram(driver):
    peer = driver.machine.endpoints["dma1"]
    put(peer, 2, SHARED, 8)
    driver.master("dma0")
    driver.dma_write("dma0", SHARED, b"identity")
    assert bytes(peer.shared.view[:8]) == b"identity"

    put(peer, 2, SHARED + 0x1000_0000, 8)
    assert refusal(driver, SHARED) == (EventReason.NOT_MAPPED, SHARED)
    assert driver.dma_read("dma0", SHARED + 0x1000_0000, 8) == b"identity"


@pytest.mark.row("driver", 47)
def test_ram_wins_over_a_bar_at_the_same_address(driver, peer):
    put(peer, 2, 0x40_0000, 8)
    driver.ram[0x40_0000:0x40_0003] = b"ram"
    peer.shared.view[:3] = b"bar"
    mapped(driver, 0x40_0000)
    assert driver.dma_read("dma0", IOVA, 3) == b"ram"


@pytest.mark.row("driver", 47)
def test_a_bar_that_begins_below_ram_or_ends_above_it_is_reached_outside_of_ram(driver, peer):
    top = RAM_PAGES << 12
    size = abi.SHARED_BAR_SIZE
    more = driver.more_ram(PAGE)
    for function in driver.machine.functions():
        function.dma_map(DmaMapping(top + size // 2, PAGE, 0, True, True, os.dup(more)))
        function.dma_map(DmaMapping(top, PAGE, 0, True, True, None))  # a hypervisor's own idea of the BAR
    os.close(more)
    put(peer, 2, top, 8)
    mapped(driver, top, size // PAGE)
    peer.shared.view[:] = b"b" * size
    found = driver.dma_read("dma0", IOVA, size)
    assert found == b"b" * (size // 2) + bytes(PAGE) + b"b" * (size // 2 - PAGE)


# -- registers --------------------------------------------------------------------------------------------------------


@pytest.mark.row("driver", 44)
def test_registers_of_a_peer_are_read_and_written_by_words(driver, peer):
    mapped(driver, REGISTERS)
    at = IOVA + abi.REGISTER["CONTROL"].offset
    driver.dma_write("dma0", at, int(Control.ENABLE).to_bytes(4, "little"))
    driver.work()
    assert register(peer, "CONTROL") == Control.ENABLE
    magic = driver.dma_read("dma0", IOVA, 8)
    assert magic == abi.MAGIC.to_bytes(4, "little") + abi.VERSION.to_bytes(4, "little")


@pytest.mark.row("driver", 44)
@pytest.mark.parametrize(("shift", "length"), [(0, 1), (0, 2), (2, 2), (1, 3), (3, 2)])
def test_what_is_not_a_whole_aligned_word_reads_zeros_and_changes_nothing(driver, peer, shift, length):
    mapped(driver, REGISTERS)
    write_register(peer, "CONTROL", Control.ENABLE)
    at = IOVA + abi.REGISTER["CONTROL"].offset + shift
    assert driver.dma_read("dma0", at, length) == bytes(length)
    driver.dma_write("dma0", at, bytes(length))
    driver.work()
    assert register(peer, "CONTROL") == Control.ENABLE


@pytest.mark.row("driver", 44)
def test_the_words_inside_an_unaligned_request_are_reached(driver, peer):
    mapped(driver, REGISTERS)
    magic, version = abi.MAGIC.to_bytes(4, "little"), abi.VERSION.to_bytes(4, "little")
    assert driver.dma_read("dma0", IOVA, 9) == magic + version + b"\0"
    assert driver.dma_read("dma0", IOVA + 1, 7) == bytes(3) + version


def test_the_msix_bar_reads_zeros_and_keeps_nothing(driver, peer):
    put(peer, 4, 0xE200_0000)
    mapped(driver, 0xE200_0000)
    driver.dma_write("dma0", IOVA, b"\xff" * 64)
    driver.work()
    assert driver.dma_read("dma0", IOVA, 64) == bytes(64)


@pytest.mark.row("driver", 46)
def test_a_request_may_touch_4096_bytes_of_registers_and_no_more(driver, peer):
    for page in range(2):
        mapped(driver, REGISTERS, 1, (IOVA >> 12) + page)
    assert len(driver.dma_read("dma0", IOVA + 8, MAX_REGISTER_BYTES)) == MAX_REGISTER_BYTES
    assert refusal(driver, IOVA, MAX_REGISTER_BYTES + 1) == (EventReason.ABORTED, IOVA)
    assert refusal(driver, IOVA, MAX_REGISTER_BYTES + 1, write=True) == (EventReason.ABORTED, IOVA)
    assert [event.reason for event in driver.events()] == [EventReason.ABORTED] * 2


@pytest.mark.row("driver", 46)
def test_writes_that_wait_are_bounded_too_and_a_refused_one_writes_nothing(driver, peer):
    mapped(driver, REGISTERS)
    mapped(driver, 0x40000, 1, (IOVA >> 12) - 1)
    driver.dma_write("dma0", IOVA, bytes(MAX_REGISTER_BYTES))
    assert refusal(driver, IOVA - 4, 8, write=True)[0] is EventReason.ABORTED
    driver.work()
    driver.dma_write("dma0", IOVA, bytes(MAX_REGISTER_BYTES))


@pytest.mark.row("driver", 46)
def test_an_engine_that_resets_itself_finishes_its_descriptor_first(driver, peer):
    engine = driver.machine.endpoints["dma0"]
    put(engine, 0, 0xE300_0000)
    mapped(driver, 0xE300_0000)
    at = IOVA + abi.REGISTER["CONTROL"].offset
    done = run(driver, engine, DmaOp.FILL, 4, dst=at, pattern=int(Control.RESET | Control.ENABLE))
    assert done.status == DescriptorStatus.DONE
    assert [register(engine, name) for name in ("CONTROL", "PRODUCER", "CONSUMER")] == [Control.ENABLE, 0, 0]
    assert run(driver, engine, DmaOp.FILL, 4, dst=IOVA + 0xF00).status == DescriptorStatus.DONE


@pytest.mark.row("driver", 46)
def test_an_engine_that_submits_to_itself_goes_on_with_that(driver, peer):
    engine = driver.machine.endpoints["dma0"]
    put(engine, 0, 0xE300_0000)
    mapped(driver, 0xE300_0000)
    mapped(driver, 0x40000, 1, 0x200)
    second = descriptor(DmaOp.FILL, length=8, dst=0x200_000, pattern=0x6867666564636261)
    engine.shared.view[Descriptor.SIZE : 2 * Descriptor.SIZE] = second
    run(driver, engine, DmaOp.FILL, 4, turns=2, dst=IOVA + abi.REGISTER["PRODUCER"].offset, pattern=2)
    assert register(engine, "CONSUMER") == 2
    assert driver.ram[0x40000:0x40008] == b"abcdefgh"


# -- requests in steps ------------------------------------------------------------------------------------------------


def put_list(engine, spans):
    """Scatter/gather entries; what ``src`` or ``dst`` has to be, and the length."""
    packed = b"".join(abi.SgEntry(*span).pack() for span in spans)
    engine.shared.view[abi.SG_OFFSET : abi.SG_OFFSET + len(packed)] = packed
    return len(spans) << 32, sum(length for _, length in spans)


def run_list(driver, engine, op, spans, pattern=0):
    """Carry out a descriptor with ``spans`` as source and destination."""
    place, length = put_list(engine, spans)
    flags = int(abi.DescriptorFlags.SRC_SG | abi.DescriptorFlags.DST_SG)
    engine.shared.view[: Descriptor.SIZE] = Descriptor(op, flags, 0, length, place, place, pattern).pack()
    write_register(engine, "CONTROL", Control.ENABLE)
    write_register(engine, "PRODUCER", 1)
    while register(engine, "CONSUMER") == 0:
        driver.work()
    return Descriptor.unpack(engine.shared.view)


@pytest.mark.row("driver", 46)
@pytest.mark.row("server", 37)
@pytest.mark.parametrize("op", [DmaOp.FILL, DmaOp.CHECKSUM])
def test_a_request_in_steps_may_touch_4096_bytes_of_registers_in_all(driver, peer, op):
    mapped(driver, REGISTERS)
    mapped(driver, 0x40000, 1, 0x200)
    engine = driver.machine.endpoints["dma0"]
    spans = [(0x200_000 + 8 * n, 8) for n in range(20)] + [(IOVA + 0x800, 256) for _ in range(17)]
    done = run_list(driver, engine, op, spans, pattern=0x55)
    assert (done.status, done.detail, done.reason) == (DescriptorStatus.FAULT, IOVA + 0x800, EventReason.ABORTED)
    assert [(event.reason, event.length) for event in driver.events()] == [(EventReason.ABORTED, 256)]
    assert not any(driver.ram[0x40000:0x41000])
    engine.reset_device()
    driver.master("dma0")
    assert run_list(driver, engine, op, spans[:-1], pattern=0x55).status == DescriptorStatus.DONE


@pytest.mark.row("driver", 46)
@pytest.mark.row("server", 37)
def test_registers_are_written_after_all_the_rest_of_a_request_in_steps(driver, peer, monkeypatch):
    """Wherever they are in it: what is written there may start something that needs the rest."""
    monkeypatch.setattr("pviommu.endpoints.dma_test.STEP_NS", -1)
    mapped(driver, REGISTERS)
    mapped(driver, 0x40000, 1, 0x200)
    control = IOVA + abi.REGISTER["CONTROL"].offset
    seen = []
    write = peer.bars[0].file.write
    monkeypatch.setattr(
        peer.bars[0].file, "write", lambda *given: seen.append(driver.ram[0x40000 : 0x40000 + 8 * 30]) or write(*given)
    )
    spans = [(control, 4)] + [(0x200_000 + 8 * n, 8) for n in range(30)]
    pattern = int(Control.ENABLE) | int(Control.ENABLE) << 32
    done = run_list(driver, driver.machine.endpoints["dma0"], DmaOp.FILL, spans, pattern=pattern)
    assert (done.status, register(peer, "CONTROL")) == (DescriptorStatus.DONE, Control.ENABLE)
    assert seen == [pattern.to_bytes(8, "little") * 30]


# -- BARs that move ---------------------------------------------------------------------------------------------------


@pytest.mark.row("driver", 45)
@pytest.mark.parametrize("how", ["moved", "decoding off", "reset", "client gone"])
def test_dma_to_a_bar_that_is_not_there_any_more_is_refused_and_its_mapping_stays(driver, peer, how):
    mapped(driver, SHARED)
    driver.dma_write("dma0", IOVA, b"before")
    if how == "moved":
        put(peer, 2, SHARED + 0x1000_0000, 8)
    elif how == "decoding off":
        decode(peer, False)
    elif how == "reset":
        peer.reset()
    else:
        peer.disconnected()
    assert refusal(driver, IOVA) == (EventReason.NOT_RAM, IOVA)
    assert refusal(driver, IOVA, write=True) == (EventReason.NOT_RAM, IOVA)
    assert driver.lookup(1, IOVA >> 12) == (0, SHARED >> 12)

    put(peer, 2, SHARED, 8)
    driver.dma_write("dma0", IOVA, b"after")
    assert bytes(peer.shared.view[:5]) == b"after"


def test_a_function_level_reset_leaves_bars_where_the_hypervisor_has_them(driver, peer):
    mapped(driver, SHARED)
    peer.region_write(7, peer._pcie + 8, b"\x00\x80")
    assert refusal(driver, IOVA) == (EventReason.NOT_RAM, IOVA)
    decode(peer, True)
    driver.dma_write("dma0", IOVA, b"again")
    assert bytes(peer.shared.view[:5]) == b"again"


def test_bus_mastering_of_the_target_does_not_matter(driver, peer):
    mapped(driver, SHARED)
    peer.region_write(7, 4, b"\x02\x00")
    driver.dma_write("dma0", IOVA, b"x")
    assert peer.shared.view[0] == ord("x")


@pytest.mark.row("driver", 43)
@pytest.mark.row("xen", 35)
def test_xen_v7_maps_bars_too_and_no_other_memory_of_devices(make_driver):
    from ..interfaces.pv.conftest import V7

    v7 = V7(make_driver().start(profile=Profile.XEN_V7))
    assert v7.init() == 0
    put(v7.driver.machine.endpoints["dma1"], 2, SHARED, 8)
    ctx = v7.attached("dma0")
    assert v7.map(ctx, IOVA >> 12, SHARED >> 12, 1) == (0, 1)
    assert v7.map(ctx, 0x200, (SHARED >> 12) - 1, 1) == (-Errno.ENOENT, 0)
    v7.driver.dma_write("dma0", IOVA, b"v7")
    assert bytes(v7.driver.machine.endpoints["dma1"].shared.view[:2]) == b"v7"
