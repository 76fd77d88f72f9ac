"""The strict unmap of docs/guest-tables.md, in every interleaving: no DMA uses the old entry once the guest goes on.

The device does two requests. The guest clears the entry, looks, perhaps polls, and then uses the page for something
else: it reads what DMA left there, and writes to it. What the device reads or writes by the old entry must be over by
then.
"""

from __future__ import annotations

import pytest

from .memory_orders import MemoryOrder, Op, explore

SC, TSO, WEAK = MemoryOrder
ALL = tuple(MemoryOrder)
MEMORY = {"entry": 1, "step": 0, "page": 0, "told": 0}


def device(requests=2, *, fence=True, release=True, first="step", last="step"):
    """Requests: the step becomes odd, the entry is read, and if there is one, the page is read and written."""
    ops = []
    for number in range(requests):
        entry = f"entry{number}"
        odd = [Op("store", "step", 2 * number + 1), *([Op("fence")] if fence else [])]
        walk = [Op("load", "entry", into=entry)]
        copy = [
            Op("load", "page", into=f"data{number}", uses=(entry,), guard=_is_present(entry), old=True),
            Op("store", "page", 10 + number, uses=(entry,), guard=_is_present(entry), old=True),
        ]
        even = [Op("store", "step", 2 * number + 2, release=release)]
        begin = odd + walk if first == "step" else walk + odd
        ops += begin + (copy + even if last == "step" else even + copy)
    return ops


def _is_present(entry):
    return lambda registers: bool(registers[entry])


CLEAR = Op("store", "entry", 0)


def look(*, fence=True, acquire=True, poll=True):
    """What ends an unmap, and the new use of the page."""
    ops = [Op("fence")] if fence else []
    if poll is not None:
        ops.append(Op("load", "step", into="seen", acquire=acquire))
        if poll:
            ops.append(
                Op(
                    *("load", "step"),
                    into="then",
                    uses=("seen",),
                    guard=lambda registers: registers["seen"] & 1 == 1,
                    until=lambda value, registers: value != registers["seen"],
                    acquire=acquire,
                )
            )
    return [*ops, Op("load", "page", into="mine", new=True), Op("store", "page", 99, new=True)]


def guest(**how):
    return [CLEAR, *look(**how)]


@pytest.mark.parametrize("order", ALL)
@pytest.mark.row("tables", 13)
def test_no_dma_uses_the_old_entry_afterwards(order):
    outcome = explore([device(), guest()], MEMORY, order)
    assert outcome.violation is None
    assert outcome.stuck is None
    assert outcome.states > 50


@pytest.mark.parametrize("order", ALL)
@pytest.mark.row("tables", 13)
def test_a_processor_may_clear_and_another_one_look(order):
    """As a lazy flush does, after a lock that both held."""
    clears = [CLEAR, Op("store", "told", 1, release=True)]
    waits = Op("load", "told", into="heard", until=lambda value, _: value == 1, acquire=True)
    outcome = explore([device(), clears, [waits, *look()]], MEMORY, order)
    assert outcome.violation is None
    assert outcome.stuck is None


@pytest.mark.parametrize("order", ALL)
@pytest.mark.row("tables", 13)
def test_two_processors_may_look_at_one_line(order):
    """Each for an entry of its own; the device walks to the one of the first."""
    memory = MEMORY | {"other": 1, "other page": 0}
    outcome = explore([device(1), guest(), [Op("store", "other", 0), *look()[:-2]]], memory, order)
    assert outcome.violation is None
    assert outcome.stuck is None


BROKEN = {
    "no fence of the guest": (device(), guest(fence=False), (TSO, WEAK)),
    "no fence of the device": (device(fence=False), guest(), (TSO, WEAK)),
    "no look": (device(), guest(poll=None), ALL),
    "a look without waiting": (device(), guest(poll=False), ALL),
    "odd after the walk": (device(first="walk"), guest(), ALL),
    "even before the copy": (device(last="copy"), guest(), ALL),
    "no release of the device": (device(release=False), guest(), (WEAK,)),
    "no acquire of the guest": (device(), guest(acquire=False), (WEAK,)),
}
"""And the orders in which that is wrong."""


@pytest.mark.parametrize("order", ALL)
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.row("tables", 14)
def test_each_part_of_it_is_needed(name, order):
    its_device, its_guest, wrong_in = BROKEN[name]
    outcome = explore([its_device, its_guest], MEMORY, order)
    assert (outcome.violation is not None) == (order in wrong_in), outcome.violation
