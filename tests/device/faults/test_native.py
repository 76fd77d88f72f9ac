"""With the native core: a rule takes what it is about to Python, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pviommu.faults.scenario import Scenario
from pviommu.native.core import NativeCore
from pviommu.scenarios.guest import PlayedGuest
from pviommu.scenarios.run import played
from pviommu.scenarios.stage import Stage

from ..native.conftest import make_library
from .conftest import scenario


@pytest.fixture(scope="module")
def make_core(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], NativeCore]:
    library = make_library(tmp_path_factory.mktemp("cache"))
    return lambda: NativeCore(library)


@pytest.mark.parametrize(
    ("on", "maps", "unmaps"),
    [
        ("op.map_pages.pre", 0, 8),
        ("op.unmap_pages.pre", 8, 0),
        ("op.alloc_context.pre", 8, 8),
        ("iotlb.invalidate.pre", 8, 0),
        ("ring.decode.pre", 0, 0),
        ("interrupt.pre", 8, 8),
    ],
)
def test_a_rule_leaves_other_operations_to_the_core(
    make_core: Callable[[], NativeCore], on: str, maps: int, unmaps: int
) -> None:
    with Stage(scenario({"on": on, "expect": {"fired": "0.."}}), core=make_core()) as stage:
        done = [0, 0]
        core: Any = stage.machine.iommu._executor._core
        take = core._done

        def counted() -> Any:
            report = take()
            done[0] += report.maps
            done[1] += report.unmaps
            return report

        core._done = counted
        guest = PlayedGuest(stage)
        guest.start()
        _, ctx = guest.alloc_context()
        for number in range(8):
            assert guest.map(ctx, 0x100 + number, 0x10, 1) == (0, 1)
            assert guest.unmap(ctx, 0x100 + number, 1) == (0, 1)
    assert done == [maps, unmaps]


@pytest.mark.parametrize("workload", ["maps", "wire"])
@pytest.mark.parametrize(
    "rules",
    [
        (),
        ({"on": "op.map_pages.apply", "schedule": {"nth": 3}, "do": {"partial": 1, "then": "ENOMEM"}},),
        ({"on": "op.unmap_pages.pre", "schedule": {"every": 3}, "do": {"delay": "1ms"}},),
        ({"on": "table.map.pre", "schedule": {"nth": 3}, "do": {"fail": "POOL_EXHAUSTED"}},),
        ({"on": "dma.translate.pre", "schedule": {"every": 4}, "do": {"delay": "1ms"}},),
        ({"on": "iotlb.lookup.pre", "do": {"miss": True}},),
        ({"on": "ring.complete.pre", "schedule": {"every": 5}, "do": {"delay": "1ms"}},),
    ],
    ids=lambda rules: rules[0]["on"] if rules else "none",
)
def test_a_guest_survives_the_same_with_either_core(
    make_core: Callable[[], NativeCore], workload: str, rules: tuple[dict[str, object], ...]
) -> None:
    rule_set: Scenario = scenario(*rules)
    python, native = played(rule_set, workload), played(rule_set, workload, core=make_core())

    assert python.status == native.status == 0
    assert python.answers == native.answers
    assert (python.harm, native.harm) == ((), ())


def test_a_lost_invalidation_is_stale_with_a_core_that_walks_itself(make_core: Callable[[], NativeCore]) -> None:
    outcome = played(
        scenario({"on": "iotlb.invalidate.apply", "schedule": {"nth": 3}, "do": {"drop": True}}),
        "maps",
        core=make_core(),
    )
    assert outcome.status == 0
    assert any("which is not mapped, is done" in text for text in outcome.harm)
