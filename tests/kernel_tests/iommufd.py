"""The kernel's own tests of iommufd, on the model: `scripts/iommufd-selftest`.

The program (tools/testing/selftests/iommu) is built unchanged from a kernel source, as `pviommu lab` has one, and run
by what `pviommu vfio run` uses. Of the requests that the kernel has for these tests only, those are there that need no
mock device: reserving IOVAs, and accounting, which has nothing to say here.

Prints one line for each test, and ends with status 1 if one of those that pass does not: see :data:`PASS`.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pviommu.cache import cache_folder
from pviommu.interfaces.iommufd import OpenFile, Process, RequestError, System
from pviommu.interfaces.iommufd.context import Iommufd
from pviommu.interfaces.iommufd.ioas import Ioas
from pviommu.lab.kept import keep
from pviommu.vfio_run.running import run_program

__all__ = ["PASS", "TestSystem", "build", "main", "run"]

PASS = frozenset(
    f"{fixture}.{test}"
    for fixture, tests in {
        "iommufd": (
            *("simple_close", "cmd_fail", "cmd_length", "cmd_ex_fail", "global_options", "simple_ioctls", "unmap_cmd"),
            *("map_cmd", "info_cmd", "set_iommu_cmd", "vfio_ioas"),
        ),
        "iommufd_ioas.no_domain": (
            *("ioas_auto_destroy", "ioas_destroy", "alloc_hwpt_nested", "hwpt_attach", "ioas_area_destroy"),
            *("ioas_area_auto_destroy", "get_hw_info", "area", "unmap_fully_contained_areas", "area_auto_iova"),
            *("reserved_overflow", "area_allowed", "copy_area", "iova_ranges", "ioas_option_huge_pages"),
            *("ioas_iova_alloc", "ioas_align_change", "copy_sweep"),
        ),
        "iommufd_viommu.no_viommu": ("viommu_auto_destroy",),
    }.items()
    for test in tests
)
"""Tests that must pass."""
_PROGRAM = "iommufd"
_OPTIONS = ("-O1", "-w", "-D_GNU_SOURCE", "-DMFD_HUGETLB=4", "-D__counted_by(x)=")
_REQUEST = 0x3BA0
_HEADER = struct.Struct("<IIII")
_RANGE = struct.Struct("<QQ")
_ADD_RESERVED, _CHECK_REFS, _MEMORY_LIMIT = 1, 4, 9
_OF_AN_OBJECT = (2, 10, 12)
"""Making a mock device on an object, or moving one."""
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


class _TestIommufd(Iommufd):
    def ioctl(self, process: Process, request: int, argument: int) -> int:
        if request != _REQUEST:
            return super().ioctl(process, request, argument)
        _, operation, number, _ = _HEADER.unpack(process.memory.read(argument, _HEADER.size))
        if operation in (_CHECK_REFS, _MEMORY_LIMIT):
            return 0
        if operation == _ADD_RESERVED:
            start, length = _RANGE.unpack(process.memory.read(argument + _HEADER.size, _RANGE.size))
            self.objects.get(Ioas, number).reserve("the test", [(start, start + length - 1)])
            return 0
        if operation in _OF_AN_OBJECT and self.objects.find(number) is None:
            raise RequestError(errno.ENOENT, f"test operation {operation} of {number}: no object has this id")
        raise RequestError(errno.EOPNOTSUPP, f"test operation {operation}: there are no mock devices")


class TestSystem(System):
    """A system whose /dev/iommu knows the requests of tests."""

    __test__ = False

    def open(self, path: str) -> OpenFile:
        """See the base class."""
        return _TestIommufd(self.hardware) if path == "/dev/iommu" else super().open(path)


def build(source: Path) -> Path:
    """The program, of a kernel source that is a folder or an archive. That of an archive is kept in the cache."""
    identity = f"{source.resolve()} {source.stat().st_size} {source.stat().st_mtime_ns} {_OPTIONS} {_CAPABILITIES}"
    kept = cache_folder(os.environ) / f"iommufd-selftest-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not kept.is_dir() or source.is_dir():
        with tempfile.TemporaryDirectory(prefix="iommufd-selftest-") as name:
            shutil.rmtree(kept, ignore_errors=True)
            keep([_compile(source, Path(name))], kept, mode=0o755)
    return kept / _PROGRAM


def _compile(source: Path, folder: Path) -> Path:
    if source.is_file():
        top = source.name.removesuffix(".tar.xz")
        names = [f"{top}/{part}" for part in _PARTS]
        options = ["-x", "-C", folder, "--strip-components=1", "--wildcards"]
        with subprocess.Popen(["tar", *options, *names], stdin=subprocess.PIPE) as tar, lzma.open(source) as archive:
            assert tar.stdin
            shutil.copyfileobj(archive, tar.stdin, 1 << 20)
        source = folder
    own = folder / "own"
    for name, text in (("sys/capability.h", _CAPABILITIES), ("linux/iommufd.h", None), ("linux/vfio.h", None)):
        path = own / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or (source / "include/uapi" / name).read_text())
    tests = source / "tools/testing/selftests"
    includes = [f"-I{path}" for path in (own, tests, source / "tools/include")]
    target = folder / _PROGRAM
    subprocess.run(["cc", *_OPTIONS, *includes, "-o", target, tests / "iommu/iommufd.c", "-lpthread"], check=True)
    return target


def run(program: Path) -> dict[str, str]:
    """What became of each test, "passed", "failed" or "skipped", by fixture and name."""
    with tempfile.TemporaryDirectory(prefix="iommufd-selftest-") as name:
        said = Path(name) / "said"
        run_program(["sh", "-c", 'exec "$0" >"$1" 2>&1', str(program), str(said)], TestSystem())
        lines = re.findall(r"(?m)^(not ok|ok) \d+ (\S+)( # SKIP)?", said.read_text(errors="replace"))
    return {test: "skipped" if skipped else {"ok": "passed"}.get(ok, "failed") for ok, test, skipped in lines}


def _archive() -> Path | None:
    found = sorted(cache_folder(os.environ).glob("root-*/usr/src/linux-source-*.tar.xz"))
    return found[-1] if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module text."""
    parser = argparse.ArgumentParser(prog="iommufd-selftest", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, help="a kernel source, folder or linux-source-*.tar.xz")
    source = parser.parse_args(arguments).source or _archive()
    if source is None:
        print("iommufd-selftest: no kernel source: name one, or run `pviommu lab run --kernel lab`", file=sys.stderr)
        return 3
    outcomes = run(build(source))
    for test, outcome in outcomes.items():
        print(f"{outcome:8} {test}")
    lost = sorted(test for test in PASS if outcomes.get(test) != "passed")
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    print(f"{passed} of {len(outcomes)} passed, {len(PASS)} must" + "".join(f"\nlost: {test}" for test in lost))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
