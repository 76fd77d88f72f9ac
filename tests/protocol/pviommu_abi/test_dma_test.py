"""The DMA test engine's shared BAR, as numbers."""

from __future__ import annotations

from pviommu_abi import dma_test
from pviommu_abi.dma_test import Descriptor, SgEntry


def test_a_descriptor_is_64_bytes_with_its_status_last() -> None:
    assert Descriptor.SIZE == 64
    assert Descriptor.offset_of("status") == 60
    assert all(field.offset % field.size == 0 for field in Descriptor.FIELDS)


def test_descriptors_and_entries_share_the_bar_without_overlap() -> None:
    assert dma_test.ENTRIES * Descriptor.SIZE <= dma_test.SG_OFFSET
    assert dma_test.SG_OFFSET + dma_test.SG_ENTRIES * SgEntry.SIZE <= dma_test.SHARED_BAR_SIZE


def test_the_queue_is_a_power_of_two_so_that_indices_may_wrap() -> None:
    assert (1 << 32) % dma_test.ENTRIES == 0
