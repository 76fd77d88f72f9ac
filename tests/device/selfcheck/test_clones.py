"""The model's clones when memory comes and goes."""

from __future__ import annotations

import pytest

from pviommu.selfcheck.clones import FollowingModel

FIRST, SECOND = range(0x10), range(0x20, 0x24)


@pytest.fixture
def model() -> FollowingModel:
    """Context 1 is a clone of two ranges."""
    model = FollowingModel(3, 8, [FIRST, SECOND], 39, True)
    assert model.alloc(True)[0] == 1
    return model


def test_a_clone_loses_what_went_and_maps_what_comes(model: FollowingModel) -> None:
    model.plug([FIRST])
    assert sorted(model.pages[1]) == list(FIRST)

    model.plug([FIRST, SECOND])

    assert sorted(model.pages[1]) == [*FIRST, *SECOND]


def test_what_the_guest_unmapped_stays_unmapped(model: FollowingModel) -> None:
    model.unmap(1, 0x21, 1)

    model.plug([FIRST])
    model.plug([FIRST, SECOND])

    assert 0x21 not in model.pages[1]
    assert 0x22 in model.pages[1]


def test_what_the_guest_mapped_stays_when_its_memory_goes(model: FollowingModel) -> None:
    model.unmap(1, 0x21, 1)
    model.map(1, 0x21, 0x5, 1, 1)

    model.plug([FIRST])

    assert model.pages[1][0x21] == (0x5, 1)
    assert 0x22 not in model.pages[1]


def test_other_contexts_do_not_follow(model: FollowingModel) -> None:
    model.alloc(False)
    model.map(2, 0x20, 0x20, 1, 3)

    model.plug([FIRST])

    assert list(model.pages[2]) == [0x20]


def test_a_clone_grows_as_far_as_the_pool_reaches() -> None:
    model = FollowingModel(1, 3, [FIRST], 39, True)
    model.alloc(True)

    model.plug([FIRST, range(0x1FE, 0x204)])

    assert sorted(model.pages[1]) == [*FIRST, 0x1FE, 0x1FF]


def test_a_number_used_again_is_a_clone_no_more(model: FollowingModel) -> None:
    model.free(1, False)
    model.alloc(False)

    model.plug([FIRST])
    model.plug([FIRST, SECOND])

    assert model.pages[1] == {}
