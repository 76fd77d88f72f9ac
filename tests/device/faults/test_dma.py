"""What rules make of DMA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pviommu.dma.fault import DmaPendingError, DmaRefusedError
from pviommu_abi.registers import Reset
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import Binding, Flush, VendorOp

from ..conftest import DEVFN, Driver, TableGuest, reason_of
from .conftest import Faulty, Load

IOVA = 0x100000


def ready(faulty: Faulty) -> Driver:
    """dma0 in a context that maps IOVA to 0x10000, two pages."""
    driver = faulty.driver
    ctx = driver.attached()
    assert driver.map(ctx, IOVA >> 12, 0x10, 2) == (0, 2)
    return driver


@pytest.mark.parametrize("reason", ["NOT_MAPPED", "PERMISSION", "BLOCKED", "NOT_RAM"])
def test_a_mapped_address_faults(load: Load, reason: str) -> None:
    where = {"iova": "0x100800..0x100fff", "access": "WRITE", "stream": 1, "ctx": 1}
    faulty = load({"on": "dma.translate.pre", "where": where, "do": {"fail": reason}})
    driver = ready(faulty)

    driver.dma_write("dma0", IOVA, b"fine")
    driver.dma_read("dma0", IOVA + 0x800, 4)
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_write("dma0", IOVA + 0x7FE, b"fault")
    assert reason_of(caught.value) is EventReason[reason]
    (event,) = driver.events()
    assert (event.reason, event.iova, event.length) == (EventReason[reason], IOVA + 0x7FE, 5)


def test_a_translation_is_late_and_then_as_it_would_have_been(load: Load) -> None:
    faulty = load({"on": "dma.translate.pre", "schedule": {"nth": 1}, "do": {"delay": "2ms"}})
    driver = ready(faulty)
    for _ in range(3):
        with pytest.raises(DmaPendingError):
            driver.dma_write("dma0", IOVA, b"late")
    faulty.agenda.run(2_000_000)

    driver.dma_write("dma0", IOVA, b"late")
    assert driver.ram[0x10000:0x10004] == b"late"
    assert faulty.fired() == [1]


def test_a_request_that_was_given_up_leaves_nothing_behind(load: Load) -> None:
    faulty = load({"on": "dma.translate.pre", "schedule": {"nth": 1}, "do": {"hang": True}})
    driver = ready(faulty)
    with pytest.raises(DmaPendingError):
        driver.dma_write("dma0", IOVA, b"first")

    driver.dma_write("dma0", IOVA + 8, b"other")
    assert driver.ram[0x10008:0x1000D] == b"other"
    assert faulty.faults.holds._hung == []


@pytest.mark.parametrize("do", [{"hang": True}, {"delay": "3600s"}, {"suspend": "it"}], ids=lambda do: next(iter(do)))
def test_a_request_that_was_given_up_by_a_reset_of_its_endpoint_may_be_made_again(
    load: Load, do: dict[str, object]
) -> None:
    faulty = load({"on": "dma.translate.pre", "schedule": {"nth": 1}, "do": do})
    driver = ready(faulty)
    with pytest.raises(DmaPendingError):
        driver.dma_write("dma0", IOVA, b"again")
    driver.machine.endpoints["dma0"].reset()
    driver.machine.endpoints["dma0"].region_write(7, 4, b"\x06\x00")  # it may do DMA

    driver.dma_write("dma0", IOVA, b"again")
    assert driver.ram[0x10000:0x10005] == b"again"
    assert faulty.faults.verdict().problems == ()


def test_a_translation_is_stale_after_an_unmap_and_after_another_map(load: Load) -> None:
    faulty = load({"on": "dma.translate.post", "do": {"stale": True}})
    driver = ready(faulty)
    driver.dma_write("dma0", IOVA + 0xFFE, b"abcd")
    assert faulty.fired() == [0]  # nothing is stale yet

    driver.unmap(1, IOVA >> 12, 2)
    driver.dma_write("dma0", IOVA + 0xFFE, b"ABCD")
    assert driver.ram[0x10FFE:0x11002] == b"ABCD"

    driver.map(1, IOVA >> 12, 0x20, 2)
    driver.dma_write("dma0", IOVA, b"old place")
    assert driver.ram[0x10000:0x10009] == b"old place"
    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", IOVA + 0x2000, b"never mapped")
    assert faulty.fired() == [2]


def test_dma_goes_to_another_address(load: Load) -> None:
    faulty = load({"on": "dma.translate.post", "do": {"corrupt": "gpa", "xor": 0x4000}})
    driver = ready(faulty)

    driver.dma_write("dma0", IOVA, b"stray")
    assert driver.ram[0x14000:0x14005] == b"stray"


def test_bytes_are_corrupted_on_the_way(load: Load) -> None:
    faulty = load(
        {"on": "dma.write.pre", "where": {"function": "dma0"}, "do": {"corrupt": 1, "xor": 0x20}},
        {"on": "dma.read.post", "do": {"corrupt": 0, "value": 0x21}},
    )
    driver = ready(faulty)

    driver.dma_write("dma0", IOVA, b"abc")
    assert driver.ram[0x10000:0x10003] == b"aBc"
    assert driver.dma_read("dma0", IOVA, 3) == b"!Bc"


def test_a_write_does_not_happen_and_a_read_gives_zeros(load: Load) -> None:
    faulty = load({"on": "dma.write.apply", "do": {"lie": True}}, {"on": "dma.read.apply", "do": {"lie": True}})
    driver = ready(faulty)
    driver.ram[0x10000:0x10003] = b"was"

    driver.dma_write("dma0", IOVA, b"abc")
    assert driver.ram[0x10000:0x10003] == b"was"
    assert driver.dma_read("dma0", IOVA, 3) == bytes(3)


def test_a_write_stops_half_way(load: Load) -> None:
    faulty = load({"on": "dma.write.apply", "do": {"partial": 2, "then": "NOT_RAM"}})
    driver = ready(faulty)

    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", IOVA, b"abc")
    assert driver.ram[0x10000:0x10003] == b"ab\0"
    (event,) = driver.events()
    assert (event.reason, event.iova) == (EventReason.NOT_RAM, IOVA + 2)


@pytest.mark.parametrize("probe", ["dma.read", "dma.write"])
def test_bytes_are_refused(load: Load, probe: str) -> None:
    driver = ready(load({"on": f"{probe}.pre", "do": {"fail": "ABORTED"}}))

    with pytest.raises(DmaRefusedError):
        driver.dma_read("dma0", IOVA, 3) if probe == "dma.read" else driver.dma_write("dma0", IOVA, b"abc")
    assert driver.events()[0].reason == EventReason.ABORTED


def test_an_endpoint_withholds_its_descriptor_until_it_is_let_go(load: Load) -> None:
    faulty = load({"on": "endpoint.work.pre", "where": {"device": "*:05.0"}, "do": {"suspend": "it"}})
    driver = ready(faulty)
    endpoint = driver.machine.endpoints["dma0"]
    turned: list[str] = []
    endpoint.on_ready = lambda: turned.append("ready")

    assert not endpoint.step()
    assert not endpoint.step()
    assert faulty.fired() == [1]
    faulty.faults.holds.resume("it")
    assert turned == ["ready"]
    assert not endpoint.step()
    assert faulty.fired() == [1]


def test_an_endpoint_fails_until_its_reset(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    faulty = load({"on": "endpoint.work.pre", "where": {"function": "dma0"}, "do": {"fail": "FAILED"}})
    endpoint = ready(faulty).machine.endpoints["dma0"]

    endpoint.step()
    assert endpoint.failed
    assert "it fails by a rule" in caplog.text
    endpoint.reset()
    assert not endpoint.failed


@pytest.fixture
def held(load: Load) -> Iterator[tuple[Faulty, TableGuest]]:
    """A rule that holds back what was translated, by tables of the guest, and the request that waits."""
    faulty = load({"on": "dma.translate.post", "schedule": {"nth": 1}, "do": {"delay": "2ms"}})
    guest = TableGuest(faulty.driver)
    guest.tables.map(IOVA, 0x10000)
    with pytest.raises(DmaPendingError):
        faulty.driver.dma_write("dma0", IOVA, b"late")
    yield faulty, guest
    guest.tables.close()


@pytest.mark.row("tables", 10)
def test_a_translation_that_is_held_back_is_pending_and_a_flush_waits_for_it(held: tuple[Faulty, TableGuest]) -> None:
    faulty, guest = held
    driver, line = faulty.driver, guest.line
    assert (line.step % 2, line.pending) == (1, 1)
    guest.tables.unmap(IOVA)
    position = driver.put(Flush(guest.ctx).pack(), OpClass.VENDOR, VendorOp.FLUSH)
    driver.iommu.work()
    assert driver.completed() == position
    with pytest.raises(ValueError, match="cannot be saved while a rule holds"):
        driver.iommu.save()
    faulty.agenda.run(2_000_000)

    driver.dma_write("dma0", IOVA, b"late")
    assert driver.ram[0x10000:0x10004] == b"late"
    assert line.is_quiet()
    driver.iommu.work()
    assert driver.completed() == position + 1
    assert driver.outcome(position)[0].result == 0
    assert guest.refused(IOVA, 4) == (EventReason.NOT_MAPPED, IOVA)


@pytest.mark.parametrize("end", ["endpoint", "iommu", "other"])
@pytest.mark.row("tables", 10)
def test_one_that_is_held_back_and_given_up_is_not_pending(held: tuple[Faulty, TableGuest], end: str) -> None:
    faulty, guest = held
    if end == "endpoint":
        faulty.driver.machine.endpoints["dma0"].reset()
    elif end == "iommu":
        faulty.driver.write("RESET", Reset.POWER_ON)
    else:
        faulty.driver.dma_write("dma0", IOVA + 8, b"other")
    assert guest.line.is_quiet()


@pytest.mark.parametrize("op", [VendorOp.BLOCK, VendorOp.UNBIND, None])
@pytest.mark.row("tables", 11)
def test_a_reset_ends_what_is_held_back_also_of_an_endpoint_that_has_left(
    held: tuple[Faulty, TableGuest], op: VendorOp | None
) -> None:
    """After it the line is even, and whoever waited for that gives the page to somebody else."""
    faulty, guest = held
    driver = faulty.driver
    if op is None:
        assert driver.reattach("dma0", 0) == 0
    else:
        binding = Binding(0, 0, DEVFN["dma0"]).pack()
        assert driver.call(binding, OpClass.VENDOR, op)[0] == 0
    assert guest.line.pending == 1, "what was translated is in flight, wherever its endpoint is now"
    driver.write("RESET", Reset.BLOCKED)
    assert guest.line.is_quiet()
    faulty.agenda.run(2_000_000)

    driver.ram[0x10000:0x10004] = b"mine"
    with contextlib.suppress(DmaRefusedError):
        driver.dma_write("dma0", IOVA, b"late")
    assert driver.ram[0x10000:0x10004] == b"mine"
