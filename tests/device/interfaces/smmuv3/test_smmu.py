"""Settings, register rules, queues and streams that no row is about; and guests that mean harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.engine import Access, Stop
from pviommu.engine.walk import Leaf
from pviommu.guest.smmuv3 import CommandFailedError, StuckError
from pviommu.interfaces.smmuv3.caches import Tag
from pviommu.interfaces.smmuv3.config import SmmuConfig
from pviommu.interfaces.smmuv3.configuration import Stream
from pviommu.interfaces.smmuv3.queues import MAX_LOOKED_AT
from pviommu.interfaces.smmuv3.smmu import Smmu
from smmuv3.commands import COMMAND, Opcode, cfgi, sync, tlbi
from smmuv3.registers import REGISTERS, CommandError, Cr0, GlobalError, Vector
from smmuv3.structures import SteConfig

from .conftest import (
    CDS,
    COMMANDS,
    EVENTS,
    IOVA,
    OUTSIDE,
    OWN,
    PAGE,
    PARENT,
    RAM,
    RAM_SIZE,
    SID,
    STREAM,
    TABLE,
    TTB,
    Guest,
)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"sid_bits": 33}, "sid_bits 33: must be 1..32"),
        ({"ssid_bits": 21}, "ssid_bits 21: must be 0..20"),
        ({"cmdq_bits": 6}, "cmdq_bits 6: must be 7..19"),
        ({"evtq_bits": 0}, "evtq_bits 0: must be 1..19"),
        ({"address_bits": 43}, r"address_bits 43: must be one of \(32, 36, 40, 42, 44, 48\)"),
        ({"cache_entries": -1}, "cache_entries -1: must be 0..65536"),
        ({"commands_per_turn": 0}, "commands_per_turn 0: must be 1..65536"),
    ],
)
def test_settings_have_limits(setting, rule):
    with pytest.raises(ValueError, match=rule):
        SmmuConfig(**setting)


# -- configuration --------------------------------------------------------------------------------------------------


def test_a_pointer_to_cds_beyond_the_oas_is_c_bad_ste(guest):
    """Since SMMUv3.1 (3.4.3); one that leads to no RAM is F_CD_FETCH."""
    guest.start()
    guest.ste(1 << 44 | CDS | 0xB, 0xD6)

    assert guest.refused([(SID << 32 | 0x04, 0, 0, 0)])


def test_without_el2_strw_does_not_matter(guest):
    guest.start()
    guest.ste(CDS | 0xB, 0xD6 | 3 << 30)

    assert guest.lands(PAGE | 0x560)


# -- registers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0x08, 0x30, 0x68, 0xA8, 0xAC, 0xC0, 0x100A0, 0x10000, 0xFC0])
def test_what_is_not_there_reads_0_and_ignores_writes(guest, offset):
    guest.write(offset, b"\xff" * 4)

    assert guest.read(offset, 4) == bytes(4)


@pytest.mark.parametrize(("offset", "size"), [(0x20, 8), (0, 8), (0x20, 2), (0x20, 1), (0x22, 4), (0x84, 8)])
def test_an_access_has_the_size_of_a_register_or_is_half_a_large_one(guest, offset, size):
    guest.write(offset, b"\x01" * size)

    assert guest.read(offset, size) == bytes(size)
    assert guest.driver.get("CR0") == 0


def test_a_base_is_written_in_halves_too(guest):
    guest.write(0x84, (0x12).to_bytes(4, "little"))
    guest.write(0x80, (0x34567FFF).to_bytes(4, "little"))

    assert guest.driver.get("STRTAB_BASE") == 0x12_34567FC0


@pytest.mark.parametrize(
    ("register", "enable"),
    [
        ("STRTAB_BASE", Cr0.SMMUEN),
        ("STRTAB_BASE_CFG", Cr0.SMMUEN),
        ("CR2", Cr0.SMMUEN),
        ("CR1", Cr0.SMMUEN),
        ("CMDQ_BASE", Cr0.CMDQEN),
        ("CMDQ_CONS", Cr0.CMDQEN),
        ("CR1", Cr0.CMDQEN),
        ("EVENTQ_BASE", Cr0.EVENTQEN),
        ("EVENTQ_PROD", Cr0.EVENTQEN),
    ],
)
def test_what_is_in_use_cannot_be_changed(guest, register, enable):
    driver = guest.driver
    driver.set(register, 0x44)
    before = driver.get(register)
    assert before

    driver.set("CR0", enable)
    driver.set(register, 0x82)
    assert driver.get(register) == before
    driver.set("CR0", 0)
    driver.set(register, 0x82)

    assert driver.get(register) != before


def test_only_an_active_error_is_acknowledged(started):
    started.driver.set("GERRORN", 0x1FD)
    assert started.driver.get("GERRORN") == 0

    started.driver.issue(COMMAND.pack(0xFF, 0))
    started.smmu.work()
    started.driver.set("GERRORN", 0x1FD)

    assert started.driver.get("GERRORN") == 1


def test_the_component_is_arms(guest):
    assert [guest.read(offset, 4)[0] for offset in range(0xFF0, 0x1000, 4)] == [0x0D, 0xF0, 0x05, 0xB1]


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode",
    [
        0x00,
        Opcode.CFGI_VMS_PIDM,
        Opcode.TLBI_EL2_ALL,
        Opcode.TLBI_EL3_VA,
        Opcode.TLBI_S12_VMALL,
        Opcode.TLBI_S2_IPA,
        Opcode.ATC_INV,
        Opcode.PRI_RESP,
        Opcode.RESUME,
        Opcode.STALL_TERM,
        0x80,
    ],
)
def test_commands_for_what_is_not_there_are_illegal(started, opcode):
    started.driver.issue(COMMAND.pack(opcode, 0))

    with pytest.raises(CommandFailedError) as failed:
        started.driver.drain()
    assert (failed.value.error, failed.value.index) == (CommandError.ILL, 4)


@pytest.mark.parametrize(
    ("fields", "is_illegal"),
    [
        ({"granule": 1}, True),
        ({"granule": 1, "ttl": 3}, False),
        ({"granule": 1, "num": 1}, False),
        ({"granule": 1, "scale": 1}, False),
        ({"granule": 2, "ttl": 1}, True),
        ({"granule": 2, "ttl": 1, "num": 1}, False),
        ({"granule": 2, "ttl": 2}, False),
        ({"granule": 3, "ttl": 1}, False),
    ],
)
@pytest.mark.parametrize("opcode", [Opcode.TLBI_NH_VA, Opcode.TLBI_NH_VAA, Opcode.TLBI_S2_IPA])
def test_a_granule_without_a_range_or_a_level_is_illegal(make_guest, opcode, fields, is_illegal):
    guest = make_guest(stage2=True).start()

    guest.driver.issue(tlbi(opcode, IOVA, **fields))
    guest.smmu.work()

    assert guest.smmu.registers.is_active(GlobalError.CMDQ_ERR) == is_illegal


def test_a_sync_with_the_reserved_signal_is_illegal(started):
    started.driver.issue(COMMAND.pack(0x46 | 3 << 12, 0))

    with pytest.raises(CommandFailedError, match="ILL at index 0x4"):
        started.driver.drain()


def test_commands_before_an_illegal_one_are_done_and_later_ones_are_not(started):
    driver = started.driver
    assert started.lands(PAGE | 0x560)
    started.ste(1)
    driver.issue(cfgi(Opcode.CFGI_CD, SID), COMMAND.pack(0xFF, 0), cfgi(Opcode.CFGI_STE, SID))
    started.smmu.work()
    assert started.lands(PAGE | 0x560)

    driver.on_gerror()
    driver.sync()

    assert started.put() is not None


def test_the_command_that_cannot_be_read_is_found_among_others(guest):
    """The queue's second page is beyond RAM."""
    driver = guest.driver
    base = RAM + RAM_SIZE - 0x2000
    driver.set("CMDQ_BASE", base | 9)
    for index in range(256):
        guest.store(base + 16 * index, sync())
    guest.engine.unmap(PARENT, base + 0x1000 >> 12, 1)
    driver.set("CR0", Cr0.CMDQEN)
    driver.set("CMDQ_PROD", 300)

    while guest.smmu.work():
        pass

    assert driver.get("CMDQ_CONS") == 0x02000100


def test_a_producer_that_is_more_than_a_queue_ahead_is_not_believed(started):
    started.driver.set("CMDQ_PROD", 4 + 257)

    assert not started.smmu.is_waiting()
    assert not started.smmu.work()
    assert started.driver.get("CMDQ_CONS") == 4


def test_a_queue_that_is_turned_off_is_left_alone(started):
    started.driver.issue(sync())
    started.driver.set("CR0", 0x5)

    assert not started.smmu.work()
    assert started.driver.get("CMDQ_CONS") == 4
    started.driver.set("CR0", 0xD)
    assert started.smmu.is_waiting()
    assert not started.smmu.work()
    assert started.driver.get("CMDQ_CONS") == 5


def test_bits_beyond_the_oas_of_a_queues_address_do_not_count(guest):
    guest.start()
    guest.driver.set("CR0", 0)
    for queue in ("CMDQ_BASE", "EVENTQ_BASE"):
        guest.driver.set(queue, guest.driver.get(queue) | 1 << 44)
    guest.driver.set("CR0", 0xD)
    guest.store_words(guest.leaf, 0)

    guest.issue(sync())

    assert guest.refused([(SID << 32 | 0x10, 2 << 40, IOVA, 0)])


def test_the_queue_wraps(started):
    for _ in range(5):
        started.issue(*[tlbi(Opcode.TLBI_NH_ALL)] * 100)

    assert started.driver.get("CMDQ_CONS") == (4 + 5 * 101) % 512
    assert not started.driver.is_active(GlobalError.CMDQ_ERR)


def test_a_turn_has_a_limit(make_guest):
    guest = make_guest(commands_per_turn=3).start()
    guest.driver.issue(*[sync()] * 7)

    assert [guest.smmu.work() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "command",
    [tlbi(Opcode.TLBI_NH_VA, 1 << 40, asid=7, granule=1, num=31, scale=20), cfgi(Opcode.CFGI_STE, 0xFFFF)],
    ids=["a range that is larger than the cache", "a stream"],
)
def test_a_turn_ends_after_so_many_entries_of_full_caches(make_guest, command):
    """256 commands that look through 65,536 entries each would hold everybody else up for seconds."""
    guest = make_guest(strict=True).start()
    leaf = Leaf(PAGE, 12, Access.READ, 12, 3, 0)
    for number in range(MAX_LOOKED_AT // 2 + 1):
        guest.smmu.caches.stage1.add(Tag(0, 7), number << 12, leaf)
        guest.smmu.caches.streams.put(number, Stream(SteConfig.ABORT))
    guest.driver.issue(*[command] * 5)

    assert [guest.smmu.work() for _ in range(3)] == [True, True, False]
    assert not guest.smmu.registers.is_active(GlobalError.CMDQ_ERR)


def test_a_driver_gives_up_waiting(started):
    started.driver.set("CR0", 0x5)
    with pytest.raises(StuckError, match="CMDQ_CONS is 0x4 and CMDQ_PROD 0x5"):
        started.driver.sync()
    with pytest.raises(StuckError, match="the command queue stays full"):
        started.driver.issue(*[sync()] * 256)


def test_events_are_read_by_linuxs_handler(started):
    started.store_words(started.leaf, 0)
    started.put()

    [event], lost = started.driver.on_eventq()

    assert (event.sid, event.address, event.is_read, lost) == (SID, IOVA, False, False)
    assert started.interrupts == [Vector.EVENTQ]


# -- streams --------------------------------------------------------------------------------------------------------


def test_a_streamid_belongs_to_one_stream(guest):
    for stream, sid, rule in (
        (STREAM, 9, "stream 1: has StreamID 0x8 already"),
        (2, SID, "StreamID 0x8: belongs to another stream"),
        (2, 1 << 16, "StreamID 0x10000: must be below 0x10000"),
    ):
        with pytest.raises(ValueError, match=rule):
            guest.smmu.bind(stream, sid)


def test_an_smmu_stands_on_a_paging_domain(guest):
    with pytest.raises(ValueError, match="domain 0: only a paging domain can be the parent of an SMMU"):
        Smmu(SmmuConfig(), guest.engine, guest.memory, 0, own_stream=5, first_domain=200)


def test_a_stream_is_attached_once_and_what_has_no_room_is_not(guest):
    assert guest.smmu.attach(STREAM) is None
    assert guest.engine.endpoints()[STREAM] == 100

    assert guest.smmu.translator(STREAM, 3) is guest.smmu.translator(STREAM, 3)
    assert guest.engine.free_domain(PARENT) is Stop.ENDPOINTS_ATTACHED


def test_several_smmus_stand_beside_each_other(make_guest):
    guest = make_guest().start()
    second = Smmu(SmmuConfig(), guest.engine, guest.memory, PARENT, own_stream=OWN + 1, first_domain=200)
    guest.engine.add_endpoint(2)
    second.bind(2, SID)
    assert second.attach(2) is None

    assert guest.lands(PAGE | 0x560)
    assert second.read(0x20, 4) == bytes(4)
    assert guest.engine.translate(2, PAGE, 4, Access.READ)[0].gpa == PAGE


def test_the_parents_owner_is_told_of_tables_too(started):
    started.cd(ttb0=OUTSIDE)
    started.put()

    [fault] = started.parent_faults
    assert (fault.ipa, fault.during_walk, fault.stream) == (OUTSIDE + 8, True, STREAM)
    assert len(started.records()) == 1


def test_an_address_beyond_the_output_size_is_not_asked_of_the_parent(started):
    started.driver.reset(1 << 46, 5)

    assert started.put() is not None
    assert started.parent_faults == []
    assert started.records() == [(SID << 32 | 3, 0, 0, (1 << 46) + SID * 64)]


# -- hostile guests -------------------------------------------------------------------------------------------------

PLACES = (TABLE, TABLE + SID * 64, CDS, TTB, TTB + 8, TTB + 0x10_0000, COMMANDS, EVENTS, OUTSIDE, PAGE, 0)
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.tuples(st.sampled_from(PLACES), st.sampled_from([0, 1, 3, 0xB, 0xD, 0xF, 0x744])).map(sum),
)
STEPS = st.one_of(
    st.tuples(st.just("register"), st.sampled_from(REGISTERS), WORDS),
    st.tuples(st.just("memory"), st.sampled_from(PLACES[:-3]), st.integers(0, 7), WORDS),
    st.tuples(st.just("command"), st.sampled_from([*Opcode, 0, 0xFF]), WORDS, WORDS),
    st.tuples(st.just("dma"), st.one_of(WORDS, st.just(IOVA)), st.sampled_from([None, 0, 5])),
    st.tuples(st.just("work")),
)


@settings(deadline=None, max_examples=60)
@given(st.booleans(), st.lists(STEPS, max_size=30))
def test_nothing_that_a_guest_does_raises_or_loops(is_strict, steps):
    guest = Guest(stage2=True, ssid_bits=4, strict=is_strict, cache_entries=4)
    try:
        guest.start()
        for step in steps:
            act(guest, *step)
        while guest.smmu.work():
            pass
        assert len(guest.interrupts) <= 2 * len(steps) + 40
    finally:
        guest.close()


def act(guest, kind, *how):
    if kind == "register":
        register, value = how
        guest.write(register.offset, (value & (1 << 8 * register.size) - 1).to_bytes(register.size, "little"))
    elif kind == "memory":
        place, index, value = how
        guest.store_words(place + 8 * index, value)
    elif kind == "command":
        opcode, first, second = how
        guest.driver.put(guest.driver.get("CMDQ_PROD"), COMMAND.pack(first & ~0xFF | opcode, second))
        guest.driver.set("CMDQ_PROD", guest.driver.get("CMDQ_PROD") + 1 & 0x1FF)
    elif kind == "dma":
        iova, ssid = how
        guest.put(min(iova, (1 << 64) - 4), guest.path(ssid))
    else:
        guest.smmu.work()
