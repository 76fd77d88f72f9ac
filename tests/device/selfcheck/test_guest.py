"""A guest, through a ring and over the wire, notices whatever it can see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.guest import Guest
from pviommu.selfcheck.operations import Alloc, Attach, Batch, Bind, Dma, Lookup, Map, Operation, Posted, Unmap, Usage
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.ring_path import RingPath
from pviommu.selfcheck.settings import Setting
from pviommu.selfcheck.wire_path import WirePath


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(Setting())


@pytest.fixture(params=[RingPath, WirePath], ids=["ring", "wire"])
def guest(oracle: Oracle, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Endpoint 1 is in context 1, which maps dfn 5."""
    guest: Guest = request.param(oracle)
    try:
        for op in (Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 5, 9, 1)):
            guest.run(op, oracle.apply(op))
        yield guest
    finally:
        guest.close()


def _other_target(oracle: Oracle) -> None:
    oracle.model.pages[1][5] = (8, 3)


def _not_there(oracle: Oracle) -> None:
    oracle.model.pages[1].clear()


def _read_only(oracle: Oracle) -> None:
    oracle.model.pages[1][5] = (9, 1)


def _two_bound(oracle: Oracle) -> None:
    oracle.bound[0x30] = 2


def _written(oracle: Oracle) -> None:
    oracle.ram[9] = bytearray(b"x".ljust(4096, b"\0"))


@pytest.mark.parametrize(
    ("mistake", "op", "what"),
    [
        (_not_there, Map(1, 5, 9, 1), "result of Map"),
        (_not_there, Unmap(1, 5, 1), "result of Unmap"),
        (_other_target, Lookup(1, 5), "payload of Lookup"),
        (_two_bound, Usage(), "payload of Usage"),
        (_not_there, Batch(1, False, ((5, 9, 3),)), "result of Batch"),
        (_not_there, Posted((Map(1, 5, 9, 1),), Usage()), "result of Map"),
        (_other_target, Dma(1, 0x5000, 8, True, 7), "bytes in guest memory"),
        (_written, Dma(1, 0x5000, 8, False, 0), "checksum"),
        (_read_only, Dma(1, 0x5000, 8, True, 7), "status of Dma"),
        (_not_there, Dma(1, 0x5000, 8, True, 7), "status of Dma"),
    ],
)
def test_a_device_that_does_something_else_differs(
    guest: Guest, oracle: Oracle, mistake: Callable[[Oracle], None], op: Operation, what: str
) -> None:
    mistake(oracle)

    with pytest.raises(Difference, match=what):
        guest.run(op, oracle.apply(op))


@pytest.mark.parametrize("mistake", [_other_target, _not_there, _written])
def test_whole_tables_and_memory_that_differ_are_noticed(
    guest: Guest, oracle: Oracle, mistake: Callable[[Oracle], None]
) -> None:
    guest.compare_all()
    mistake(oracle)

    with pytest.raises(Difference):
        guest.compare_all()


def test_an_event_too_many_is_noticed(guest: Guest, oracle: Oracle) -> None:
    stray = Dma(1, 0x6000, 8, True, 7)
    guest._dma(stray, oracle.apply(stray).outcome, [])

    with pytest.raises(Difference, match="events of Usage"):
        guest.run(Usage(), oracle.apply(Usage()))


def test_a_stray_write_to_guest_memory_is_noticed(guest: Guest) -> None:
    guest.ram.bytes[0x123456] = 1

    with pytest.raises(Difference, match="guest memory, gfn 0x123"):
        guest.compare_all()


def test_what_is_posted_is_seen_by_the_dma_after_it(guest: Guest, oracle: Oracle) -> None:
    op = Posted((Map(1, 6, 0x10, 1), Map(1, 6, 0x11, 1)), Dma(1, 0x6000, 8, True, 0x1122334455667788))

    guest.run(op, oracle.apply(op))

    assert guest.ram.bytes[0x10000:0x10008] == bytes.fromhex("8877665544332211")
