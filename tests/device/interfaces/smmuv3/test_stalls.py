"""Faults that stall (IHI 0070, 3.12.2): the transaction waits, software maps what it wants and resumes it."""

import pytest

from pviommu.dma.fault import DmaPendingError, FaultKind
from pviommu.interfaces.smmuv3.config import SmmuConfig
from pviommu.interfaces.smmuv3.stalls import Outcome, Stalls
from smmuv3.commands import Opcode, cfgi, resume, stall_term
from smmuv3.events import Event, EventType
from smmuv3.registers import CommandError, Idr0, Idr5

from .conftest import CD0, CDS, DATA, IOVA, LEAF, PAGE, SID, STTB, VTCR

pytestmark = pytest.mark.row("smmu", 33)

CD_S, CD_R, S1STALLD = 1 << 44, 1 << 45, 1 << 27
STALL, CLASS_IN, READ = 1 << 31, 2 << 40, 1 << 35
S2S, S2 = 1 << 57, 1 << 39


def record(stag=0, kind=0x10, iova=IOVA, more=0, last=0):
    return (SID << 32 | kind, CLASS_IN | STALL | stag | more, iova, last)


@pytest.fixture
def stalling(make_guest):
    """A guest whose CD has faults stall, and whose only leaf is invalid."""
    guest = make_guest(stalls=4).start()
    guest.cd(CD0 | CD_S)
    guest.store_words(guest.leaf, 0)
    return guest


def waits(guest, iova=IOVA, path=None):
    """Whether a write to ``iova`` waits; nobody is told otherwise."""
    with pytest.raises(DmaPendingError):
        (path or guest.dma).write([(iova, 4)], DATA)
    return True


def test_the_identification_says_how_many_may_stall(make_guest):
    driver = make_guest(stalls=4).driver

    assert Idr0(driver.get("IDR0")).STALL_MODEL == 0
    assert Idr5(driver.get("IDR5")).STALL_MAX == 4


@pytest.mark.parametrize("stalls", [-1, 1 << 16])
def test_an_impossible_number_of_stalls_is_refused_by_name(stalls):
    with pytest.raises(ValueError, match=rf"stalls {stalls}: must be 0\.\.65535"):
        SmmuConfig(stalls=stalls)


def test_a_fault_is_told_once_with_a_tag_while_its_transaction_waits(stalling):
    assert waits(stalling)
    assert waits(stalling)

    assert stalling.records() == [record()]


def test_resumed_after_the_page_was_mapped_it_arrives(stalling):
    assert waits(stalling)
    stalling.map()
    assert waits(stalling), "nobody has decided yet"

    stalling.issue(resume(SID, 0, retry=True))

    assert stalling.lands(PAGE | 0x560)
    assert stalling.records() == [record()]


def test_resumed_although_nothing_was_mapped_it_stalls_again_with_another_tag(stalling):
    assert waits(stalling)
    stalling.issue(resume(SID, 0, retry=True))

    assert waits(stalling)
    assert stalling.records() == [record(0), record(1)]


def test_aborted_it_is_refused_without_another_event_whatever_is_mapped_by_then(stalling):
    assert waits(stalling)
    stalling.map()
    stalling.issue(resume(SID, 0, retry=False))
    stalling.store(PAGE | 0x560, bytes(4))

    fault = stalling.put()

    assert (fault.kind, fault.iova) == (FaultKind.NOT_MAPPED, IOVA)
    assert stalling.load(PAGE | 0x560, 4) == bytes(4)
    assert stalling.records() == [record()]
    assert stalling.lands(PAGE | 0x560), "the next one is translated"


@pytest.mark.parametrize(("sid", "stag"), [(SID + 1, 0), (SID, 1), (SID, 0xFFFF)])
def test_a_resume_that_fits_no_stalled_transaction_does_nothing(stalling, sid, stag):
    assert waits(stalling)
    stalling.issue(resume(sid, stag, retry=False))

    assert waits(stalling)
    assert len(stalling.smmu.stalls.waiting) == 1


def test_stall_term_aborts_those_of_its_stream(stalling):
    assert waits(stalling)
    stalling.issue(stall_term(SID + 1))
    assert waits(stalling)

    stalling.issue(stall_term(SID))

    assert stalling.put().kind is FaultKind.NOT_MAPPED
    assert stalling.records() == [record()]


def test_a_given_up_request_keeps_its_tag_until_software_decides(stalling):
    assert waits(stalling)
    stalling.dma.give_up()

    assert waits(stalling, IOVA + 0x1000)
    assert stalling.records() == [record(0), record(1, iova=IOVA + 0x1000)]


def test_with_as_many_as_there_may_be_a_further_one_waits_without_an_event(make_guest):
    guest = make_guest(stalls=1).start()
    guest.cd(CD0 | CD_S)
    guest.store_words(guest.leaf, 0)
    assert waits(guest)
    guest.dma.give_up()

    assert waits(guest, IOVA + 0x1000)
    assert guest.records() == [record()]
    guest.issue(resume(SID, 0, retry=False))
    assert waits(guest, IOVA + 0x1000)
    assert guest.records() == [record(iova=IOVA + 0x1000)]


def test_an_event_of_a_stall_waits_for_room_in_the_queue_and_is_no_overflow(make_guest):
    guest = make_guest(stalls=4, queue_bits=(8, 1)).start()
    for _ in range(2):
        assert guest.put(IOVA + 0x1000).kind is FaultKind.NOT_MAPPED
    guest.cd(CD0 | CD_S)
    guest.issue(cfgi(Opcode.CFGI_CD, SID, ssid=0))
    guest.store_words(guest.leaf, 0)

    assert waits(guest)
    assert guest.driver.get("EVENTQ_PROD") == 2, "full, and no overflow"
    assert len(guest.records()) == 2
    assert waits(guest)
    assert guest.records() == [record()]


@pytest.mark.parametrize(
    ("leaf", "kind"), [(PAGE | LEAF & ~(1 << 10), 0x12), (PAGE | LEAF | 1 << 7, 0x13), (1 << 44 | LEAF, 0x11)]
)
def test_all_faults_of_translation_stall(stalling, leaf, kind):
    stalling.store_words(stalling.leaf, leaf)

    assert waits(stalling)
    assert stalling.records() == [record(kind=kind)]


def test_a_read_is_told_as_one(stalling):
    with pytest.raises(DmaPendingError):
        stalling.dma.read([(IOVA, 4)])

    assert stalling.records() == [record(more=READ)]


def test_a_stalled_fault_is_told_whatever_cd_r_says(stalling):
    stalling.cd(CD0 & ~CD_R | CD_S)

    assert waits(stalling)
    assert stalling.records() == [record()]


def test_a_table_that_cannot_be_read_does_not_stall(stalling):
    stalling.cd(CD0 | CD_S, ttb0=0x8000_0000)

    assert stalling.refused([(SID << 32 | 0x0B, 1 << 40, IOVA, 0x8000_0008)])


def test_a_stream_that_may_not_stall_has_no_cd_that_says_so(stalling):
    stalling.ste(CDS | 0xB, 0xD6 | S1STALLD)

    assert stalling.refused([(SID << 32 | 0x0A, 0, 0, 0)])


def test_a_stream_that_may_not_stall_terminates(stalling):
    stalling.cd()
    stalling.ste(CDS | 0xB, 0xD6 | S1STALLD)

    assert stalling.refused([(SID << 32 | 0x10, CLASS_IN, IOVA, 0)])


def test_faults_of_stage_2_stall_if_the_ste_says_so(make_guest):
    guest = make_guest(stalls=4, stage2=True).start()
    guest.ste(6 << 1 | 1, 0, VTCR | S2S, STTB)

    assert waits(guest)
    assert guest.records() == [record(more=S2, last=IOVA & ~0xFFF)]
    guest.map(PAGE | 0x7F3, root=STTB, bits=44)
    guest.issue(resume(SID, 0, retry=True))
    assert guest.lands(PAGE | 0x560)


def test_a_reset_of_the_smmu_aborts_what_is_stalled(stalling):
    assert waits(stalling)

    stalling.smmu.reset()

    assert stalling.put().kind is FaultKind.NOT_MAPPED
    assert stalling.smmu.stalls.waiting == ()


@pytest.mark.parametrize("command", [resume(SID, 0, retry=True), stall_term(SID)])
def test_for_a_secure_stream_the_commands_are_illegal(stalling, command):
    secure = (int.from_bytes(command, "little") | 1 << 10).to_bytes(16, "little")
    stalling.driver.issue(secure)
    stalling.smmu.work()

    assert stalling.driver.get("CMDQ_CONS") >> 24 & 0x7F == CommandError.ILL


@pytest.mark.parametrize("command", [resume(SID, 0, retry=True), stall_term(SID)])
def test_without_the_option_the_commands_are_illegal(started, command):
    started.driver.issue(command)
    started.smmu.work()

    assert started.driver.get("CMDQ_CONS") >> 24 & 0x7F == CommandError.ILL


def test_tags_are_not_used_twice_at_a_time():
    stalls = Stalls(3, lambda _: True)
    event = Event(EventType.F_TRANSLATION, SID)
    tags = [stalls.begin(event).stag for _ in range(3)]
    stalls.resume(SID, 1, Outcome.RETRY)

    assert (sorted(tags), stalls.begin(event).stag, stalls.begin(event)) == ([0, 1, 2], 1, None)
