"""PRI (IHI 0070, chapter 8): an endpoint asks for a page that is not there, and waits for the guest's answer."""

from __future__ import annotations

from struct import unpack

import pytest

from pviommu.dma.fault import DmaPendingError, FaultKind
from pviommu.dma.pages import GROUPS, PageRequester, Response
from pviommu.guest.smmuv3 import CommandFailedError
from pviommu.interfaces.smmuv3.config import SmmuConfig
from smmuv3.commands import COMMAND, Opcode, PriResponse, atc_inv, cfgi, pri_resp, tlbi
from smmuv3.page_requests import PageRequest
from smmuv3.registers import Cr0, GlobalError, Idr0, Idr1, IrqControl, QueueBase, Vector
from smmuv3.structures import Ste0, Ste1

from .conftest import CD0, CDS, DATA, IOVA, LEAF, OUTSIDE, PAGE, RAM, SID

pytestmark = pytest.mark.row("smmu", 38)

REQUESTS, BITS = 0x4600_0000, 2
FLAG = 1 << 31
TARGET, HERE = PAGE | 0x560, IOVA & ~0xFFF
ON = int(Cr0.CMDQEN | Cr0.EVENTQEN | Cr0.SMMUEN | Cr0.ATSCHK)


def begin(guest, *, base=REQUESTS, log2size=BITS):
    """A guest with a queue of four page requests, whose only page is not there."""
    guest.start()
    guest.ste(Ste0(CDS | 1, CONFIG=5, S1CDMAX=guest.smmu.config.ssid_bits), Ste1(0xD4, S1DSS=2, EATS=1))
    guest.store_words(guest.leaf, 0)
    driver = guest.driver
    driver.set("PRIQ_BASE", QueueBase(base, LOG2SIZE=log2size))
    driver.set("PRIQ_PROD", 0)
    driver.set("PRIQ_CONS", 0)
    driver.set("IRQ_CTRL", IrqControl.PRIQ_IRQEN)
    driver.set("CR0", ON | Cr0.PRIQEN)
    guest.issue(cfgi(Opcode.CFGI_STE, SID))
    guest.interrupts.clear()
    return guest


@pytest.fixture
def pri(make_guest):
    return begin(make_guest(ats=True, priq_bits=4))


def waits(guest, iova=IOVA, length=4, path=None):
    with pytest.raises(DmaPendingError):
        (path or guest.dma).write([(iova, length)], (DATA * (length // 4 + 1))[:length])
    return True


def asked(guest):
    """The page requests that the guest finds, which are taken from the queue."""
    driver, wrap, found = guest.driver, (2 << BITS) - 1, []
    produced, consumed = driver.get("PRIQ_PROD"), driver.get("PRIQ_CONS")
    while (produced ^ consumed) & wrap:
        found.append(PageRequest.unpack(guest.load(REQUESTS + (consumed & wrap >> 1) * 16, 16)))
        consumed = consumed & FLAG | (consumed & wrap) + 1 & wrap
    driver.set("PRIQ_CONS", consumed)
    return found


def want(group=0, page=HERE, *, ssid=None, reads=False, last=True):
    return PageRequest(SID, ssid, page, group, reads, not reads, last)


def answer(guest, group=0, response=PriResponse.SUCCESS):
    guest.issue(pri_resp(SID, group, response))


def test_it_is_absent_unless_it_is_configured(make_guest):
    driver = make_guest(ats=True).driver
    assert (Idr0(driver.get("IDR0")).PRI, Idr1(driver.get("IDR1")).PRIQS) == (0, 0)
    driver = make_guest(ats=True, priq_bits=4).driver
    assert (Idr0(driver.get("IDR0")).PRI, Idr1(driver.get("IDR1")).PRIQS) == (1, 4)


@pytest.mark.parametrize("name", ["PRIQ_BASE", "PRIQ_PROD", "PRIQ_CONS"])
def test_without_it_its_registers_are_not_there(make_guest, name):
    driver = make_guest(ats=True).driver
    driver.set(name, 0x1F)
    driver.set("CR0", Cr0.PRIQEN)
    driver.set("IRQ_CTRL", IrqControl.PRIQ_IRQEN)

    assert [driver.get(each) for each in (name, "CR0", "IRQ_CTRLACK")] == [0, 0, 0]


def test_without_it_pri_resp_is_illegal(make_guest):
    with pytest.raises(CommandFailedError, match="ILL"):
        make_guest(ats=True).start().issue(pri_resp(SID, 0, PriResponse.SUCCESS))


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"priq_bits": 4}, "priq_bits 4: must be 0 without ats"), ({"ats": True, "priq_bits": 20}, r"must be 0\.\.19")],
)
def test_impossible_settings_are_refused_by_name(settings, text):
    with pytest.raises(ValueError, match=text):
        SmmuConfig(**settings)


def test_place_and_producer_can_be_written_while_the_queue_is_off_only(pri):
    pri.driver.set("PRIQ_BASE", 0)
    pri.driver.set("PRIQ_PROD", 3)
    assert (pri.driver.get("PRIQ_BASE"), pri.driver.get("PRIQ_PROD")) == (REQUESTS | BITS, 0)

    pri.driver.set("CR0", ON)
    pri.driver.set("PRIQ_PROD", 3)

    assert pri.driver.get("PRIQ_PROD") == 3


def test_an_absent_page_is_asked_for_once_and_no_event_is_written(pri):
    assert waits(pri)
    assert waits(pri)

    assert pri.interrupts == [Vector.PRIQ]
    assert asked(pri) == [want()]
    assert pri.records() == []


def test_the_record_is_that_of_the_architecture(pri):
    with pytest.raises(DmaPendingError):
        pri.dma.read([(IOVA, 4)])

    first, second = unpack("<QQ", pri.load(REQUESTS, 16))
    assert first == 1 << 62 | 1 << 60 | SID
    assert second == HERE


def test_answered_after_the_page_was_mapped_it_arrives(pri):
    assert waits(pri)
    pri.map()
    assert waits(pri), "nobody has answered yet"
    answer(pri)

    assert pri.lands(TARGET)
    assert len(pri.atc) == 1
    assert pri.records() == []


def test_answered_although_nothing_was_mapped_it_asks_again(pri):
    assert waits(pri)
    answer(pri)

    assert waits(pri)
    assert asked(pri) == [want(), want()]


@pytest.mark.parametrize("response", [PriResponse.INVALID, PriResponse.FAILURE])
def test_refused_the_dma_is_and_nobody_is_told_who_knows_it(pri, response):
    assert waits(pri)
    answer(pri, response=response)

    fault = pri.put()

    assert (fault.kind, fault.iova) == (FaultKind.NOT_MAPPED, IOVA)
    assert pri.records() == []
    assert waits(pri), "the next one asks anew"


def test_the_pages_of_a_refused_group_are_asked_for_anew_once_its_dma_has_failed(pri):
    assert waits(pri, HERE, 0x4000)
    answer(pri, response=PriResponse.INVALID)
    assert pri.put(HERE).kind is FaultKind.NOT_MAPPED
    asked(pri)

    assert waits(pri, HERE + 0x1000)
    assert asked(pri) == [want(page=HERE + 0x1000)]


def test_a_failure_is_for_good(pri):
    failed = []
    pri.requester.on_failure = lambda: failed.append(True)
    assert waits(pri)
    assert waits(pri, IOVA + 0x1000)
    answer(pri, response=PriResponse.FAILURE)

    assert failed == [True]
    assert len(pri.requester) == 0
    assert pri.put(IOVA + 0x1000) is not None, "no answer to the other group is expected any more"


def test_what_is_not_allowed_is_asked_for_too(pri):
    pri.map(PAGE | LEAF | 1 << 7)

    assert waits(pri)
    assert asked(pri) == [want()]


def test_pages_of_one_request_are_a_group_whose_last_one_says_so(pri):
    pri.map(iova=IOVA + 0x1000)

    assert waits(pri, HERE, 0x4000)

    assert asked(pri) == [
        want(page=HERE, last=False),
        want(page=HERE + 0x2000, last=False),
        want(page=HERE + 0x3000, last=True),
    ]


def test_no_more_is_asked_for_than_the_endpoint_may(pri):
    pri.requester.allocation = lambda: 2
    assert waits(pri, HERE, 0x4000)
    assert asked(pri) == [want(page=HERE, last=False), want(page=HERE + 0x1000)]
    assert waits(pri, HERE + 0x4000)
    assert asked(pri) == []

    answer(pri)

    assert waits(pri, HERE + 0x4000)
    assert asked(pri) == [want(page=HERE + 0x4000)]


def test_a_substream_is_named(make_guest):
    guest = begin(make_guest(ats=True, priq_bits=4, ssid_bits=4))
    guest.cd(CD0 & ~(0xFFFF << 48) | 8 << 48, RAM + 0x0F00_0000, place=CDS + 5 * 64)
    path = guest.path(5)

    assert waits(guest, path=path)

    assert asked(guest) == [want(ssid=5)]


def test_a_configuration_that_is_wrong_is_not_asked_about(pri):
    pri.cd(0)
    pri.issue(cfgi(Opcode.CFGI_CD_ALL, SID))

    assert pri.put() is not None
    assert asked(pri) == []
    assert pri.records() == [(SID << 32 | 0x0A, 0, 0, 0)]


def test_turned_off_at_the_endpoint_nothing_is_asked_for(pri):
    pri.has_pri = False

    assert pri.put() is not None
    assert asked(pri) == []
    assert pri.records() == [(SID << 32 | 0x10, 2 << 40, IOVA, 0)]


def test_one_that_may_ask_for_nothing_does_not_wait(pri):
    pri.requester.allocation = lambda: 0

    assert pri.put().kind is FaultKind.NOT_MAPPED
    assert asked(pri) == []


# -- answers of the SMMU (8.1, 8.2) ---------------------------------------------------------------------------------


def answers(guest):
    """Collects the answers that endpoints get."""
    found, respond = [], guest.smmu.requests.respond
    guest.smmu.requests.respond = lambda sid, group, code: (found.append((group, code)), respond(sid, group, code))[0]
    return found


@pytest.mark.parametrize("missing", [Cr0.PRIQEN, Cr0.SMMUEN])
def test_without_a_queue_the_answer_is_a_failure(pri, missing):
    pri.driver.set("CR0", (ON | Cr0.PRIQEN) & ~missing)

    assert pri.smmu.page_queue.record(want()) is Response.FAILURE
    assert asked(pri) == []


def test_beyond_a_full_queue_the_last_of_a_group_is_answered_as_if_it_were_there(pri):
    found = answers(pri)
    for number in range(4):
        assert waits(pri, HERE + (number << 12))
    driver = pri.driver
    assert driver.get("PRIQ_PROD") == 4

    assert waits(pri, HERE + 0x4000)

    assert driver.get("PRIQ_PROD") == 4 | FLAG
    assert found == [(4, Response.SUCCESS)]
    assert driver.get("GERROR") == driver.get("GERRORN")


@pytest.mark.parametrize(("is_legal", "answered"), [(True, Response.SUCCESS), (False, Response.FAILURE)])
def test_one_with_a_substream_is_answered_by_its_stes_leave(make_guest, is_legal, answered):
    guest = begin(make_guest(ats=True, priq_bits=4, ssid_bits=4), log2size=0)
    guest.smmu.page_queue.record(want())
    if not is_legal:
        guest.ste(Ste0(0))
    guest.issue(cfgi(Opcode.CFGI_STE, SID))

    assert guest.smmu.page_queue.record(want(1, ssid=5, last=False)) is None
    assert guest.smmu.page_queue.record(want(1, ssid=5)) is answered
    assert guest.smmu.page_queue.record(want(1)) is Response.SUCCESS
    assert guest.records() == []


def test_those_before_the_last_are_ignored(pri):
    for number in range(3):
        assert waits(pri, HERE + (number << 12))
    found = answers(pri)

    assert waits(pri, HERE + 0x4000, 0x3000)

    assert found == [(3, Response.SUCCESS)]
    assert [each.is_last for each in asked(pri)] == [True, True, True, False]


def test_nothing_is_written_until_the_overflow_is_acknowledged(pri):
    for number in range(5):
        assert waits(pri, HERE + (number << 12))
    assert len(asked(pri)) == 4
    found = answers(pri)

    assert waits(pri, HERE + 0x4000)
    assert (asked(pri), found) == ([], [(4, Response.SUCCESS)])
    pri.driver.set("PRIQ_CONS", pri.driver.get("PRIQ_CONS") | FLAG)

    assert waits(pri, HERE + 0x4000)
    assert asked(pri) == [want(4, HERE + 0x4000)]


def test_one_that_cannot_be_written_is_a_global_error_and_a_failure(make_guest):
    guest = begin(make_guest(ats=True, priq_bits=4), base=OUTSIDE)
    guest.driver.set("IRQ_CTRL", IrqControl.PRIQ_IRQEN | IrqControl.GERROR_IRQEN)
    found = answers(guest)

    assert waits(guest)

    assert guest.driver.is_active(GlobalError.PRIQ_ABT_ERR)
    assert guest.interrupts == [Vector.GERROR]
    assert guest.driver.get("PRIQ_PROD") == 0
    assert found == [(0, Response.FAILURE)]
    assert guest.put().kind is FaultKind.NOT_MAPPED
    assert guest.smmu.page_queue.record(want()) is Response.FAILURE
    guest.driver.set("GERRORN", guest.driver.get("GERROR"))
    assert not guest.driver.is_active(GlobalError.PRIQ_ABT_ERR)


# -- PRI_RESP (4.5.2) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [COMMAND.pack(SID << 32 | 0x41, 3 << 12), COMMAND.pack(SID << 32 | 1 << 10 | 0x41, 2 << 12)],
    ids=["reserved answer", "secure"],
)
def test_an_answer_that_there_is_not_is_illegal(pri, command):
    with pytest.raises(CommandFailedError, match="ILL"):
        pri.issue(command)


def test_an_answer_to_a_group_that_there_is_not_is_the_endpoints_to_tell(pri):
    told = []
    pri.requester.on_unexpected = lambda: told.append(True)
    assert waits(pri)

    answer(pri, 7)
    pri.issue(pri_resp(SID + 1, 0, PriResponse.SUCCESS))

    assert told == [True]
    assert len(pri.requester) == 1


def test_while_translation_is_off_an_answer_is_ignored(pri):
    assert waits(pri)
    pri.driver.set("CR0", Cr0.CMDQEN)

    answer(pri)

    assert len(pri.requester) == 1


def test_an_unmapped_page_is_asked_for_when_the_endpoint_has_forgotten_it(pri):
    pri.map()
    assert pri.lands(TARGET)
    pri.store_words(pri.leaf, 0)
    pri.issue(tlbi(Opcode.TLBI_NSNH_ALL))
    assert pri.lands(TARGET)

    pri.issue(atc_inv(SID))

    assert waits(pri)
    assert asked(pri) == [want()]


def test_groups_have_the_lowest_free_number_and_there_are_512():
    requester = PageRequester()
    requester.allocation = lambda: 1 << 20
    assert [requester.begin(None, [page]) for page in range(GROUPS)] == [(group, 1) for group in range(GROUPS)]
    assert requester.begin(None, [0]) is None

    requester.answer(5, Response.SUCCESS)

    assert requester.begin(None, [*range(20)]) == (5, 16)
    requester.clear()
    assert len(requester) == 0
