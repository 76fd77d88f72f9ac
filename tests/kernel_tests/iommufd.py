"""The kernel's own tests of iommufd, on the model: `scripts/iommufd-selftest`.

The programs (tools/testing/selftests/iommu) are built unchanged from a kernel source, as `pviommu lab` has one, and run
by what `pviommu vfio run --mock --fail-nth` uses.

Prints one line for each test, and ends with status 1 if one of those that pass does not, or another one does: see
:data:`PASS`. It takes a minute on a quiet machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pviommu.interfaces.iommufd import System
from pviommu.vfio_run.fail_nth import FailNth
from pviommu.vfio_run.running import run_program

from .source import built, chosen_source, options, outcomes

__all__ = ["PASS", "build", "main", "run"]

_TESTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("iommufd",): (
        *("simple_close", "cmd_fail", "cmd_length", "cmd_ex_fail", "global_options", "simple_ioctls", "unmap_cmd"),
        *("map_cmd", "info_cmd", "set_iommu_cmd", "vfio_ioas"),
    ),
    ("change_process", "account_none", "account_user", "account_mm"): ("basic",),
    ("iommufd_ioas", "no_domain", "mock_domain", "two_mock_domain", "mock_domain_limit"): (
        *("ioas_auto_destroy", "ioas_destroy", "alloc_hwpt_nested", "hwpt_attach", "ioas_area_destroy"),
        *("ioas_area_auto_destroy", "get_hw_info", "area", "unmap_fully_contained_areas", "area_auto_iova"),
        *("reserved_overflow", "area_allowed", "copy_area", "iova_ranges", "access_domain_destory", "access_pin"),
        *("access_pin_unmap", "access_rw", "access_rw_unaligned", "fork_gone", "fork_present"),
        *("ioas_option_huge_pages", "ioas_iova_alloc", "ioas_align_change", "copy_sweep", "dmabuf_simple"),
        "dmabuf_revoke",
    ),
    (
        *("iommufd_mock_domain", "one_domain", "two_domains", "one_domain_hugepage", "two_domains_hugepage"),
        *("one_domain_file", "one_domain_file_hugepage"),
    ): ("basic", "ro_unshare", "all_aligns", "all_aligns_copy", "user_copy", "replace", "alloc_hwpt"),
    (
        *("iommufd_dirty_tracking", "domain_dirty8k", "domain_dirty16k", "domain_dirty64k", "domain_dirty128k"),
        *("domain_dirty320k", "domain_dirty64M", "domain_dirty64M_huge", "domain_dirty128M", "domain_dirty128M_huge"),
    ): (
        *("enforce_dirty", "set_dirty_tracking", "pasid_set_dirty_tracking", "device_dirty_capability"),
        *("get_dirty_bitmap", "get_dirty_bitmap_no_clear"),
    ),
    ("vfio_compat_mock_domain", "Ver1v2", "Ver1v0"): (
        *("simple_close", "option_huge_pages", "get_info", "map", "huge_map"),
    ),
    ("iommufd_viommu", "no_viommu", "mock_viommu"): (
        *("viommu_auto_destroy", "viommu_negative_tests", "viommu_alloc_nested_iopf", "viommu_alloc_with_data"),
        *("vdevice_alloc", "vdevice_cache", "hw_queue", "vdevice_tombstone"),
    ),
    ("iommufd_device_pasid", "no_pasid", "has_pasid"): ("pasid_attach",),
}
"""The program's tests, by fixture and its variants."""
ALL = frozenset(
    ".".join(filter(None, (fixture, variant, test)))
    for (fixture, *variants), tests in _TESTS.items()
    for variant in variants or ("",)
    for test in tests
)
FAIL = frozenset(f"change_process.account_{mode}.basic" for mode in ("none", "user", "mm"))
"""Tests that read in /proc what the kernel has pinned for the program, which is nothing here."""
SKIP = frozenset(
    f"iommufd_viommu.no_viommu.{test}"
    for test in (
        *("viommu_alloc_nested_iopf", "viommu_alloc_with_data", "vdevice_cache", "hw_queue", "vdevice_tombstone"),
    )
)
"""Tests that the program skips by itself."""
PASS = ALL - FAIL - SKIP
"""Tests that must pass."""
FAIL_NTH = frozenset(
    f"basic_fail_nth.{test}"
    for test in (
        *("basic", "map_domain", "map_file_domain", "map_two_domains", "access_rw", "access_pin", "access_pin_domain"),
        "device",
    )
)
"""Tests of the other program: one place after the other fails on the way through some requests, until none is left."""
SLOW = ("access_rw", "access_rw_unaligned", "fork_gone", "fork_present", "ioas_iova_alloc")
"""Tests, in all variants, of more than ten thousand requests each, and with a limit of 30 seconds. On a busy machine
they may not end in time."""
LARGE = ("domain_dirty128M", "domain_dirty128M_huge")
"""Variants that are like others, with more memory."""
PROGRAM, FAIL_NTH_PROGRAM = _PROGRAMS = "iommufd", "iommufd_fail_nth"
_OPTIONS = ("-O1", "-w", "-D_GNU_SOURCE", "-DMFD_HUGETLB=4", "-D__counted_by(x)=")
_PARTS = (
    *("tools/testing/selftests/*.h", "tools/testing/selftests/iommu", "tools/testing/selftests/kselftest"),
    *("tools/include", "drivers/iommu/iommufd/iommufd_test.h", "include/uapi/linux/iommufd.h"),
    "include/uapi/linux/vfio.h",
)
_CAPABILITIES = """\
typedef int cap_t, cap_value_t;
enum { CAP_EFFECTIVE, CAP_CLEAR, CAP_IPC_LOCK };
#define cap_get_proc() 0
#define cap_set_flag(...) 0
#define cap_set_proc(...) 0
#define cap_free(...) 0
"""
"""Stands for <sys/capability.h>: the program gives up a capability that it needs not have here."""
_MAPPING = """\
#include_next <sys/mman.h>
#undef MAP_HUGETLB
#define MAP_HUGETLB 0
"""
"""Goes around <sys/mman.h>: memory in huge pages, which few machines set aside, is ordinary memory here."""


def build(source: Path) -> Path:
    """The folder of the programs, of a kernel source that is a folder or an archive; of an archive they are kept in the
    cache.
    """
    identity = f"{_PROGRAMS} {_OPTIONS} {_CAPABILITIES} {_MAPPING}".encode()
    return built("iommufd-selftest", source, _PARTS, identity, _compile)


def _compile(source: Path, folder: Path) -> list[Path]:
    own = folder / "own"
    ours = (("sys/capability.h", _CAPABILITIES), ("sys/mman.h", _MAPPING))
    for name, text in (*ours, ("linux/iommufd.h", None), ("linux/vfio.h", None)):
        path = own / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or (source / "include/uapi" / name).read_text())
    tests = source / "tools/testing/selftests"
    includes = [f"-I{path}" for path in (own, tests, source / "tools/include")]
    for name in _PROGRAMS:
        program = tests / "iommu" / f"{name}.c"
        subprocess.run(["cc", *_OPTIONS, *includes, "-o", folder / name, program, "-lpthread"], check=True)
    return [folder / name for name in _PROGRAMS]


def run(program: Path, *choices: str) -> dict[str, str]:
    """What became of each test, "passed", "failed" or "skipped", by fixture and name. ``choices`` are options of the
    program, which choose among its tests.
    """
    with tempfile.TemporaryDirectory(prefix="iommufd-selftest-") as name:
        said = Path(name) / "said"
        run_program(
            ["sh", "-c", 'said=$1 && shift && exec "$0" "$@" >"$said" 2>&1', str(program), str(said), *choices],
            System(mock=True),
            fail_nth=FailNth(),
        )
        return outcomes(said.read_text(errors="replace"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module text."""
    args = options("iommufd-selftest", __doc__).parse_args(arguments)
    source = chosen_source("iommufd-selftest", args.source)
    if source is None:
        return 3
    programs = build(source)
    found = run(programs / PROGRAM) | run(programs / FAIL_NTH_PROGRAM)
    for test, outcome in found.items():
        print(f"{outcome:8} {test}")
    lost = sorted(test for test in PASS | FAIL_NTH if found.get(test) != "passed")
    news = sorted(test for test in found if found[test] == "passed" and test not in PASS | FAIL_NTH)
    passed = sum(outcome == "passed" for outcome in found.values())
    print(
        f"{passed} of {len(found)} passed, {len(PASS | FAIL_NTH)} must", *(f"lost: {test}" for test in lost), sep="\n"
    )
    for test in news:
        print(f"passes now, and is not listed: {test}")
    return 1 if lost or news else 0


if __name__ == "__main__":
    sys.exit(main())
