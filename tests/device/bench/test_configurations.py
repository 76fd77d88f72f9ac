"""The machines that are compared, and choosing among them."""

from __future__ import annotations

import pytest

from pviommu.bench.configurations import CONFIGURATIONS, LEVERS, choose, device_address
from pviommu.lab.problems import UsageError


def test_all_configurations_are_chosen_without_a_list() -> None:
    assert choose(None) == list(CONFIGURATIONS)
    assert choose(None, levers=True) == [*CONFIGURATIONS, *LEVERS]


def test_a_list_chooses_in_the_order_of_the_table() -> None:
    assert [entry.name for entry in choose("pviommu, none")] == ["none", "pviommu"]
    assert [entry.name for entry in choose("pviommu-ring-waited,none")] == ["none", "pviommu-ring-waited"]
    assert choose("none", levers=True)[1:] == list(LEVERS)


@pytest.mark.parametrize(("names", "wrong"), [("none,smmu", "smmu"), ("", "nothing"), (",", "nothing")])
def test_an_unknown_or_empty_list_is_refused_with_the_names_there_are(names: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong} is not one of none, floor, .*pviommu"):
        choose(names)


def test_only_one_iommu_is_in_any_machine() -> None:
    for entry in (*CONFIGURATIONS, *LEVERS):
        kinds = ["virtio-iommu" in " ".join(entry.arguments), "intel-iommu" in " ".join(entry.arguments), entry.served]
        assert sum(kinds) == (entry.name != "none"), entry.name


def test_the_measured_device_is_the_plain_one_or_the_first_endpoint() -> None:
    for entry in CONFIGURATIONS:
        plain = any(word.startswith("pci-testdev,addr=0x10") for word in entry.arguments)
        assert plain != entry.served
        assert device_address(entry) == ("0000:00:11.0" if entry.served else "0000:00:10.0")


def test_lazy_and_strict_are_asked_of_the_kernel_and_expected_of_the_group() -> None:
    for entry in (*CONFIGURATIONS, *LEVERS):
        strict = "-strict" in entry.name or entry.name == "intel-iommu"
        if entry.group:
            assert entry.group == ("DMA" if strict else "DMA-FQ"), entry.name
        if entry.group and entry.name != "intel-iommu":
            assert f"iommu.strict={int(strict)}" in entry.kernel_arguments


def test_a_lever_is_a_configuration_with_one_thing_changed() -> None:
    wholes = {entry.name: entry for entry in CONFIGURATIONS}
    for lever in LEVERS:
        whole = wholes[lever.lever_of]
        assert lever.name.startswith(f"{whole.name}-")
        assert (lever.kernel_arguments, lever.modules, lever.group) == (
            whole.kernel_arguments,
            whole.modules,
            whole.group,
        )
        assert lever.options[: len(whole.options)] == whole.options
        assert (lever.options != whole.options) != bool(lever.server_options)


def test_each_kind_of_tables_is_measured_whatever_the_default_of_the_driver_is() -> None:
    kinds = {entry.name: entry.options for entry in CONFIGURATIONS if entry.modules == ("pviommu",)}
    assert kinds == {
        **dict.fromkeys(("pviommu", "pviommu-strict"), ("tables=on",)),
        **dict.fromkeys(("pviommu-ring", "pviommu-ring-strict"), ("tables=off",)),
    }
