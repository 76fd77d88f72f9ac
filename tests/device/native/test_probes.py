"""Probes on a native core: Python sees the operations that a rule names, and C carries out the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pviommu.probes import ProbeCall, Probes, Rule

from .. import test_probes as original
from ..conftest import Driver
from .conftest import WHOLE

seen_at = original.seen_at
test_an_operation_is_seen_before_it_and_after_it_with_its_answer = (
    original.test_an_operation_is_seen_before_it_and_after_it_with_its_answer
)
test_an_operation_in_steps_is_seen_once_after_its_last_step = (
    original.test_an_operation_in_steps_is_seen_once_after_its_last_step
)
test_a_translation_is_seen_with_where_it_leads_or_its_fault = (
    original.test_a_translation_is_seen_with_where_it_leads_or_its_fault
)


@pytest.fixture
def parts() -> dict[str, bool]:
    return WHOLE


@pytest.mark.parametrize("name", ["map_pages", "unmap_pages"])
def test_a_rule_on_one_operation_leaves_the_others_native(
    make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[ProbeCall] = []
    driver = make_driver(probes=Probes([Rule(f"op.{name}.pre", seen.append)])).start()
    _, ctx = driver.alloc()
    in_python: list[int] = []
    execute = driver.iommu._executor.operations.begin

    def noted(op_class: int, op: int, flags: int, payload: bytes) -> object:
        in_python.append(payload[0])
        return execute(op_class, op, flags, payload)

    monkeypatch.setattr(driver.iommu._executor.operations, "begin", noted)
    assert (driver.map(ctx, 0x100, 0x10, 3), driver.unmap(ctx, 0x100, 3)) == ((0, 3), (0, 3))

    (event,) = seen
    assert event.probe == f"op.{name}.pre"
    assert in_python == [event.arguments[0][0]]
