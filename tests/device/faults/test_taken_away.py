"""Rules that are taken away have no effect any more on what they held."""

from __future__ import annotations

from typing import Any

import pytest

from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op

from .conftest import Faulty, Load, scenario

PRE = "op.map_pages.pre"


def held(load: Load, *rules: dict[str, Any]) -> Faulty:
    """A machine one of whose maps, in ring 0, is held by the first of these rules."""
    faulty = load(*rules)
    _, ctx = faulty.driver.alloc()
    faulty.driver.put(faulty.driver.map_payload(ctx, 0x100, 0x10, 1))
    for _ in range(3):
        faulty.driver.iommu.work()
    assert faulty.driver.completed() == 1
    return faulty


def unload(faulty: Faulty, *others: dict[str, Any]) -> None:
    faulty.faults.load(scenario(*others))
    faulty.driver.iommu.probes.rebind()
    for _ in range(3):
        faulty.driver.iommu.work()


@pytest.mark.parametrize(
    "do",
    [{"delay": "3600s"}, {"bandwidth": "1/s"}, {"suspend": "one"}, {"wait": "one"}, {"reorder": 9, "within": "1s"}],
)
def test_what_only_takes_time_goes_on_at_once(load: Load, do: dict[str, Any]) -> None:
    faulty = held(load, {"on": PRE, "do": do})

    unload(faulty)

    assert faulty.driver.completed() == 2
    assert faulty.driver.outcome(1)[0].result == 0


def test_what_goes_on_meets_none_of_the_rules_that_are_gone(load: Load) -> None:
    faulty = held(
        load,
        {"on": PRE, "do": {"suspend": "one"}},
        {"on": "op.map_pages.apply", "do": {"lie": True}},
        {"on": "op.map_pages.post", "do": {"suspend": "two"}},
    )
    events = faulty.faults.log.count

    unload(faulty)

    assert faulty.driver.completed() == 2
    assert faulty.driver.outcome(1)[0].result == 0
    assert faulty.faults.log.count == events
    assert faulty.faults.holds.tags() == []


@pytest.mark.parametrize("side", ["pre", "post"])
@pytest.mark.parametrize("place", ["op.map_pages", "ring.decode"])
@pytest.mark.parametrize("others", [[], ["op.map_pages.pre"], ["ring.decode.pre"]])
def test_what_is_done_already_is_not_done_again(load: Load, place: str, side: str, others: list[str]) -> None:
    on = f"{place}.{side}"
    faulty = held(load, {"on": on, "schedule": {"nth": 2 if place == "ring.decode" else 1}, "do": {"suspend": "one"}})

    unload(faulty, *({"on": each} for each in others))

    assert faulty.driver.completed() == 2
    assert faulty.driver.outcome(1)[0].result == 0
    assert faulty.faults.holds.tags() == []


@pytest.mark.parametrize("side", ["pre", "post"])
def test_an_operation_without_pieces_goes_on_too(load: Load, side: str) -> None:
    faulty = load({"on": f"op.alloc_context.{side}", "do": {"suspend": "one"}})
    driver = faulty.driver
    driver.put(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())
    driver.iommu.work()
    assert driver.completed() == 0

    unload(faulty)

    assert driver.completed() == 1
    assert driver.outcome(0)[0].result == 0
