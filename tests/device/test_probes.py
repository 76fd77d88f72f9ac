"""Rules see what happens at the probes that they name, and nothing is there where nobody looks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

from pviommu.dma.fault import DmaRefusedError, Fault
from pviommu.engine import Access
from pviommu.interfaces.pv.profile import Reply
from pviommu.probes import ProbeCall, Probes, Rule
from pviommu_abi.registers import REGISTER
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import VendorOp
from vfio_user import IrqIndex

from .conftest import Driver

SeenAt = Callable[[str], tuple[Driver, list[ProbeCall]]]


@pytest.fixture
def seen_at(make_driver: Callable[..., Driver]) -> SeenAt:
    """A machine with a rule of this pattern, and what that has seen since the start."""

    def make(pattern: str) -> tuple[Driver, list[ProbeCall]]:
        seen: list[ProbeCall] = []
        driver = make_driver(probes=Probes([Rule(pattern, seen.append)])).start()
        seen.clear()
        return driver, seen

    return make


def test_an_operation_is_seen_before_it_and_after_it_with_its_answer(seen_at: SeenAt) -> None:
    driver, seen = seen_at("op.map_pages.*")
    _, ctx = driver.alloc()

    assert driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    assert driver.unmap(ctx, 0x100, 3) == (0, 3)

    before, after = seen
    assert (before.probe, before.owner, before.result) == ("op.map_pages.pre", "iommu", None)
    assert before.arguments == after.arguments
    assert (after.probe, after.result.result) == ("op.map_pages.post", 0)


def test_an_operation_in_steps_is_seen_once_after_its_last_step(seen_at: SeenAt) -> None:
    driver, seen = seen_at("op.unmap_pages.post")
    _, ctx = driver.alloc()
    pages = 0x1000
    for part in range(4):
        driver.map(ctx, 0x100000 + part * pages, 0, pages)

    result, done = driver.unmap(ctx, 0x100000, 4 * pages)

    assert (result, done) == (0, 4 * pages)
    (event,) = seen
    assert isinstance(event.result, Reply)
    assert event.result.result == 0


def test_each_operation_is_a_probe_of_its_own_name(seen_at: SeenAt) -> None:
    driver, seen = seen_at("op.*.pre")
    ctx = driver.attached()
    driver.lookup(ctx, 5)
    driver.usage()
    driver.free(ctx)

    assert [event.probe[3:-4] for event in seen] == [
        *("alloc_context", "bind", "reattach_device", "lookup_page", "query_usage", "free_context")
    ]


def test_a_translation_is_seen_with_where_it_leads_or_its_fault(seen_at: SeenAt) -> None:
    driver, seen = seen_at("dma.translate.post")
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)

    driver.dma_write("dma0", 0x100000, b"x")
    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", 0x200000, b"x")

    first, second = seen
    assert first.arguments == ((([(0x100000, 1)], Access.WRITE),),)
    assert [list(plan.runs()) for plan in first.result] == [[(0x10000, 1)]]
    assert isinstance(second.result, Fault)


def test_registers_are_seen_read_and_written(seen_at: SeenAt) -> None:
    driver, seen = seen_at("register.*.post")
    status = driver.read("STATUS")
    driver.write("RING_SELECT", 0)

    assert seen == [
        ProbeCall("register.read.post", "iommu", (REGISTER["STATUS"].offset, 4), status.to_bytes(4, "little")),
        ProbeCall("register.write.post", "iommu", (REGISTER["RING_SELECT"].offset, bytes(4)), None),
    ]


def test_an_interrupt_is_seen_whether_it_is_set_up_or_not(seen_at: SeenAt) -> None:
    driver, seen = seen_at("interrupt.post")
    driver.iommu.interrupt(1)
    fd = driver.msix(1)
    driver.iommu.interrupt(1)
    os.close(fd)

    event = ProbeCall("interrupt.post", "iommu", (IrqIndex.MSIX, 1))
    assert seen == [event._replace(result=False), event._replace(result=True)]


def test_a_reset_is_seen_of_the_function_that_it_is_of(seen_at: SeenAt) -> None:
    driver, seen = seen_at("reset.*")
    driver.machine.endpoints["dma1"].reset()
    driver.iommu.reset()

    assert [(event.probe, event.owner) for event in seen] == [
        *(("reset.pre", "dma1"), ("reset.post", "dma1"), ("reset.pre", "iommu"), ("reset.post", "iommu"))
    ]


def test_what_a_call_raises_passes_and_has_no_post() -> None:
    seen: list[ProbeCall] = []

    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        Probes([Rule("*", seen.append)]).probe("call", fails)()
    assert [event.probe for event in seen] == ["call.pre"]


def probed(holder: Any) -> Iterator[str]:
    """What of an object, and of what it refers to, is wrapped."""
    todo, known = [holder], set()
    while todo:
        one = todo.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        if isinstance(one, FunctionType) and one.__code__.co_name == "probed":
            yield one.__qualname__
        if isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple)):
            todo += one
        elif hasattr(one, "__dict__") and type(one).__module__.startswith(("pviommu", "vfio_user")):
            todo += vars(one).values()


@pytest.mark.parametrize(
    "pattern", ["op.map_pages.pre", "op.bind.post", "dma.translate.pre", "register.read.pre", "interrupt.post"]
)
def test_nothing_is_wrapped_but_what_is_watched(make_driver: Callable[..., Driver], pattern: str) -> None:
    watched = make_driver(probes=Probes([Rule(pattern, lambda _: None)]))

    assert list(probed(make_driver().machine)) == []
    assert list(probed(watched.machine))


def test_what_nobody_watches_is_the_callable_itself() -> None:
    probes = Probes([Rule("op.map_pages.pre", print)])

    assert probes.probe("op.unmap_pages", len) is len
    assert probes.probe("op.map_pages", len) is not len


def test_an_operation_that_is_refused_by_its_class_is_none(seen_at: SeenAt) -> None:
    driver, seen = seen_at("op.*")

    assert driver.call(b"", OpClass.VENDOR, max(VendorOp) + 1)[0] == -Errno.EOPNOTSUPP
    assert seen == []
