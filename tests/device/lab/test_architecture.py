"""What is different about guests of another architecture."""

from __future__ import annotations

import pytest

from pviommu.lab.architecture import AMD64, ARM64, interrupt_controller
from pviommu.lab.problems import UsageError
from pviommu.topology import MsiSection


@pytest.mark.parametrize(
    ("name", "first", "last", "isolates"),
    [(None, 0x08080, 0x0809F, True), ("its", 0x08080, 0x0809F, True), ("gicv2m", 0x08020, 0x08020, False)],
)
def test_a_controller_has_the_window_of_qemus_virt(name: str | None, first: int, last: int, isolates: bool) -> None:
    controller = interrupt_controller(ARM64, name)

    assert MsiSection.parse(controller.window).region() == (first, last, "msi")
    assert controller.isolates is isolates


def test_guests_of_amd64_leave_the_window_to_the_topology() -> None:
    assert interrupt_controller(AMD64, None).window == ""


def test_a_controller_that_a_machine_lacks_is_named_with_those_that_it_has() -> None:
    with pytest.raises(UsageError, match="--msi apic: the machine of arm64 has its or gicv2m"):
        interrupt_controller(ARM64, "apic")
    with pytest.raises(UsageError, match="--msi its: the machine of amd64 has apic"):
        interrupt_controller(AMD64, "its")
