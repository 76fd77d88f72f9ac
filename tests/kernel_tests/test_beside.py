"""The table of the kernel's tests of VFIO in a guest and without one."""

from __future__ import annotations

from pathlib import Path

from .beside import guest_outcomes, table

JUNIT = """<testsuites><testsuite name="lab">
<testcase classname="guest" name="vfio-pci is there"/>
<testcase classname="guest.selftests/vfio.a_test" name="a_test.vfio_type1_iommu.one"/>
<testcase classname="guest.selftests/vfio.a_test" name="a_test.iommufd.one"><failure message="not ok"/></testcase>
<testcase classname="guest.selftests/vfio.a_test" name="a_test.iommufd_compat_type1v2_huge.one"><skipped/></testcase>
<testcase classname="guest.selftests/vfio" name="sriov_test"><skipped/></testcase>
</testsuite></testsuites>
"""


def test_modes_of_access_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    guest = guest_outcomes(tmp_path)
    here = {"a_test.vfio_type1_iommu.one": "passed", "a_test.iommufd.one": "passed", "b_test.two": "failed"}

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(guest, here).splitlines()]

    assert rows[2:] == [
        ["a_test.one", "1 passed, 1 failed", "2 passed"],
        ["a_test.huge.one", "1 skipped", "not there"],
        ["sriov_test", "1 skipped", "not there"],
        ["b_test.two", "not there", "1 failed"],
        ["all", "1 passed, 2 skipped, 1 failed", "2 passed, 1 failed"],
    ]
