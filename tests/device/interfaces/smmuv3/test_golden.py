"""Records that were measured on QEMU 11.1.3's SMMUv3, and where the architecture has it otherwise, what that says.

Those of the rows are in test_rows.py. The stimulus is a write of 4 bytes to IOVA, unless another is named.
"""

import pytest

from pviommu.dma.fault import DmaRefusedError, FaultKind
from smmuv3.commands import Opcode, cfgi, tlbi

from .conftest import CD0, CDS, IOVA, LEAF, OUTSIDE, PAGE, SID, STTB, TTB, VTCR

S2LEAF = 0x7F3 | 0xC0
"""AF, readable and writeable."""
IN_S2, TT_S2, CD_S2 = 0x28000000000, 0x18000000000, 0x8000000000
"""Dword 1 of a fault of stage 2, by class, for a write: RnW is the transaction's in each of them."""


def record(kind, dword1=0x20000000000, iova=IOVA, last=0):
    return (SID << 32 | kind, dword1, iova, last)


@pytest.mark.parametrize(("level", "descriptor"), [(3, 0), (3, PAGE | LEAF & ~3 | 1), (0, 0), (2, 0x4000_0000 | 0x740)])
def test_an_invalid_descriptor_at_any_level_is_f_translation(started, level, descriptor):
    started.store_words(started.map()[level], descriptor)

    assert started.refused([record(0x10)])


def test_a_block_of_512_gib_is_none_with_4_kib_pages(started):
    """QEMU takes it."""
    started.store_words(started.map()[0], 0x744 | 1)

    assert started.refused([record(0x10)])


@pytest.mark.parametrize("bits", [1 << 6, 0])
def test_a_device_is_privileged_so_ap_1_does_not_matter(started, bits):
    started.store_words(started.leaf, (PAGE | LEAF) & ~(1 << 6) | bits)

    assert started.lands(PAGE | 0x560)


def test_aptable_0_does_not_matter_either(started):
    started.map(middle=1 << 61)

    assert started.lands(PAGE | 0x560)


def test_an_output_beyond_the_oas_comes_before_the_access_flag(started):
    """In QEMU it comes last."""
    started.store_words(started.leaf, 1 << 44 | LEAF & ~(1 << 10))

    assert started.refused([record(0x11)])


def test_with_epd0_there_is_no_lower_half(started):
    started.cd(CD0 | 1 << 14)

    assert started.refused([record(0x10)])


def test_without_both_halves_nothing_of_their_tables_matters(started):
    started.cd(CD0 | 1 << 14 | 1 << 15 | 3 << 6, ttb0=1 << 44)

    assert started.refused([record(0x10)])


def test_a_smaller_half_ends_sooner(started):
    started.cd(CD0 & ~0x3F | 25, ttb0=TTB)

    assert started.refused([record(0x10)])


def test_a_bypassing_stream_beyond_the_oas_is_f_addr_size(started):
    started.ste(1 | 4 << 1)

    assert started.refused([record(0x11, iova=1 << 44)], 1 << 44)


def test_while_translation_is_off_that_is_an_abort_without_an_event(started):
    started.driver.set("CR0", 0x4)

    assert started.put(1 << 44).kind is FaultKind.BLOCKED
    assert started.records() == []


def test_an_unaligned_access_is_one_event(started):
    """QEMU makes three of it."""
    started.store_words(started.leaf, 0)

    assert started.refused([record(0x10, iova=IOVA + 7)], IOVA + 7)


def test_of_a_long_access_the_first_byte_that_is_refused_is_told(started):
    with pytest.raises(DmaRefusedError) as refused:
        started.dma.read([(IOVA, 0x2000)])

    assert refused.value.fault.iova == (IOVA | 0xFFF) + 1
    assert started.records() == [record(0x10, 0x20800000000, (IOVA | 0xFFF) + 1)]


# -- stage 2 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def second(make_guest):
    """A guest whose stream has stage 2 only: IOVA leads to PAGE."""
    guest = make_guest(stage2=True).start()
    guest.ste(6 << 1 | 1, 0, VTCR, STTB)
    guest.leaf = guest.map(PAGE | S2LEAF, root=STTB, bits=44)[-1]
    return guest


def test_stage_2_alone_translates(second):
    assert second.lands(PAGE | 0x560)


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(0, 0x10), (PAGE | S2LEAF & ~0x80, 0x13), (PAGE | S2LEAF & ~0x400, 0x12), (1 << 44 | S2LEAF, 0x11)],
)
def test_faults_of_stage_2_have_its_bit_and_the_page_of_the_ipa(second, leaf, kind):
    second.store_words(second.leaf, leaf)

    assert second.refused([record(kind, IN_S2, last=IOVA & ~0xFFF)])


def test_an_ipa_beyond_stage_2_is_f_translation(second):
    second.ste(6 << 1 | 1, 0, VTCR & ~(0x3F << 32 | 3 << 38) | 30 << 32 | 1 << 38, STTB)
    second.issue(cfgi(Opcode.CFGI_STE, SID))

    assert second.refused([record(0x10, IN_S2, last=IOVA & ~0xFFF)])


def test_an_ipa_beyond_the_ias_is_refused_by_the_stage_1_that_is_bypassed(second):
    assert second.refused([record(0x11, iova=1 << 44)], 1 << 44)


def test_without_s2r_faults_of_stage_2_are_not_recorded(second):
    second.ste(6 << 1 | 1, 0, VTCR & ~(1 << 58), STTB)
    second.store_words(second.leaf, 0)

    assert second.put().kind is FaultKind.NOT_MAPPED
    assert second.records() == []


def test_a_table_of_stage_2_that_cannot_be_read_is_f_walk_eabt(second):
    second.ste(6 << 1 | 1, 0, VTCR, OUTSIDE)

    assert second.refused([record(0x0B, IN_S2, last=OUTSIDE + 8)])


@pytest.mark.parametrize(
    ("dword2", "s2ttb"),
    [
        (VTCR & ~(0x3F << 32) | 10 << 32, STTB),
        (VTCR | 3 << 38, STTB),
        (VTCR | 3 << 46, STTB),
        (VTCR | 1 << 57, STTB),
        (VTCR | 1 << 52, STTB),
        (VTCR | 1 << 55, STTB),
        (VTCR | 1 << 56, STTB),
        (VTCR & ~(1 << 51), STTB),
        (VTCR, 1 << 44),
        (VTCR & ~(7 << 48), 1 << 32),
        (VTCR & ~(0x3F << 32) | 25 << 32, STTB),
        (VTCR & ~(0x3F << 32) | 19 << 32, STTB),
        (VTCR & ~(0x3F << 32 | 3 << 38) | 40 << 32, STTB),
    ],
    ids=["T0SZ", "SL0", "TG", "S2S", "ENDI", "HD", "HA", "AA64", "TTB", "PS", "SL0 with T0SZ", "IAS", "T0SZ 40"],
)
def test_an_illegal_stage_2_is_c_bad_ste(second, dword2, s2ttb):
    second.ste(6 << 1 | 1, 0, dword2, s2ttb)

    assert second.refused([record(0x04, 0, 0)])


def test_a_stage_2_without_the_option_is_c_bad_ste(started):
    started.ste(6 << 1 | 1, 0, VTCR, STTB)

    assert started.refused([record(0x04, 0, 0)])


# -- nested ---------------------------------------------------------------------------------------------------------


DOWN = 0x1000_0000
S2BLOCK = S2LEAF & ~2


@pytest.fixture
def nested(make_guest):
    """A guest whose stream has both stages. All IPAs are DOWN below their addresses; stage 2 has blocks of 2 MiB, in
    which the CD, two tables each, and the page are."""
    guest = make_guest(stage2=True).start()
    guest.ste(CDS - DOWN | 0xF, 0xD6, VTCR, STTB)
    guest.cd(ttb0=TTB - DOWN)
    places = guest.map(PAGE - DOWN | LEAF)
    for place in places[:-1]:
        guest.store_words(place, guest.word(place) - DOWN)
    guest.leaf = places[-1]
    guest.second = {
        at: guest.map(at | S2BLOCK, at - DOWN, root=STTB, bits=44, stop=2)[-1]
        for at in (CDS, TTB, TTB + 0x20_0000, PAGE)
    }
    return guest


def test_both_stages_translate(nested):
    assert nested.lands(PAGE | 0x560)


@pytest.mark.parametrize(
    ("broken", "kind", "leaf", "dword1", "ipa"),
    [
        (PAGE, 0x10, 0, IN_S2, PAGE - DOWN),
        (PAGE, 0x13, PAGE | S2BLOCK & ~0x80, IN_S2, PAGE - DOWN),
        (TTB, 0x10, 0, TT_S2, TTB - DOWN),
        (TTB + 0x20_0000, 0x10, 0, TT_S2, TTB + 0x20_0000 - DOWN),
        (TTB, 0x13, TTB | S2BLOCK & ~0x40, TT_S2 | 1 << 44, TTB - DOWN),
        (CDS, 0x10, 0, CD_S2, CDS - DOWN),
        (CDS, 0x12, CDS | S2BLOCK & ~0x400, CD_S2, CDS - DOWN),
    ],
)
def test_what_stage_2_refuses_is_told_with_what_was_read(nested, broken, kind, leaf, dword1, ipa):
    nested.store_words(nested.second[broken], leaf)

    assert nested.refused([record(kind, dword1, last=ipa)])


def test_a_table_of_stage_1_that_cannot_be_read_is_told_with_its_physical_address(nested):
    """7.3.12: stage 2 has translated the address of the descriptor by then."""
    nested.store_words(nested.second[TTB + 0x20_0000], OUTSIDE | S2BLOCK)

    assert nested.refused([record(0x0B, 0x10000000000, last=OUTSIDE + (IOVA >> 21 & 511) * 8)])


def test_what_stage_1_refuses_is_as_without_a_stage_2(nested):
    nested.store_words(nested.leaf, PAGE - DOWN | LEAF | 0x80)

    assert nested.refused([record(0x13)])


def test_the_address_that_stage_1_gives_may_be_beyond_stage_2(nested):
    nested.ste(CDS - DOWN | 0xF, 0xD6, VTCR & ~(0x3F << 32 | 3 << 38) | 33 << 32 | 1 << 38, STTB + 0x10_0000)
    nested.store_words(nested.leaf, 1 << 31 | LEAF)

    assert nested.refused([record(0x10, IN_S2, last=1 << 31)])


def test_invalidations_are_of_a_stage_and_a_vmid(make_guest):
    guest = make_guest(stage2=True).start()
    guest.ste(6 << 1 | 1, 0, VTCR | 3, STTB)
    leaf = guest.map(PAGE | S2LEAF, root=STTB, bits=44)[-1]
    assert guest.lands(PAGE | 0x560)
    other = PAGE + 0x1000

    for command, is_new in (
        (tlbi(Opcode.TLBI_NH_ALL, vmid=3), False),
        (tlbi(Opcode.TLBI_S2_IPA, IOVA, vmid=4), False),
        (tlbi(Opcode.TLBI_S2_IPA, IOVA + 0x1000, vmid=3), False),
        (tlbi(Opcode.TLBI_S2_IPA, IOVA, vmid=3), True),
        (tlbi(Opcode.TLBI_S12_VMALL, vmid=4), False),
        (tlbi(Opcode.TLBI_S12_VMALL, vmid=3), True),
        (tlbi(Opcode.TLBI_NSNH_ALL), True),
    ):
        before, after = (PAGE, other) if guest.word(leaf) == PAGE | S2LEAF else (other, PAGE)
        assert guest.lands(before | 0x560)
        guest.store_words(leaf, after | S2LEAF)
        guest.issue(command)
        assert guest.lands((after if is_new else before) | 0x560), command
        guest.store_words(leaf, (after if is_new else before) | S2LEAF)
