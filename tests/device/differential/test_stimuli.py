"""What is drawn: the same from the same seed, whole by itself, and right unless it says what is not."""

from __future__ import annotations

from collections import Counter

import pytest

from pviommu.differential.comparison import compare
from pviommu.differential.sides import RAM, RAM_SIZE, Dma, Ours
from pviommu.differential.stimuli import KINDS, Access, Issue, Read, Recover, Reset, Stimulus, Store, Write, draw

MANY = [draw(f"stimuli/{number}", number % 2 == 0) for number in range(400)]


def test_the_same_seed_draws_the_same_stimulus_and_another_one_another() -> None:
    assert draw("1/7", True) == draw("1/7", True)
    assert draw("1/7", True) != draw("1/8", True)


def test_all_kinds_are_drawn_and_all_steps() -> None:
    kinds = Counter(stimulus.kind for stimulus in MANY)
    assert set(kinds) | {"formats"} == set(KINDS)
    drawn = {type(step) for stimulus in MANY for step in stimulus.steps}
    assert drawn == {Store, Reset, Access, Issue, Recover, Write, Read}
    formats = {step.config >> 16 & 1 for each in MANY for step in each.steps if isinstance(step, Reset)}
    assert formats == {0, 1}


def test_what_is_stored_lies_in_ram() -> None:
    stores = [step for stimulus in MANY for step in stimulus.steps if isinstance(step, Store)]

    assert all(step.address >= RAM and step.address + len(step.data) <= RAM + RAM_SIZE for step in stores)


def unchanged(stimulus: Stimulus) -> bool:
    return stimulus.kind in ("caches", "transactions") and not stimulus.scene.changed


class Noted(Ours):
    """Keeps what came of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Dma] = []

    def dma_write(self, iova: int, length: int) -> Dma:
        self.requests.append(super().dma_write(iova, length))
        return self.requests[-1]

    def dma_read(self, iova: int, length: int) -> Dma:
        self.requests.append(super().dma_read(iova, length))
        return self.requests[-1]


@pytest.mark.parametrize("stages", [["s1"], ["s2"], ["s1", "s2"]], ids=" ".join)
def test_without_a_change_the_first_request_is_let_through(stages: list[str]) -> None:
    """By the SMMU of this package, whose walker is not the one that wrote the tables."""
    side, other, tried = Noted(), Ours(), 0
    for stimulus in filter(unchanged, MANY):
        scene = stimulus.scene
        if stages == [name for name, tables in (("s1", scene.stage1), ("s2", scene.stage2)) if tables]:
            side.requests.clear()
            assert compare(stimulus, side, other) == []
            assert side.requests[0].is_done, stimulus.seed
            tried += 1
    side.close()
    other.close()
    assert tried > 10
