"""The machines that are compared, and choosing among them."""

from __future__ import annotations

import pytest

from pviommu.bench.configurations import CONFIGURATIONS, choose, device_address
from pviommu.lab.problems import UsageError


def test_all_configurations_are_chosen_without_a_list() -> None:
    assert choose(None) == list(CONFIGURATIONS)


def test_a_list_chooses_in_the_order_of_the_table() -> None:
    assert [entry.name for entry in choose("pviommu, none")] == ["none", "pviommu"]


@pytest.mark.parametrize(("names", "wrong"), [("none,smmu", "smmu"), ("", "nothing"), (",", "nothing")])
def test_an_unknown_or_empty_list_is_refused_with_the_names_there_are(names: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong} is not one of none, virtio-iommu, .*pviommu"):
        choose(names)


def test_only_one_iommu_is_in_any_machine() -> None:
    for entry in CONFIGURATIONS:
        kinds = ["virtio-iommu" in " ".join(entry.arguments), "intel-iommu" in " ".join(entry.arguments), entry.served]
        assert sum(kinds) == (entry.name != "none"), entry.name


def test_the_measured_device_is_the_plain_one_or_the_first_endpoint() -> None:
    for entry in CONFIGURATIONS:
        plain = any(word.startswith("pci-testdev,addr=0x10") for word in entry.arguments)
        assert plain != entry.served
        assert device_address(entry) == ("0000:00:11.0" if entry.served else "0000:00:10.0")
