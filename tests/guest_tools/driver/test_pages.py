"""Tests count in the device's pages of 4 KiB where a kernel's own page may be larger than what they work on."""

from __future__ import annotations

import re
from pathlib import Path


def test_tests_of_the_driver_do_not_count_in_pages_of_the_kernel(checkout: Path) -> None:
    driver = checkout / "guest-tools/driver"
    # in memory of their own, and in BARs
    sources = [*sorted(driver.glob("pviommu_test*.[ch]")), driver / "pviommu_dmatest_peer.c"]
    assert len(sources) > 10
    counting = [path.name for path in sources if re.search(r"\bPAGE_(SIZE|SHIFT|MASK)\b", path.read_text())]
    assert counting == []
