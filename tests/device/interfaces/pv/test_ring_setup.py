import pytest

from pviommu.interfaces.pv.ring_setup import RingSetup, overlaps
from pviommu_abi.shared import RING_AREA_OFFSET, RING_AREA_SIZE


class Ring:
    def __init__(self, entries):
        self.entries = entries
        self.enabled = entries > 0


def test_the_base_is_made_of_two_halves():
    assert RingSetup(base_low=0x5000, base_high=1).base == 0x100005000


@pytest.mark.parametrize(
    ("setup", "legal"),
    [
        (RingSetup(0, 16, RING_AREA_OFFSET), True),
        (RingSetup(0, 1024, RING_AREA_OFFSET + RING_AREA_SIZE - 65536), True),
        (RingSetup(0, 1024, RING_AREA_OFFSET + RING_AREA_SIZE - 61440), False),
        (RingSetup(1, 16, RING_AREA_OFFSET), False),
        (RingSetup(0, 17, RING_AREA_OFFSET), False),
        (RingSetup(0, 16, RING_AREA_OFFSET + 2048), False),
        (RingSetup(0, 16, RING_AREA_OFFSET, 1), False),
    ],
)
def test_a_ring_lies_on_a_page_of_the_ring_area_with_a_power_of_two_slots(setup, legal):
    assert setup.is_legal() is legal


def test_only_rings_that_are_on_can_be_overlapped():
    setups = [RingSetup(0, 64, RING_AREA_OFFSET), RingSetup(0, 64, RING_AREA_OFFSET)]
    assert overlaps(setups[1], [Ring(64), Ring(0)], setups)
    assert not overlaps(setups[1], [Ring(0), Ring(0)], setups)
    assert not overlaps(RingSetup(0, 64, RING_AREA_OFFSET + 4096), [Ring(64), Ring(0)], setups)
