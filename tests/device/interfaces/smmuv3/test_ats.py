"""ATS (IHI 0070, 3.9.1, 4.5.1, 13.6): an endpoint asks for translations, keeps them, and forgets them when told."""

from __future__ import annotations

import pytest

from pviommu.dma.atc import Invalidation
from pviommu.dma.fault import FaultKind
from pviommu.engine import Access
from pviommu.guest.smmuv3 import CommandFailedError, StuckError
from pviommu.interfaces.smmuv3.config import SmmuConfig
from smmuv3.commands import Opcode, atc_inv, cfgi, sync, tlbi
from smmuv3.registers import CommandError, Cr0, GlobalError, Idr0
from smmuv3.structures import Ste0, Ste1, SteAts, SubstreamDefault

from .conftest import CD0, CDS, IOVA, LEAF, PAGE, SID, STTB, VTCR

pytestmark = pytest.mark.row("smmu", 37)

TARGET = PAGE | 0x560
OTHER = PAGE + 0x10_0000
S2R, S2S, S2, IN, READ = 1 << 58, 1 << 57, 1 << 39, 2 << 40, 1 << 35
S2_LEAF = 0x7FD
"""Stage 2: AF, inner shareable, read and write, normal memory, a block."""


def record(kind, dword1=0, address=0, last=0):
    return (SID << 32 | kind, dword1, address, last)


def eats(guest, mode=SteAts.FULL, config=5, vtcr=0, s2ttb=0, **ste1):
    guest.ste(Ste0(CDS | 1, CONFIG=config), Ste1(0xD4, S1DSS=2, EATS=mode, **ste1), vtcr, s2ttb)
    return guest


def begin(guest, mode=SteAts.FULL, *, check=True):
    """A guest that is started, with this EATS."""
    guest.start()
    eats(guest, mode)
    if not check:
        guest.driver.set("CR0", guest.driver.get("CR0") & ~Cr0.ATSCHK)
    guest.issue(cfgi(Opcode.CFGI_STE, SID))
    return guest


@pytest.fixture
def ats(make_guest):
    """One whose endpoint has full ATS, and CR0.ATSCHK."""
    return begin(make_guest(ats=True))


def nested(guest, mode=SteAts.SPLIT, vtcr=VTCR):
    """Both stages. Stage 2 maps 1 GiB from RAM on 1:1, and 1 GiB from 0x80000000 on to RAM."""
    guest.start()
    guest.map(0x4000_0000 | S2_LEAF, 0x4000_0000, root=STTB, bits=44, stop=1)
    guest.store_words(STTB + 0x10_0000 + 2 * 8, 0x4000_0000 | S2_LEAF)
    eats(guest, mode, 7, vtcr, STTB)
    guest.issue(cfgi(Opcode.CFGI_STE, SID), tlbi(Opcode.TLBI_NSNH_ALL))
    return guest


def unmapped_and_invalidated(guest):
    """The page is unmapped, and the SMMU forgets it: not the endpoint."""
    guest.store_words(guest.leaf, 0)
    guest.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7, leaf=True))


def test_it_is_absent_unless_it_is_configured(make_guest):
    assert Idr0(make_guest().driver.get("IDR0")).ATS == 0
    assert Idr0(make_guest(ats=True).driver.get("IDR0")).ATS == 1


@pytest.mark.parametrize(("settings", "kept"), [({}, 0xD), ({"ats": True}, 0x1D)])
def test_atschk_can_be_set_where_there_is_ats(make_guest, settings, kept):
    driver = make_guest(**settings).driver
    driver.set("CR0", 0x1D)

    assert (driver.get("CR0"), driver.get("CR0ACK")) == (kept, kept)


def test_without_it_atc_inv_is_illegal_and_eats_means_nothing(started):
    eats(started)
    with pytest.raises(CommandFailedError, match="ILL"):
        started.issue(atc_inv(SID))

    assert started.lands(TARGET)


def test_what_the_endpoint_has_been_told_is_used_until_it_is_told_otherwise(ats):
    assert ats.lands(TARGET)
    assert len(ats.atc) == 1
    unmapped_and_invalidated(ats)
    assert ats.lands(TARGET), "a translated transaction, for which no table is read"

    ats.issue(atc_inv(SID, IOVA, 0))

    assert len(ats.atc) == 0
    assert ats.refused([record(0x10, IN, IOVA)]), "the endpoint asks without ATS, and that is told"


def test_turned_off_at_the_endpoint_the_smmu_translates_as_ever(ats):
    ats.has_ats = False
    assert ats.lands(TARGET)
    assert len(ats.atc) == 0

    unmapped_and_invalidated(ats)

    assert ats.refused([record(0x10, IN, IOVA)])


def test_a_read_is_not_told_that_it_may_write_where_that_is_refused(ats):
    ats.map(PAGE | LEAF | 1 << 7)
    ats.store(TARGET, b"read")

    assert ats.get() == b"read"
    assert ats.atc.find(None, IOVA, Access.READ).access == Access.READ
    assert ats.refused([record(0x13, IN, IOVA)])
    assert ats.get() == b"read"


def test_a_block_is_one_entry(ats):
    ats.map(0x5020_0000 | LEAF & ~2, stop=2, iova=IOVA)
    ats.issue(tlbi(Opcode.TLBI_NH_ALL))
    at = 0x5020_0000 | IOVA & 0x1FFFFF

    assert ats.lands(at)
    assert ats.lands(at & ~0x1FFFFF | 0x10, IOVA & ~0x1FFFFF | 0x10)
    assert ats.atc.find(None, IOVA, Access.READ).shift == 21
    assert len(ats.atc) == 1


def test_one_that_is_smaller_than_the_unit_of_the_endpoint_is_not_kept(ats):
    ats.atc.unit = lambda: 16

    assert ats.lands(TARGET)
    assert len(ats.atc) == 0


def test_what_has_been_there_longest_makes_room(ats):
    for page in range(40):
        ats.map(PAGE + (page << 12) | LEAF, IOVA + (page << 12))
    for page in range(40):
        assert ats.lands(TARGET + (page << 12), IOVA + (page << 12))

    assert len(ats.atc) == 32
    assert ats.atc.find(None, IOVA, Access.READ) is None
    assert ats.atc.find(None, IOVA + (39 << 12), Access.READ)


# -- answers to translation requests, and events (tables of 3.9.1.2) ------------------------------------------------


def granted(guest):
    """Whether the endpoint is given a translation when it asks for one."""
    before = len(guest.atc)
    guest.put()
    return len(guest.atc) > before


@pytest.mark.parametrize("mode", [SteAts.NONE, 3])
def test_a_request_of_a_stream_without_ats_is_told_and_the_ordinary_one_behind_it_passes(make_guest, mode):
    guest = begin(make_guest(ats=True), mode)

    assert guest.lands(TARGET)
    assert len(guest.atc) == 0
    assert guest.records() == [record(0x05, 0, IOVA)]


def test_so_is_one_of_a_bypassing_stream(ats):
    eats(ats, config=4)
    ats.issue(cfgi(Opcode.CFGI_STE, SID))

    assert ats.lands(TARGET, TARGET)
    assert ats.records() == [record(0x05, 0, TARGET)]


def test_and_one_while_translation_is_off(ats):
    ats.driver.set("CR0", Cr0.EVENTQEN)

    assert ats.lands(TARGET, TARGET)
    assert ats.records() == [record(0x05, 0, TARGET)]


def test_one_of_an_aborting_stream_is_refused_without_an_event(ats):
    eats(ats, config=0)
    ats.issue(cfgi(Opcode.CFGI_STE, SID))

    assert ats.put().kind is FaultKind.BLOCKED
    assert ats.records() == []


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(0, 0x10), (PAGE | LEAF & ~(1 << 10), 0x12), (1 << 45 | LEAF, 0x11), (PAGE | LEAF | 1 << 7, 0x13)],
    ids=["translation", "access flag", "address size", "permission"],
)
def test_a_fault_of_a_request_is_no_event_but_that_of_the_ordinary_one_behind_it_is(ats, leaf, kind):
    ats.map(leaf)

    assert not granted(ats)
    assert ats.records() == [record(kind, IN, IOVA)]


def test_nor_is_a_wrong_configuration(ats):
    ats.cd(0)
    ats.issue(cfgi(Opcode.CFGI_CD_ALL, SID))

    assert not granted(ats)
    assert ats.records() == [record(0x0A)]


def test_a_stall_is_of_the_ordinary_request_only(make_guest):
    guest = begin(make_guest(ats=True, stalls=2))
    guest.cd(CD0 | 1 << 44)
    guest.store_words(guest.leaf, 0)
    guest.issue(cfgi(Opcode.CFGI_CD_ALL, SID))
    walker = guest.smmu.translator(1)._walker

    assert walker.request(IOVA, Access.WRITE).event is None
    assert guest.smmu.stalls.waiting == ()


def test_a_stage_1_that_is_skipped_gives_what_was_asked_for(make_guest):
    guest = begin(make_guest(ats=True, ssid_bits=4))
    guest.ste(Ste0(CDS | 1, CONFIG=5, S1CDMAX=4), Ste1(0xD4, S1DSS=SubstreamDefault.BYPASS, EATS=1))
    guest.issue(cfgi(Opcode.CFGI_STE, SID))

    assert guest.lands(TARGET, TARGET)
    assert guest.atc.find(None, TARGET, Access.WRITE).output == 0


@pytest.mark.parametrize("ssid", [0, 3, 15])
def test_a_substream_that_there_is_not_gets_an_abort_and_no_event_of_the_request(make_guest, ssid):
    guest = begin(make_guest(ats=True, ssid_bits=4))
    path = guest.path(ssid)

    assert guest.put(path=path) is not None
    assert len(guest.atc) == 0
    assert guest.records() == [(SID << 32 | ssid << 12 | 0x08, 0, 0, 0)]


# -- translated transactions (tables of 3.9.1.3) --------------------------------------------------------------------


def translated(guest, *, to=SteAts.NONE, config=5):
    """The endpoint has a translation; then EATS and Config are changed."""
    assert guest.lands(TARGET)
    eats(guest, to, config)
    guest.issue(cfgi(Opcode.CFGI_STE, SID))


@pytest.mark.parametrize(("to", "config"), [(SteAts.NONE, 5), (3, 5), (SteAts.FULL, 4)])
def test_one_of_a_stream_without_ats_is_forbidden_and_told(ats, to, config):
    translated(ats, to=to, config=config)

    fault = ats.put()

    assert (fault.kind, fault.iova) == (FaultKind.BLOCKED, IOVA)
    assert ats.records() == [record(0x07, 0, TARGET)], "by the translated address"
    assert isinstance(ats.get(), object)
    assert ats.records() == [record(0x07, READ, TARGET)]


@pytest.mark.parametrize(("to", "config"), [(SteAts.NONE, 5), (SteAts.FULL, 0), (SteAts.FULL, 4)])
def test_unchecked_it_passes_whatever_the_stream_is(make_guest, to, config):
    guest = begin(make_guest(ats=True), check=False)
    translated(guest, to=to, config=config)

    assert guest.lands(TARGET)
    assert guest.records() == []


def test_one_of_an_aborting_stream_is_aborted_without_an_event(ats):
    translated(ats, to=SteAts.FULL, config=0)

    assert ats.put().kind is FaultKind.BLOCKED
    assert ats.records() == []


def test_one_of_a_stream_whose_ste_is_wrong_too(ats):
    assert ats.lands(TARGET)
    ats.ste(0)
    ats.issue(cfgi(Opcode.CFGI_STE, SID))

    assert ats.put().kind is FaultKind.BLOCKED
    assert ats.records() == []


def test_while_translation_is_off_it_is_forbidden(ats):
    assert ats.lands(TARGET)
    ats.driver.set("CR0", Cr0.EVENTQEN)

    assert ats.put().kind is FaultKind.BLOCKED
    assert ats.records() == [record(0x07, 0, TARGET)]


def test_what_the_parent_refuses_its_owner_is_told_and_not_the_guest(ats):
    assert ats.lands(TARGET)
    ats.engine.unmap(1, PAGE >> 12, 1)

    assert ats.put().iova == IOVA
    assert ats.records() == []
    assert [(each.iova, each.ipa, each.during_walk) for each in ats.parent_faults] == [(IOVA, TARGET, False)]


# -- split-stage ATS (13.6.3) ---------------------------------------------------------------------------------------


def test_split_the_endpoint_is_told_what_stage_1_says_and_stage_2_is_applied_to_each(make_guest):
    guest = nested(make_guest(ats=True, stage2=True))
    guest.map(PAGE + 0x4000_0000 | LEAF)
    guest.issue(tlbi(Opcode.TLBI_NSNH_ALL))

    assert guest.lands(TARGET)
    assert guest.atc.find(None, IOVA, Access.WRITE)[:2] == (PAGE + 0x4000_0000, 12)

    guest.store_words(STTB + 0x10_0000 + 2 * 8, 0)
    guest.issue(tlbi(Opcode.TLBI_NSNH_ALL))

    assert guest.put().iova == IOVA
    ipa = TARGET + 0x4000_0000
    assert guest.records() == [record(0x10, IN | S2, ipa, ipa & ~0xFFF)]


def test_full_the_endpoint_is_told_what_both_stages_say(make_guest):
    guest = nested(make_guest(ats=True, stage2=True), SteAts.FULL)
    guest.map(PAGE + 0x4000_0000 | LEAF)
    guest.issue(tlbi(Opcode.TLBI_NSNH_ALL))

    assert guest.lands(TARGET)
    assert guest.atc.find(None, IOVA, Access.WRITE).output == PAGE


def test_split_is_as_none_without_atschk(make_guest):
    guest = nested(make_guest(ats=True, stage2=True))
    guest.driver.set("CR0", guest.driver.get("CR0") & ~Cr0.ATSCHK)

    assert guest.lands(TARGET)
    assert guest.records() == [record(0x05, 0, IOVA)]


@pytest.mark.parametrize(
    ("mode", "config", "vtcr"),
    [(SteAts.SPLIT, 5, VTCR), (SteAts.SPLIT, 6, VTCR), (SteAts.SPLIT, 7, VTCR | S2S), (SteAts.FULL, 7, VTCR | S2S)],
)
def test_an_eats_that_the_rest_of_the_ste_excludes_is_c_bad_ste(make_guest, mode, config, vtcr):
    guest = nested(make_guest(ats=True, stage2=True, stalls=1))
    eats(guest, mode, config, vtcr, STTB)
    guest.issue(cfgi(Opcode.CFGI_STE, SID))

    assert guest.refused([record(0x04)])


# -- ATC_INV and CMD_SYNC (4.5.1, 3.9.1.4) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "size", "is_gone"),
    [(IOVA, 0, True), (IOVA + 0x1000, 0, False), (IOVA + 0x1000, 4, True), (IOVA + 0x100000, 8, False), (0, 52, True)],
)
def test_an_invalidation_is_of_pages_that_are_aligned_to_their_number(ats, address, size, is_gone):
    assert ats.lands(TARGET)

    ats.issue(atc_inv(SID, address, size))

    assert (len(ats.atc) == 0) is is_gone


def test_one_of_more_than_all_addresses_or_of_a_secure_stream_is_illegal(ats):
    for command in (atc_inv(SID, 0, 53), (1 << 10 | 0x40).to_bytes(8, "little") + bytes(8)):
        with pytest.raises(CommandFailedError, match="ILL"):
            ats.issue(command)
        ats.driver.on_gerror()
        ats.driver.drain()


def test_one_for_a_stream_without_an_atc_or_while_translation_is_off_does_nothing(ats):
    assert ats.lands(TARGET)
    ats.issue(atc_inv(SID + 1))
    ats.driver.set("CR0", Cr0.CMDQEN)
    ats.issue(atc_inv(SID))

    assert len(ats.atc) == 1


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ({}, set()),
        ({"ssid": 5}, {None, 6}),
        ({"ssid": 7}, {None, 5, 6}),
        ({"ssid": 7, "every_ssid": True}, {None}),
    ],
)
def test_an_invalidation_is_of_a_substream_of_all_of_them_or_of_everything(make_guest, told, left):
    guest = begin(make_guest(ats=True, ssid_bits=4))
    for ssid in (None, 5, 6):
        guest.atc.add(ssid, IOVA, PAGE, 12, Access.READ)

    guest.issue(atc_inv(SID, IOVA, 0, **told))

    assert {ssid for ssid in (None, 5, 6) if guest.atc.find(ssid, IOVA, Access.READ)} == left


def test_without_substreams_ssv_means_nothing(ats):
    assert ats.lands(TARGET)

    ats.issue(atc_inv(SID, IOVA, 0, ssid=3))

    assert len(ats.atc) == 0


@pytest.fixture
def unanswered(ats):
    """One whose endpoint has not answered an invalidation; CMD_SYNC has come to wait for it."""
    ats.answers = []
    ats.smmu.invalidations.complete = lambda *each: ats.answers.append(each)
    ats.driver.issue(atc_inv(SID), sync())
    assert ats.smmu.work() is False
    return ats


def test_a_sync_waits_for_the_answer(unanswered):
    driver = unanswered.driver
    assert driver.get("CMDQ_CONS") == driver.get("CMDQ_PROD") - 1
    assert not unanswered.smmu.is_waiting()

    unanswered.smmu.invalidations._complete(*unanswered.answers[0])

    assert unanswered.smmu.is_waiting()
    driver.drain()
    assert driver.get("GERROR") == driver.get("GERRORN")


def test_commands_before_a_sync_do_not(ats):
    ats.smmu.invalidations.complete = lambda *_: None
    ats.driver.issue(atc_inv(SID), tlbi(Opcode.TLBI_NSNH_ALL))
    ats.driver.drain()

    with pytest.raises(StuckError):
        ats.driver.sync()


def test_a_sync_that_has_waited_too_long_says_so_and_passes_when_that_is_acknowledged(unanswered):
    driver = unanswered.driver
    place = driver.get("CMDQ_CONS") & 0xFFFFF
    [expire] = unanswered.timers

    expire()

    with pytest.raises(CommandFailedError) as failed:
        driver.drain()
    assert (failed.value.error, failed.value.index) == (CommandError.ATC_INV_SYNC, place)
    assert driver.is_active(GlobalError.CMDQ_ERR)
    driver.on_gerror()
    driver.drain()
    assert not driver.is_active(GlobalError.CMDQ_ERR)
    unanswered.issue()


def test_a_reset_ends_the_wait(unanswered):
    unanswered.smmu.reset()

    assert len(unanswered.smmu.invalidations) == 0
    assert begin(unanswered).lands(TARGET)


# -- a strict cache -------------------------------------------------------------------------------------------------


def test_strict_an_invalidation_that_is_missing_shows_when_its_entry_is_used(make_guest):
    guest = begin(make_guest(ats=True, strict=True))
    assert guest.lands(TARGET)
    assert guest.lands(TARGET)
    assert guest.stale == []
    unmapped_and_invalidated(guest)

    assert guest.lands(TARGET)

    [stale] = guest.stale
    assert (stale.what, stale.sid, stale.ssid, stale.address) == ("ATC", SID, None, IOVA)
    assert stale.cached == (TARGET, Access.READ | Access.WRITE)
    assert stale.now.status.name == "DENIED"


def test_strict_a_page_that_has_moved_shows_too(make_guest):
    guest = begin(make_guest(ats=True, strict=True))
    assert guest.lands(TARGET)
    guest.map(OTHER | LEAF)
    guest.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7, leaf=True))

    assert guest.lands(TARGET)

    assert [(each.what, each.now[0]) for each in guest.stale] == [("ATC", OTHER | 0x560)]


def test_strict_nothing_shows_after_the_right_invalidation(make_guest):
    guest = begin(make_guest(ats=True, strict=True))
    assert guest.lands(TARGET)
    guest.map(OTHER | LEAF)
    guest.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7, leaf=True))
    guest.issue(atc_inv(SID, IOVA, 0))

    assert guest.lands(OTHER | 0x560)
    assert guest.stale == []


def test_an_invalidation_concerns_what_it_says():
    assert Invalidation(0, 1).concerns(5)
    assert not Invalidation(0, 1, 5, every_pasid=True).concerns(None)
    assert SmmuConfig(ats=True).identification()["IDR0"] == 0x0D44141A
