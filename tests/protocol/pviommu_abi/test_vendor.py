"""Layouts of the vendor operations, as numbers."""

from __future__ import annotations

from pviommu_abi.vendor import Binding, MapOp, Usage

from .conftest import offsets


def test_own_operations_fit_the_payload_and_are_aligned() -> None:
    assert Binding.SIZE == 16
    assert Usage.SIZE == 32
    assert offsets(Usage)["mapped_pages"] % 8 == 0


def test_an_element_of_a_batch_has_the_layout_of_2014() -> None:
    assert MapOp.SIZE == 24
    assert offsets(MapOp) == {"bfn": 0, "mfn": 8, "flags": 16, "status": 20}
