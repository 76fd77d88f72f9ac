"""MSIs that the SMMU writes itself (IHI 0070, 3.18 and 4.7.3)."""

import pytest

from smmuv3.commands import Completion, sync
from smmuv3.page_requests import PageRequest
from smmuv3.registers import Cr0, GlobalError, IrqControl, PageRequestInterrupt, QueueBase, Vector

from .conftest import COMMANDS, EVENTS, IOVA, OUTSIDE, RAM_SIZE, SID

WORD = 0x4600_0000
"""Where MSIs are written."""
BOTH, ADDRESS_BITS = 5, 0xFFFFFFFFFFFFC
pytestmark = pytest.mark.row("smmu", 40)


@pytest.fixture
def told(make_guest):
    """A started guest with MSIs."""
    return make_guest(msi=True).start()


def place(guest, name, address, data=0x1234):
    """Say where an MSI goes, while the interrupt is off."""
    guest.driver.set("IRQ_CTRL", 0)
    guest.driver.set(f"{name}_IRQ_CFG0", address)
    guest.driver.set(f"{name}_IRQ_CFG1", data)
    guest.driver.set("IRQ_CTRL", BOTH)


def word(guest, address=WORD):
    return int.from_bytes(guest.load(address, 4), "little")


def test_idr0_says_whether_there_are_any(make_guest):
    assert [make_guest(msi=msi).driver.get("IDR0") >> 13 & 1 for msi in (False, True)] == [0, 1]


def test_a_sync_writes_its_word_once_it_is_complete_and_raises_no_wire(told):
    told.store(WORD, b"\xff" * 8)

    told.driver.issue(sync(Completion.IRQ, WORD, 0xCAFE0123))
    assert word(told) == 0xFFFFFFFF
    told.driver.drain()

    assert told.load(WORD, 8) == bytes.fromhex("2301fecaffffffff")
    assert told.interrupts == []
    assert told.driver.get("GERROR") == told.driver.get("GERRORN")


def test_linux_has_the_word_written_over_the_command_itself(told):
    index = told.driver.get("CMDQ_PROD")
    at = told.driver.command_place(index)

    told.driver.issue(sync(Completion.IRQ, at), sync(Completion.IRQ, told.driver.command_place(index + 1)))
    assert word(told, at) != 0
    told.driver.drain()

    assert (word(told, at), word(told, at + 16)) == (0, 0)
    assert told.load(at + 4, 4) == bytes(4)
    assert told.driver.get("CMDQ_CONS") == index + 2
    assert at - COMMANDS == 16 * index


def test_a_sync_without_an_address_has_the_wire(told):
    told.driver.sync(Completion.IRQ)

    assert told.interrupts == [Vector.CMD_SYNC]


@pytest.mark.parametrize("completion", [Completion.NONE, Completion.SEV])
def test_other_completions_write_nothing(told, completion):
    told.driver.issue(sync(completion, WORD, 5))
    told.driver.drain()

    assert (word(told), told.interrupts) == (0, [])


def test_without_the_feature_the_address_means_nothing(started):
    started.driver.issue(sync(Completion.IRQ, WORD, 5))
    started.driver.drain()

    assert (word(started), started.interrupts) == (0, [Vector.CMD_SYNC])


def test_bits_of_an_address_beyond_the_output_size_do_not_count_but_for_there_being_one(told):
    told.driver.issue(sync(Completion.IRQ, 1 << 44 | WORD, 5))
    told.driver.drain()
    place(told, "EVENTQ", 1 << 51 | WORD + 4, 6)
    told.store_words(told.leaf, 0)
    assert told.put() is not None

    assert (word(told), word(told, WORD + 4), told.interrupts) == (5, 6, [])
    assert told.driver.get("GERROR") == told.driver.get("GERRORN")


@pytest.mark.parametrize("address", [OUTSIDE, 1 << 44, 0x4000_0000 + RAM_SIZE])
def test_a_word_that_cannot_be_written_is_a_global_error_and_commands_go_on(told, address):
    told.driver.issue(sync(Completion.IRQ, address, 5), sync(Completion.IRQ, WORD, 6))
    told.driver.drain()

    assert told.driver.is_active(GlobalError.MSI_CMDQ_ABT_ERR)
    assert not told.driver.is_active(GlobalError.CMDQ_ERR)
    assert (word(told), told.interrupts) == (6, [Vector.GERROR])


def test_the_event_queue_has_its_msi(told):
    place(told, "EVENTQ", WORD, 0x77)
    told.store_words(told.leaf, 0)

    assert told.put() is not None

    assert (word(told), told.interrupts) == (0x77, [])
    assert told.load(EVENTS, 1) == b"\x10"


def test_so_have_global_errors(told):
    place(told, "GERROR", WORD, 0x99)

    told.driver.issue(bytes([0xFF]) + bytes(15))
    told.smmu.work()

    assert told.driver.is_active(GlobalError.CMDQ_ERR)
    assert (word(told), told.interrupts) == (0x99, [])


def test_an_msi_of_the_event_queue_that_cannot_be_written_is_a_global_error(told):
    place(told, "EVENTQ", OUTSIDE)
    told.store_words(told.leaf, 0)

    assert told.put() is not None

    assert told.driver.is_active(GlobalError.MSI_EVENTQ_ABT_ERR)
    assert told.interrupts == [Vector.GERROR]
    assert told.records()[0][2] == IOVA


def test_one_of_global_errors_that_cannot_be_written_is_told_by_gerror_alone(told):
    place(told, "GERROR", OUTSIDE)

    told.driver.issue(bytes([0xFF]) + bytes(15))
    told.smmu.work()

    assert told.driver.is_active(GlobalError.CMDQ_ERR)
    assert told.driver.is_active(GlobalError.MSI_GERROR_ABT_ERR)
    assert told.interrupts == []


@pytest.mark.parametrize("name", ["GERROR", "EVENTQ"])
def test_where_it_goes_can_be_said_while_the_interrupt_is_off_only(told, name):
    place(told, name, 0xFFFF_FFFF_FFFF_FFFF, 7)
    for register, value in ((f"{name}_IRQ_CFG0", 0), (f"{name}_IRQ_CFG1", 0), (f"{name}_IRQ_CFG2", 0x3F)):
        told.driver.set(register, value)

    found = [told.driver.get(f"{name}_IRQ_CFG{number}") for number in range(3)]
    assert found == [ADDRESS_BITS, 7, 0]


def test_without_the_feature_nothing_is_there_to_be_written(started):
    for name in ("GERROR", "EVENTQ"):
        place(started, name, WORD)
        assert [started.driver.get(f"{name}_IRQ_CFG{number}") for number in range(3)] == [0, 0, 0]


# -- page requests (6.3.34 to 6.3.36) -------------------------------------------------------------------------------

REQUESTS = 0x4700_0000
LO = int(PageRequestInterrupt.LO)


def asking(guest, address=WORD, config=0):
    """A guest with a queue of two page requests."""
    driver = guest.start().driver
    driver.set("PRIQ_BASE", QueueBase(REQUESTS, LOG2SIZE=1))
    place(guest, "PRIQ", address, 0x55)
    driver.set("IRQ_CTRL", 0)
    driver.set("PRIQ_IRQ_CFG2", config)
    driver.set("IRQ_CTRL", IrqControl.PRIQ_IRQEN | IrqControl.GERROR_IRQEN)
    driver.set("CR0", driver.get("CR0") | Cr0.PRIQEN)
    guest.interrupts.clear()
    return guest


def ask(guest, *, last=True):
    return guest.smmu.page_queue.record(PageRequest(SID, None, IOVA & ~0xFFF, 0, True, False, last))


def test_the_queue_of_page_requests_has_its_msi(make_guest):
    guest = asking(make_guest(msi=True, ats=True, priq_bits=4))

    ask(guest)

    assert (word(guest), guest.interrupts) == (0x55, [])


def test_one_of_page_requests_that_cannot_be_written_is_a_global_error(make_guest):
    guest = asking(make_guest(msi=True, ats=True, priq_bits=4), OUTSIDE)

    ask(guest)

    assert guest.driver.is_active(GlobalError.MSI_PRIQ_ABT_ERR)
    assert (guest.interrupts, guest.driver.get("PRIQ_PROD")) == ([Vector.GERROR], 1)


@pytest.mark.parametrize("msi", [False, True])
def test_page_requests_interrupt_once_or_by_groups(make_guest, msi):
    first = asking(make_guest(msi=msi, ats=True, priq_bits=4), 0)
    for last in (False, True, True):
        ask(first, last=last)
    assert first.interrupts == [Vector.PRIQ]

    groups, counts = asking(make_guest(msi=msi, ats=True, priq_bits=4), 0, LO), []
    for last in (False, True, False, True):
        ask(groups, last=last)
        counts.append(len(groups.interrupts))

    assert counts == [0, 1, 1, 2], "the last two are lost"
    assert set(groups.interrupts) == {Vector.PRIQ}


def test_one_that_is_discarded_without_an_overflow_interrupts_nobody(make_guest):
    guest = asking(make_guest(ats=True, priq_bits=4), 0, LO)
    guest.driver.set("CR0", guest.driver.get("CR0") & ~Cr0.PRIQEN)

    ask(guest)

    assert guest.interrupts == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"msi": True, "ats": True, "priq_bits": 4}, [ADDRESS_BITS, 0xFFFFFFFF, LO | 0x3F]),
        ({"ats": True, "priq_bits": 4}, [0, 0, LO]),
        ({"msi": True}, [0, 0, 0]),
    ],
)
def test_its_registers_are_there_with_the_queue_and_msis(make_guest, settings, found):
    driver = make_guest(**settings).driver
    names = [f"PRIQ_IRQ_CFG{number}" for number in range(3)]
    for name in names:
        driver.set(name, (1 << 64) - 1 if name[-1] == "0" else 0xFFFFFFFF)
    assert [driver.get(name) for name in names] == found

    driver.set("IRQ_CTRL", IrqControl.PRIQ_IRQEN)
    for name in names:
        driver.set(name, 0)

    assert [driver.get(name) for name in names] == found
