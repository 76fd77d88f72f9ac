import pytest

from pviommu.interfaces.pv.bindings import Bindings, BindingsState, format_sbdf, sbdf_of
from pviommu_abi.shared import SBDF_UNBOUND
from pviommu_abi.slots import Errno


@pytest.fixture
def bindings():
    """Streams 1 and 2, and 3 fixed to 0x18."""
    return Bindings(frozenset({1, 2, 3}), {3: 0x18})


def test_an_sbdf_has_segment_bus_and_devfn():
    assert sbdf_of(0x1234, 0x56, 0x78) == 0x12345678
    assert format_sbdf(sbdf_of(1, 2, 0x1F << 3 | 7)) == "0001:02:1f.7"
    assert format_sbdf(SBDF_UNBOUND) == "unbound"


def test_a_binding_is_found_both_ways(bindings):
    assert bindings.bind(0x28, 1) == 0
    assert (bindings.stream(0x28), bindings.sbdf(1), len(bindings)) == (1, 0x28, 2)
    assert sorted(bindings) == [1, 3]


def test_the_same_binding_again_is_0(bindings):
    assert [bindings.bind(0x28, 1), bindings.bind(0x28, 1), bindings.bind(0x18, 3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("sbdf", "stream", "expected"),
    [
        (0x30, 9, -Errno.ENODEV),
        (0x28, 9, -Errno.ENODEV),
        (0x28, 2, -Errno.EEXIST),
        (0x30, 1, -Errno.EEXIST),
        (0x30, 3, -Errno.EPERM),
        (0x18, 2, -Errno.EPERM),
    ],
)
def test_a_refused_binding_changes_nothing(bindings, sbdf, stream, expected):
    bindings.bind(0x28, 1)
    assert bindings.bind(sbdf, stream) == expected
    assert [bindings.sbdf(stream) for stream in (1, 2, 3)] == [0x28, SBDF_UNBOUND, 0x18]


def test_what_was_unbound_can_be_bound_elsewhere(bindings):
    bindings.bind(0x28, 1)
    assert bindings.unbind(0x28) == 0
    assert bindings.stream(0x28) is None
    assert bindings.bind(0x30, 1) == 0


def test_unbinding_is_refused_for_what_is_not_bound_or_fixed(bindings):
    assert (bindings.unbind(0x28), bindings.unbind(0x18)) == (-Errno.ENOENT, -Errno.EPERM)
    assert bindings.stream(0x18) == 3


def test_reset_leaves_the_fixed_ones(bindings):
    bindings.bind(0x28, 1)
    bindings.reset()
    assert list(bindings) == [3]
    assert (bindings.stream(0x28), bindings.stream(0x18)) == (None, 3)


def test_what_is_saved_is_loaded_without_the_fixed_ones(bindings):
    bindings.bind(0x30, 2)
    bindings.bind(0x28, 1)
    state = bindings.save()
    assert state == BindingsState(((0x28, 1), (0x30, 2)))
    bindings.reset()
    bindings.bind(0x40, 1)

    bindings.load(state)

    assert [bindings.stream(sbdf) for sbdf in (0x18, 0x28, 0x30, 0x40)] == [3, 1, 2, None]
    assert [bindings.sbdf(stream) for stream in (1, 2, 3)] == [0x28, 0x30, 0x18]


@pytest.mark.parametrize("bound", [(0x28, 9), (0x28, 3), (0x18, 1), (0x18, 3), (0x30, 1), (0x40, 2)])
def test_a_state_that_cannot_be_is_refused_and_leaves_the_fixed_ones(bindings, bound):
    with pytest.raises(ValueError, match="cannot be bound to stream"):
        bindings.load(BindingsState(((0x30, 2), bound)))

    assert list(bindings) == [3]
