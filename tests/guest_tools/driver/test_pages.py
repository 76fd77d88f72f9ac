"""The driver's tests count in the device's pages of 4 KiB: a kernel's own page may be larger than their memory is."""

from __future__ import annotations

import re
from pathlib import Path


def test_tests_of_the_driver_do_not_count_in_pages_of_the_kernel(checkout: Path) -> None:
    sources = sorted((checkout / "guest-tools/driver").glob("pviommu_test*.[ch]"))
    assert len(sources) > 10
    counting = [path.name for path in sources if re.search(r"\bPAGE_(SIZE|SHIFT|MASK)\b", path.read_text())]
    assert counting == []
