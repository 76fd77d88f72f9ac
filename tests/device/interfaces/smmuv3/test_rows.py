"""Rows 1 to 32 of the conformance page: the architecture's rules, and what was measured on another SMMUv3."""

import pytest

from pviommu.dma.fault import FaultKind
from pviommu.engine import Access, Stop
from pviommu.guest.smmuv3 import CommandFailedError
from pviommu.interfaces.smmuv3.stream import ParentFault
from smmuv3.commands import ALL_STREAMS, COMMAND, Cfgi0, Completion, Opcode, cfgi, sync, tlbi
from smmuv3.registers import Cr0, GlobalError, StreamTableConfig, Vector

from .conftest import (
    CD0,
    CDS,
    DATA,
    IOVA,
    LEAF,
    OUTSIDE,
    PAGE,
    PARENT,
    SID,
    STREAM,
    TABLE,
    TTB,
    VTCR,
)

WRITE_FAULT, READ_FAULT = 0x20000000000, 0x20800000000
"""Dword 1: class IN, and RnW."""


def record(kind, iova=IOVA, dword1=WRITE_FAULT, last=0):
    return (SID << 32 | kind, dword1, iova, last)


def bad(kind, last=0):
    return (SID << 32 | kind, 0, 0, last)


def two_levels(guest, descriptor, *, split=8, index=0):
    """A stream table of two levels, of which one descriptor of the first is written."""
    guest.store_words(TABLE + 8 * index, descriptor)
    guest.driver.reset(TABLE, StreamTableConfig(FMT=1, SPLIT=split, LOG2SIZE=16))


@pytest.mark.row("smmu", 1)
def test_identification_registers_have_their_values_and_keep_them(guest):
    names = ("IDR0", "IDR1", "IDR2", "IDR3", "IDR4", "IDR5", "IIDR", "AIDR")
    expected = [0x0D44101A, 0x014A0010, 0, 0x1404, 0, 0x74, 0, 1]

    for name in names:
        guest.driver.set(name, 0xFFFFFFFF)

    assert [guest.driver.get(name) for name in names] == expected


@pytest.mark.row("smmu", 1)
def test_with_a_stage_2_of_the_guests_own_it_is_identified(make_guest):
    driver = make_guest(stage2=True).driver

    assert (driver.get("IDR0"), driver.get("IDR3")) == (0x0D44101B, 0x1414)


@pytest.mark.row("smmu", 2)
@pytest.mark.parametrize(("written", "acknowledged"), [(0x1F5, 0x5), (0xFFFFFFFF, 0xD), (0xD, 0xD), (0, 0)])
def test_cr0ack_shows_what_is_implemented(guest, written, acknowledged):
    guest.driver.set("CR0", written)

    assert (guest.driver.get("CR0"), guest.driver.get("CR0ACK")) == (acknowledged, acknowledged)


@pytest.mark.row("smmu", 3)
def test_gbpa_needs_update_and_says_what_happens_while_translation_is_off(guest):
    driver = guest.driver
    driver.set("CR0", Cr0.EVENTQEN)
    assert driver.get("GBPA") == 0x1000
    assert guest.lands(PAGE, PAGE)

    driver.set("GBPA", 0x00100000)
    assert driver.get("GBPA") == 0x1000
    driver.set("GBPA", 0x80101000)
    assert driver.get("GBPA") == 0x00101000
    assert guest.put(PAGE).kind is FaultKind.BLOCKED
    assert driver.get("EVENTQ_PROD") == 0
    driver.set("GBPA", 0x80001000)

    assert guest.lands(PAGE, PAGE)


@pytest.mark.row("smmu", 4)
def test_the_reset_of_linux_comes_through_step_by_step(started):
    driver = started.driver

    assert driver.steps == [
        "disabled",
        "CR1 and CR2",
        "stream table",
        "command queue",
        "configuration invalidated",
        "translations invalidated",
        "event queue",
        "interrupts",
        "enabled",
    ]
    assert (driver.get("CR0ACK"), driver.get("IRQ_CTRLACK")) == (0xD, 0x5)
    assert driver.get("CMDQ_CONS") == driver.get("CMDQ_PROD") == 4
    assert driver.get("GERROR") == driver.get("GERRORN") == 0
    assert (driver.get("CR1"), driver.get("CR2")) == (0xD75, 0x6)

    driver.reset(TABLE, 5)  # of a kernel that is started by another one: translation was on

    assert driver.steps[0] == "GBPA"
    assert driver.get("GBPA") == 0x101000


@pytest.mark.row("smmu", 5)
def test_stage_1_of_four_levels_leads_to_the_page(guest):
    guest.ste(CDS | 0xB, 0xD6)
    guest.cd(0x0007E205C0003510)
    guest.map(0x50000F47)
    guest.driver.reset(TABLE, 5)

    assert guest.put(0x8080604560) is None
    assert guest.load(0x50000560, 4) == DATA
    assert guest.records() == []


@pytest.mark.row("smmu", 6)
def test_an_invalid_leaf_is_f_translation_of_a_write_or_a_read(started):
    started.store_words(started.leaf, 0)

    assert started.put().kind is FaultKind.NOT_MAPPED
    assert started.records() == [(0x800000010, 0x20000000000, 0x8080604560, 0)]
    assert started.get().iova == IOVA
    assert started.records() == [(0x800000010, 0x20800000000, 0x8080604560, 0)]


@pytest.mark.row("smmu", 7)
@pytest.mark.parametrize(("clear", "put", "kind"), [(1 << 10, 0, 0x12), (1 << 10, 1 << 7, 0x12), (0, 1 << 7, 0x13)])
def test_the_access_flag_comes_before_permission(started, clear, put, kind):
    started.store_words(started.leaf, (PAGE | LEAF) & ~clear | put)

    assert started.refused([record(kind)])
    assert isinstance(started.get(), bytes) == (kind == 0x13)


@pytest.mark.row("smmu", 8)
def test_an_output_address_beyond_the_oas_is_f_addr_size(started):
    started.store_words(started.leaf, 1 << 44 | LEAF)

    assert started.refused([record(0x11)])


@pytest.mark.row("smmu", 9)
def test_aptable_forbids_writes_unless_had_is_set(started):
    started.map(middle=0b10 << 61)
    assert started.refused([record(0x13)])

    started.cd(had=1)
    started.issue(cfgi(Opcode.CFGI_CD, SID))

    assert started.lands(PAGE | 0x560)


@pytest.mark.row("smmu", 10)
def test_without_r_a_fault_is_not_recorded(guest):
    guest.start()
    guest.cd(CD0 & ~(1 << 45))
    guest.store_words(guest.leaf, 0)

    assert guest.put().kind is FaultKind.NOT_MAPPED
    assert guest.driver.get("EVENTQ_PROD") == 0


@pytest.mark.row("smmu", 11)
@pytest.mark.parametrize(
    ("cd0", "ttb0"),
    [
        (CD0 & ~(1 << 31), TTB),
        (CD0 & ~(1 << 41), TTB),
        (CD0 & ~0x3F | 15, TTB),
        (CD0 & ~0x3F | 40, TTB),
        (CD0 | 3 << 6, TTB),
        (CD0, 1 << 44),
        (CD0 & ~(1 << 46), TTB),
        (CD0 | 1 << 44, TTB),
        (CD0 | 1 << 43, TTB),
        (CD0 | 1 << 42, TTB),
        (CD0 | 1 << 15, TTB),
        (CD0 & ~(1 << 30) | 16 << 16, TTB),
    ],
    ids=["V", "AA64", "T0SZ 15", "T0SZ 40", "TG0", "TTB0", "A", "S", "HA", "HD", "ENDI", "TG1"],
)
def test_an_illegal_cd_is_c_bad_cd(guest, cd0, ttb0):
    guest.start()
    guest.cd(cd0, ttb0)

    assert guest.refused([bad(0x0A)])


@pytest.mark.row("smmu", 12)
@pytest.mark.parametrize("iova", [1 << 48 | IOVA, 0xFFFF_0000_0000_0000 | IOVA, 1 << 63 | IOVA])
def test_an_address_outside_both_halves_is_f_translation_with_all_its_bits(started, iova):
    assert started.refused([record(0x10, iova)], iova)


@pytest.mark.row("smmu", 13)
def test_a_table_outside_ram_is_f_walk_eabt_with_the_descriptors_address(started):
    started.cd(ttb0=OUTSIDE)
    assert started.refused([(0x80000000B, 0x10000000000, IOVA, OUTSIDE + 8)])

    started.issue(cfgi(Opcode.CFGI_CD, SID))
    started.cd()
    started.store_words(started.map()[2], OUTSIDE | 3)
    started.issue(cfgi(Opcode.CFGI_CD, SID))

    assert started.refused([(0x80000000B, 0x10000000000, IOVA, OUTSIDE + 0x20)])


@pytest.mark.row("smmu", 14)
def test_an_illegal_ste_is_c_bad_ste(guest):
    guest.start()
    for dword0, dword1 in ((CDS | 0xA, 0xD6), (1 << 59 | CDS | 0xB, 0xD6), (CDS | 0xB, 0xD6 | 1 << 27)):
        guest.ste(dword0, dword1)
        assert guest.refused([bad(0x04)])


@pytest.mark.row("smmu", 14)
@pytest.mark.parametrize("config", [0, 1, 2, 3])
def test_config_abort_and_the_reserved_ones_abort_without_an_event(guest, config):
    guest.start()
    guest.ste(1 | config << 1)

    assert guest.put().kind is FaultKind.BLOCKED
    assert guest.records() == []


@pytest.mark.row("smmu", 14)
def test_config_bypass_leads_to_the_parents_address(guest):
    guest.start()
    guest.ste(1 | 4 << 1)

    assert guest.lands(PAGE + 0x1230, PAGE + 0x1230)
    assert guest.records() == []


@pytest.mark.row("smmu", 15)
def test_structures_outside_ram_are_told_with_their_address_in_the_last_dword(guest):
    guest.start()
    guest.ste(OUTSIDE | 0xB, 0xD6)
    assert guest.refused([bad(0x09, OUTSIDE)])

    guest.driver.reset(OUTSIDE, 5)

    assert guest.refused([bad(0x03, OUTSIDE + SID * 64)])


@pytest.mark.row("smmu", 16)
def test_a_streamid_beyond_a_linear_table_is_c_bad_streamid(guest):
    guest.start(log2size=2)

    assert guest.refused([bad(0x02)])


@pytest.mark.row("smmu", 16)
@pytest.mark.parametrize("span", [0, 10, 12, 4])
def test_a_streamid_beyond_its_second_level_is_c_bad_streamid(guest, span):
    """Span 4 is 8 entries, so StreamID 8 is the first that is not there."""
    guest.start()
    guest.stage1(sid=SID)
    two_levels(guest, 0x4180_0000 | span)

    assert guest.refused([bad(0x02)])


@pytest.mark.row("smmu", 16)
@pytest.mark.parametrize("span", [5, 9])
def test_a_second_level_that_reaches_has_the_ste(guest, span):
    guest.start()
    guest.ste(CDS | 0xB, 0xD6, table=0x4180_0000)
    two_levels(guest, 0x4180_0000 | span)

    assert guest.lands(PAGE | 0x560)


@pytest.mark.row("smmu", 16)
def test_a_streamid_out_of_range_is_recorded_only_if_that_is_wanted(guest):
    guest.start()
    guest.driver.set("CR0", Cr0.EVENTQEN | Cr0.CMDQEN)
    guest.driver.set("CR2", 0)
    guest.driver.set("STRTAB_BASE_CFG", 2)
    guest.driver.set("CR0", 0xD)

    assert guest.put().kind is FaultKind.BLOCKED
    assert guest.records() == []


@pytest.mark.row("smmu", 17)
@pytest.mark.parametrize(("split", "effective"), [(11, 6), (0, 6), (7, 6), (8, 8), (10, 10)])
def test_a_reserved_split_is_as_6(make_guest, split, effective):
    guest = make_guest()
    sid = 0x345
    guest.engine.add_endpoint(7)
    guest.smmu.bind(7, sid)
    guest.smmu.attach(7)
    guest.start()
    guest.ste(CDS | 0xB, 0xD6, sid=sid & (1 << effective) - 1, table=0x4180_0000)

    two_levels(guest, 0x4180_0000 | effective + 1, split=split, index=sid >> effective)

    assert guest.lands(PAGE | 0x560, path=guest.path(stream=7))


ASID = 7
OTHER = PAGE + 0x1000


@pytest.mark.row("smmu", 18)
def test_scale_has_five_bits_so_a_sixth_makes_no_range(started):
    first, second = COMMAND.unpack(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=ASID, granule=1))
    with pytest.raises(CommandFailedError, match="ILL"):
        started.issue(COMMAND.pack(first | 1 << 25, second))


@pytest.mark.row("smmu", 18)
@pytest.mark.parametrize(
    ("command", "is_new"),
    [
        (None, False),
        (tlbi(Opcode.TLBI_NH_VA, IOVA, asid=ASID), True),
        (tlbi(Opcode.TLBI_NH_VA, IOVA, asid=ASID, leaf=True), True),
        (tlbi(Opcode.TLBI_NH_VA, IOVA, asid=ASID + 1), False),
        (tlbi(Opcode.TLBI_NH_VA, IOVA + 0x1000, asid=ASID), False),
        (tlbi(Opcode.TLBI_NH_VA, IOVA - 0x7000, asid=ASID, granule=1, num=7), True),
        (tlbi(Opcode.TLBI_NH_VA, IOVA - 0x8000, asid=ASID, granule=1, num=7), False),
        (tlbi(Opcode.TLBI_NH_VA, IOVA - 0x8000, asid=ASID, granule=1, num=0, scale=4), True),
        (tlbi(Opcode.TLBI_NH_VA, IOVA - 0x1F000, asid=ASID, granule=2, num=7), True),
        (tlbi(Opcode.TLBI_NH_VAA, IOVA), True),
        (tlbi(Opcode.TLBI_NH_VAA, IOVA + 0x1000), False),
        (tlbi(Opcode.TLBI_NH_ASID, asid=ASID), True),
        (tlbi(Opcode.TLBI_NH_ASID, asid=ASID + 1), False),
        (tlbi(Opcode.TLBI_NH_ALL), True),
        (tlbi(Opcode.TLBI_NSNH_ALL), True),
        (cfgi(Opcode.CFGI_STE_RANGE, span=ALL_STREAMS), False),
    ],
)
def test_a_changed_leaf_is_seen_after_an_invalidation_that_is_about_it(started, command, is_new):
    assert started.lands(PAGE | 0x560)
    started.store_words(started.leaf, OTHER | LEAF)

    if command:
        started.issue(command)

    assert started.lands((OTHER if is_new else PAGE) | 0x560)


@pytest.mark.row("smmu", 19)
def test_a_leaf_that_becomes_valid_needs_no_invalidation(started):
    started.store_words(started.leaf, 0)
    assert started.refused([record(0x10)])

    started.store_words(started.leaf, PAGE | LEAF)

    assert started.lands(PAGE | 0x560)


@pytest.mark.row("smmu", 20)
@pytest.mark.parametrize(
    ("command", "is_new"),
    [
        (None, False),
        (cfgi(Opcode.CFGI_CD, SID), True),
        (cfgi(Opcode.CFGI_CD, SID + 1), False),
        (cfgi(Opcode.CFGI_CD_ALL, SID), True),
        (cfgi(Opcode.CFGI_CD_ALL, SID + 1), False),
        (cfgi(Opcode.CFGI_STE, SID, leaf=True), True),
        (cfgi(Opcode.CFGI_STE, SID + 1), False),
        (cfgi(Opcode.CFGI_STE_RANGE, SID, span=2), True),
        (cfgi(Opcode.CFGI_STE_RANGE, SID + 7, span=2), True),
        (cfgi(Opcode.CFGI_STE_RANGE, 0x10, span=2), False),
        (cfgi(Opcode.CFGI_STE_RANGE, 0x10, span=4), True),
        (cfgi(Opcode.CFGI_STE_RANGE, span=ALL_STREAMS), True),
        (tlbi(Opcode.TLBI_NSNH_ALL), False),
    ],
)
def test_a_changed_cd_is_seen_after_an_invalidation_that_is_about_it(started, command, is_new):
    assert started.lands(PAGE | 0x560)
    started.map(OTHER | LEAF, root=0x4380_0000)
    started.cd(CD0 & ~(0xFFFF << 48) | 8 << 48, ttb0=0x4380_0000)

    if command:
        started.issue(command)

    assert started.lands((OTHER if is_new else PAGE) | 0x560)


@pytest.mark.row("smmu", 20)
def test_a_range_of_streams_is_aligned_to_its_size(make_guest):
    guest = make_guest()
    sids = [0xF, 0x10, 0x17, 0x18]
    for stream, sid in enumerate(sids, 10):
        guest.engine.add_endpoint(stream)
        guest.smmu.bind(stream, sid)
        guest.smmu.attach(stream)
    guest.start()
    paths = [guest.path(stream=stream) for stream in range(10, 14)]
    for sid, path in zip(sids, paths, strict=True):
        guest.stage1(sid=sid)
        assert guest.put(path=path) is None
        guest.ste(1, sid=sid)

    guest.issue(cfgi(Opcode.CFGI_STE_RANGE, 0x10, span=2))

    assert [guest.put(path=path) is None for path in paths] == [True, False, False, True]


@pytest.mark.row("smmu", 21)
def test_an_illegal_command_stops_the_queue_until_it_is_repaired_and_acknowledged(started):
    driver = started.driver
    driver.issue(*[sync()] * (0x1C - 4))
    driver.drain()

    driver.issue(COMMAND.pack(0xFF, 0))
    started.smmu.work()
    assert (driver.get("CMDQ_CONS"), driver.get("GERROR"), driver.get("GERRORN")) == (0x0100001C, 1, 0)
    assert started.interrupts == [Vector.GERROR]

    driver.issue(sync())
    started.smmu.work()
    assert (driver.get("CMDQ_CONS"), driver.get("GERROR")) == (0x0100001C, 1)

    driver.set("GERRORN", 1)
    started.smmu.work()
    assert (driver.get("CMDQ_CONS"), driver.get("GERROR"), driver.get("GERRORN")) == (0x0100001C, 0, 1)

    assert driver.on_gerror() == GlobalError.CMDQ_ERR
    started.smmu.work()

    assert (driver.get("CMDQ_CONS"), driver.get("GERROR"), driver.get("GERRORN")) == (0x0100001E, 0, 0)


@pytest.mark.row("smmu", 22)
def test_a_command_that_cannot_be_read_is_an_abort_and_is_tried_again(guest):
    driver = guest.driver
    driver.set("CMDQ_BASE", OUTSIDE | 8)
    driver.set("CR0", Cr0.CMDQEN)
    driver.set("CMDQ_PROD", 1)

    guest.smmu.work()
    assert (driver.get("CMDQ_CONS"), driver.get("GERROR")) == (0x02000000, 1)
    driver.set("GERRORN", 1)
    assert guest.smmu.is_waiting()
    guest.smmu.work()

    assert (driver.get("CMDQ_CONS"), driver.get("GERROR"), driver.get("GERRORN")) == (0x02000000, 0, 1)


@pytest.mark.row("smmu", 23)
@pytest.mark.parametrize(
    "opcode", [Opcode.CFGI_STE, Opcode.CFGI_STE_RANGE, Opcode.CFGI_CD, Opcode.CFGI_CD_ALL, Opcode.PREFETCH_CFG]
)
def test_a_command_for_a_secure_stream_is_illegal(started, opcode):
    started.driver.issue(COMMAND.pack(Cfgi0(OPCODE=opcode, SID=SID, SSEC=1), 0))

    with pytest.raises(CommandFailedError, match="ILL at index 0x4 of the command queue"):
        started.driver.drain()


@pytest.mark.row("smmu", 23)
@pytest.mark.parametrize("opcode", [Opcode.PREFETCH_CFG, Opcode.PREFETCH_ADDR])
def test_a_prefetch_is_consumed(started, opcode):
    started.issue(cfgi(opcode, SID))

    assert started.driver.get("CMDQ_CONS") == 6


@pytest.mark.row("smmu", 24)
@pytest.mark.parametrize(
    ("completion", "interrupts"),
    [(Completion.NONE, []), (Completion.IRQ, [Vector.CMD_SYNC]), (Completion.SEV, [])],
)
def test_only_a_sync_that_asks_for_it_interrupts(started, completion, interrupts):
    started.driver.set("IRQ_CTRL", 0)

    started.driver.sync(completion)

    assert started.interrupts == interrupts


@pytest.mark.row("smmu", 24)
@pytest.mark.parametrize(
    ("enabled", "interrupts"),
    [(0, []), (1, [Vector.GERROR]), (4, [Vector.EVENTQ]), (5, [Vector.EVENTQ, Vector.GERROR])],
)
def test_interrupts_of_events_and_errors_have_to_be_enabled(started, enabled, interrupts):
    started.driver.set("IRQ_CTRL", enabled)
    assert started.driver.get("IRQ_CTRLACK") == enabled
    started.store_words(started.leaf, 0)

    started.put()
    started.put()  # the queue is not empty any more
    started.driver.issue(COMMAND.pack(0xFF, 0))
    started.smmu.work()

    assert started.interrupts == interrupts


@pytest.mark.row("smmu", 25)
def test_events_beyond_the_queue_are_lost_and_the_overflow_is_told(make_guest):
    guest = make_guest(queue_bits=(8, 2)).start()
    driver = guest.driver
    guest.store_words(guest.leaf, 0)

    for _ in range(6):
        guest.put()

    assert (driver.get("EVENTQ_PROD"), driver.get("GERROR")) == (1 << 31 | 4, 0)
    events, lost = driver.on_eventq()
    assert (len(events), lost) == (4, True)
    assert driver.get("EVENTQ_CONS") == driver.get("EVENTQ_PROD")
    guest.put()
    assert driver.get("EVENTQ_PROD") == 1 << 31 | 5
    events, lost = driver.on_eventq()
    assert (len(events), lost) == (1, False)


@pytest.mark.row("smmu", 26)
def test_an_event_that_cannot_be_written_is_a_global_error(started):
    driver = started.driver
    driver.set("CR0", 0x9)
    driver.set("EVENTQ_BASE", OUTSIDE | 7)
    driver.set("CR0", 0xD)
    started.store_words(started.leaf, 0)

    started.put()
    started.put()

    assert driver.get("GERROR") ^ driver.get("GERRORN") == GlobalError.EVENTQ_ABT_ERR
    assert driver.get("EVENTQ_PROD") == 0
    assert started.interrupts == [Vector.GERROR]


def cd0_of(tg0, t0sz):
    return CD0 & ~0xFF | tg0 << 6 | t0sz


@pytest.mark.row("smmu", 27)
@pytest.mark.parametrize(
    ("granule", "tg0", "t0sz", "start"),
    [(14, 2, 16, 0), (16, 1, 16, 1), (14, 2, 24, 1), (16, 1, 24, 2)],
)
@pytest.mark.parametrize("stop", [2, 3])
def test_larger_granules_have_pages_and_one_block_each(guest, granule, tg0, t0sz, start, stop):
    guest.start()
    root, target = 0x4600_0000, 0x4000_0000
    kind = 3 if stop == 3 else 1
    places = guest.map(
        target | 0x744 | kind, root=root, granule=granule, start=start, bits=64 - t0sz, stop=stop, iova=IOVA
    )
    guest.cd(cd0_of(tg0, t0sz), ttb0=root)
    size = 1 << granule + (3 - stop) * (granule - 3)

    assert guest.lands(target + IOVA % size)
    if stop == 3:
        guest.store_words(places[-1], target | 0x744 | 1)
        guest.issue(tlbi(Opcode.TLBI_NH_ALL))
        assert guest.refused([record(0x10)])


@pytest.mark.row("smmu", 28)
def test_the_upper_half_has_tables_of_its_own(guest):
    guest.start()
    upper = 0xFFFF_0000_0000_0000 | IOVA
    guest.cd(CD0 & ~(1 << 30) | 1 << 14 | 2 << 22 | 16 << 16, ttb0=0, ttb1=TTB)

    assert guest.lands(PAGE | 0x560, upper)
    assert guest.refused([record(0x10)])
    guest.store_words(guest.leaf, OTHER | LEAF)
    guest.issue(tlbi(Opcode.TLBI_NH_VA, upper, asid=ASID))
    assert guest.lands(OTHER | 0x560, upper)


QOS = {
    0x4E4D0000: 0x800000004E4D1003,
    0x4E4D0008: 0x800000004E4D1003,
    0x4E4D1008: 0x800000004E4D2003,
    0x4E4D1010: 0x800000004E4D2003,
    0x4E4D2018: 0x800000004E4D3003,
    0x4E4D2390: 0x800000004E4D3003,
    0x4E4D23B0: 0x800000004E4D3003,
    0x4E4D2380: 0x800000004E4D3003,
    0x4E4D35D0: 0x040000004ECBA7E3,
    0x4E4D3680: 0x040000004E4D0763,
    0x4E4D3688: 0x040000004E4D1763,
    0x4E4D3690: 0x040000004E4D2763,
    0x4E4D3698: 0x040000004E4D3763,
    0x4E4D3BC0: 0x040000004E178763,
}


@pytest.mark.row("smmu", 29)
@pytest.mark.parametrize(
    ("config", "leaf", "cds"),
    [(5, 0x040000004ECBA763, 0x4E178FC0), (6, 0x040000004ECBA7E3, 0), (7, 0x040000004ECBA763, 0x4E178FC0)],
    ids=["stage 1", "stage 2", "nested"],
)
def test_qemus_own_vector(make_guest, config, leaf, cds):
    guest = make_guest(stage2=True)
    for place, descriptor in QOS.items():
        guest.store_words(place, descriptor)
    guest.store_words(0x4E4D3020, leaf)
    guest.ste(cds | config << 1 | 1, 0xD6, VTCR, 0x4E4D0000, table=0x4E179000)
    guest.cd(place=0x4E178FC0, ttb0=0x4E4D0000)
    guest.driver.reset(0x4E179000, 5)

    assert guest.lands(0x4ECBA567, 0x8080604567)
    assert guest.records() == []


@pytest.mark.row("smmu", 30)
def test_what_the_parent_refuses_its_owner_is_told_and_the_guest_is_not(started):
    started.engine.unmap(PARENT, PAGE >> 12, 1)

    assert started.put().iova == IOVA
    assert started.driver.get("EVENTQ_PROD") == 0
    assert started.parent_faults == [ParentFault(PARENT, STREAM, 0x8080604560, PAGE | 0x560, Access.WRITE)]


@pytest.mark.row("smmu", 31)
def test_a_streamid_that_nobody_has_is_configured_silently_and_nobody_attaches_without_one(started):
    started.issue(cfgi(Opcode.CFGI_STE, 0x77), cfgi(Opcode.CFGI_CD, 0x77))
    assert not started.driver.is_active(GlobalError.CMDQ_ERR)

    started.engine.add_endpoint(5)

    assert started.smmu.attach(5) is Stop.NO_ENDPOINT
    assert started.smmu.attach(6) is Stop.NO_ENDPOINT
    assert started.engine.endpoints()[5] == 0
    assert started.engine.translate(5, PAGE, 4, Access.READ)[0].gpa == PAGE
    started.smmu.bind(6, 0x78)
    assert started.smmu.attach(6) is Stop.NO_ENDPOINT
    with pytest.raises(ValueError, match="stream 5: not attached to this SMMU"):
        started.smmu.translator(5)


@pytest.mark.row("smmu", 32)
def test_ten_thousand_commands_leave_a_ring_of_another_interface_responsive(make_guest, make_driver):
    guest = make_guest(cmdq_bits=14, queue_bits=(14, 7)).start()
    first = guest.driver.get("CMDQ_PROD")
    commands = [sync(Completion.IRQ) if each % 100 == 99 else cfgi(Opcode.CFGI_STE, SID) for each in range(10_000)]
    for index, command in enumerate(commands, first):
        guest.driver.put(index, command)
    guest.driver.set("CMDQ_PROD", first + 10_000)
    pv = make_driver().start()

    consumed, turns = [], 0
    while guest.smmu.work():  # what the loop does: a turn of one, and a turn of the other
        turns += 1
        consumed.append(guest.driver.get("CMDQ_CONS") - first)
        assert pv.alloc() == (0, turns)

    assert consumed == [256 * each for each in range(1, turns + 1)]
    assert guest.driver.get("CMDQ_CONS") == first + 10_000
    assert guest.interrupts == [Vector.CMD_SYNC] * 100
