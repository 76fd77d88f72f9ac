"""What the profiles do alike: what one must declare, and what stops an operation on contexts."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from pviommu.engine import Stop
from pviommu.interfaces.pv.xen import CONTEXT_RESULTS, CONTEXT_STOPS
from pviommu.interfaces.pv.xen_2024 import Xen2024
from pviommu.interfaces.pv.xen_v7 import XenV7
from pviommu_abi.slots import Errno
from pviommu_abi.xen_v7 import V7FreeFlags, XenV7Op

from ...conftest import Driver
from .conftest import V7


def operands(driver: Driver) -> tuple[Any, ...]:
    iommu = driver.iommu
    return iommu.contexts, iommu.bindings, iommu.memory, iommu.counters, iommu.settings


@pytest.mark.parametrize("profile", [Xen2024, XenV7])
def test_each_profile_has_a_result_for_all_that_stops_it(profile: type[Xen2024 | XenV7]) -> None:
    assert set(profile.context_results) == CONTEXT_STOPS


def test_a_profile_without_a_result_for_what_may_stop_it_is_refused(driver: Driver) -> None:
    class Silent(XenV7):
        context_results = {stop: -1 for stop in CONTEXT_RESULTS if stop is not Stop.NESTED_ATTACHED}  # noqa: RUF012

    with pytest.raises(ValueError, match="Silent: no result for NESTED_ATTACHED, NO_ENDPOINT"):
        Silent(*operands(driver))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"MAP_PAGES": 6, "UNMAP_PAGES": 6}, "UNMAP_PAGES and map_pages are both 6"),
        ({"MAP_PAGES": int(XenV7Op.INIT), "UNMAP_PAGES": 7}, "MAP_PAGES and init are both 2"),
    ],
)
def test_a_profile_that_uses_a_number_twice_is_refused(driver: Driver, numbers: dict[str, int], text: str) -> None:
    class Twice(XenV7):
        pass

    Twice.numbers = IntEnum("numbers", numbers)  # type: ignore[assignment,misc]
    with pytest.raises(ValueError, match=f"Twice: {text}"):
        Twice(*operands(driver))


def test_a_guest_cannot_free_what_a_nested_domain_stands_on(v7: V7) -> None:
    assert v7.alloc() == (0, 1)
    assert v7.driver.iommu.engine.alloc_nested(9, 1, None) is None  # type: ignore[arg-type]

    assert [v7.free(1), v7.free(1, V7FreeFlags.REATTACH_DEFAULT)] == [-Errno.EBUSY] * 2
