"""What is compared: two sides that are alike never differ, and one that is broken is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pviommu.differential.command import Pair
from pviommu.differential.comparison import compare
from pviommu.differential.known import judge
from pviommu.differential.sides import Ours
from pviommu.differential.stimuli import draw
from pviommu.interfaces.smmuv3.queues import Consumed
from smmuv3.commands import Opcode
from smmuv3.events import Event
from smmuv3.registers import Cr2

Break = Callable[[Ours], None]


def test_two_sides_that_are_alike_do_not_differ(pair: tuple[Ours, Ours]) -> None:
    for number in range(120):
        assert compare(draw(f"alike/{number}", number % 2 == 0), *pair) == []


def test_memory_is_left_as_it_was_found(pair: tuple[Ours, Ours]) -> None:
    before = pair[0].ram.bytes[:]
    for number in range(40):
        compare(draw(f"clean/{number}", False), *pair)

    assert pair[0].ram.bytes[:] == before


def forgets_nothing(side: Ours) -> None:
    carry_out = side.smmu.commands.carry_out
    deaf = {Opcode.TLBI_NH_VA, Opcode.TLBI_NH_VAA, Opcode.TLBI_NH_ALL, Opcode.TLBI_NH_ASID, Opcode.TLBI_NSNH_ALL}

    def skip(first: int, second: int) -> Consumed:
        return Consumed.DONE if first & 0xFF in deaf else carry_out(first, second)

    side.smmu.commands.carry_out = skip


def tells_another_address(side: Ours) -> None:
    record = side.smmu.events.record
    side.smmu.events.record = lambda event: record(event._replace(address=event.address ^ 1))  # type: ignore[method-assign]


def tells_nothing(side: Ours) -> None:
    def silent(_: Event) -> bool:
        return True

    side.smmu.events.record = silent  # type: ignore[method-assign]


def stops_at_nothing(side: Ours) -> None:
    carry_out = side.smmu.commands.carry_out

    def lenient(first: int, second: int) -> Consumed:
        outcome = carry_out(first, second)
        return Consumed.DONE if outcome is Consumed.ILLEGAL and first & 0xFF == Opcode.CFGI_STE else outcome

    side.smmu.commands.carry_out = lenient


def keeps_the_register(side: Ours) -> None:
    write = side.write
    offset = 0x2C  # CR2

    def other(place: int, data: bytes) -> None:
        write(place, bytes([data[0] ^ Cr2.PTM, *data[1:]]) if place == offset else data)

    side.write = other  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("broken", "most"),
    [
        (forgets_nothing, 150),
        (tells_another_address, 60),
        (tells_nothing, 60),
        (stops_at_nothing, 400),
        (keeps_the_register, 20),
    ],
)
def test_a_side_that_is_broken_is_noticed_and_not_excused(pair: tuple[Ours, Ours], broken: Break, most: int) -> None:
    broken(pair[1])

    for number in range(most):
        stimulus = draw(f"broken/{number}", False)
        if judge(stimulus, compare(stimulus, *pair)).unexplained:
            return
    pytest.fail("nothing was noticed")


def test_a_stimulus_is_shortened_to_what_the_difference_needs(pair: tuple[Ours, Ours]) -> None:
    tells_another_address(pair[1])
    both = Pair.__new__(Pair)
    both._ours, both._theirs = pair  # type: ignore[assignment]
    for number in range(60):
        stimulus = draw(f"short/{number}", False)
        if not both.judge(stimulus).unexplained:
            continue
        shorter = both.shortened(stimulus)
        assert both.judge(shorter).unexplained
        assert len(shorter.steps) < len(stimulus.steps)
        return
    pytest.fail("nothing was noticed")
