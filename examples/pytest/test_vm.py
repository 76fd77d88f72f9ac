"""The lab's guest, booted once for all tests of a run: `pytest --pviommu-vm test_vm.py`."""

from __future__ import annotations

import pytest

from pviommu.testing.vm import Vm

TESTS = """
folder=/sys/kernel/debug/pviommu_dmatest/${LAB_ENGINES%% *}
echo quick >$folder/run && cat $folder/ktap
"""


def test_both_engines_are_behind_the_iommu(pviommu_vm: Vm) -> None:
    groups = "for engine in $LAB_ENGINES; do readlink /sys/bus/pci/devices/$engine/iommu_group; done"
    assert len(set(pviommu_vm.check(groups).split())) == 2
    assert all(each["context"] for each in pviommu_vm.call("endpoints")["endpoints"])


@pytest.mark.scenario({"rule": [{"id": "slow-maps", "on": "op.map_pages.pre", "do": {"delay": "200us"}}]})
def test_the_driver_waits_for_slow_maps(pviommu_vm: Vm) -> None:
    report = pviommu_vm.check(TESTS)
    assert "\nok 1" in report
    assert "not ok" not in report
