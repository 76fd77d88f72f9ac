"""The kernel's tests of VFIO in the lab's guest, beside the same without a virtual machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from pviommu.bench.bars import markdown_table

__all__ = ["guest_outcomes", "table"]

_MODES = ("vfio_type1v2_iommu", "vfio_type1_iommu", "iommufd_compat_type1v2", "iommufd_compat_type1", "iommufd")
_VARIANT = re.compile(rf"\.(?:{'|'.join(_MODES)})[._]")
_SUITE = "selftests/vfio"
_OUTCOMES = ("passed", "skipped", "failed")


def guest_outcomes(results: Path) -> dict[str, str]:
    """What became of each test in a run of `pviommu lab run --suite vfio`, whose results are in this folder."""
    found = {}
    for case in ElementTree.parse(results / "junit.xml").getroot().iter("testcase"):
        if _SUITE in case.get("classname", ""):
            failed, skipped = case.find("failure") is not None, case.find("skipped") is not None
            found[case.get("name", "")] = "failed" if failed else "skipped" if skipped else "passed"
    return found


def table(guest: Mapping[str, str], here: Mapping[str, str]) -> str:
    """A row for each test, with what became of it in all modes of access together."""
    sides = [_by_test(guest), _by_test(here)]
    names = list(dict.fromkeys(name for side in sides for name in side))
    rows = [(name, *(_shown(side.get(name, Counter())) for side in sides)) for name in names]
    total = [_shown(sum(side.values(), Counter())) for side in sides]
    return markdown_table(("test", "in the guest", "without a VM"), [*rows, ("all", *total)], left=(0, 1, 2))


def _by_test(outcomes: Mapping[str, str]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for name, outcome in outcomes.items():
        found.setdefault(_VARIANT.sub(".", name), Counter())[outcome] += 1
    return found


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome]) or "not there"
