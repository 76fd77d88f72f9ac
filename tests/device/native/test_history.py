"""What the native core records, on a device whose rings it has; and the tests of history/test_explanation.py there."""

import random

import pytest

from pviommu.history.records import HEADER, STOPS, History
from pviommu.machine import Machine
from pviommu.native import page_operation
from pviommu_abi.slots import SlotFlags

from .. import conftest as machines
from ..conftest import Driver
from ..history.test_explanation import *  # noqa: F403


def test_stops_have_the_numbers_of_the_native_core():
    assert STOPS[: len(page_operation._STOPS)] == page_operation._STOPS
    assert STOPS[len(page_operation._STOPS)] == "no memory in this process"


def histories(driver: Driver, seed: int) -> list[tuple[int, ...]]:
    """Random maps and unmaps, good and bad: what is recorded of them, without times."""
    history, randomness = History(4096), random.Random(seed)
    driver.iommu.keep_history(history)
    ctx = driver.attached()
    for _ in range(300):
        dfn, nr = randomness.randrange(0, 64), randomness.randrange(0, 12)
        flags = int(SlotFlags.POSTED) if randomness.random() < 0.3 else 0
        where = randomness.choice((ctx, ctx, ctx, 0, 99))
        if randomness.random() < 0.5:
            gfn = randomness.choice((0x100 + dfn, 0xFFA, 0x2000))
            driver.put(driver.map_payload(where, dfn, gfn, nr, randomness.randrange(4)), flags=flags)
        else:
            driver.put(driver.unmap_payload(where, dfn, nr), flags=flags)
        if randomness.random() < 0.4:
            driver.work()
    driver.work()
    return [(*record[:1], *record[2:]) for record in history.back()]


@pytest.mark.parametrize("seed", range(5))
def test_it_records_what_python_does(make_driver, monkeypatch, seed):
    found = histories(make_driver().start(), seed)

    monkeypatch.setattr(machines, "Machine", Machine)
    twin = Driver()
    try:
        assert histories(twin.start(), seed) == found
    finally:
        twin.close()
    assert len(found) > 100


def test_the_native_core_writes_the_records_of_its_slots(make_driver, parts):
    driver = make_driver().start()
    history = History(4)
    driver.iommu.keep_history(history)
    ctx = driver.attached()
    before = HEADER.unpack_from(history.buffer)[3]
    assert driver.map(ctx, 0x10, 0x100, 1)[0] == 0

    assert next(history.back()).dfn == 0x10
    assert (HEADER.unpack_from(history.buffer)[3] > before) == parts["rings"]  # C has looked at its clock
