"""The kernel's own tests of VFIO, on emulated devices: `scripts/vfio-selftest`.

The programs (tools/testing/selftests/vfio) are built unchanged from a kernel source, as `pviommu lab` has one, with the
driver of the DMA test engine that the lab's guest uses, and run by what `pviommu vfio run` uses, on the lab's topology.

Prints one line for each test, and ends with status 1 if one fails that is not in :data:`FAIL`, or is not there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pviommu.topology import load
from pviommu.vfio_run.machine import build as build_machine
from pviommu.vfio_run.running import run_program

from .beside import guest_outcomes, table
from .source import built, chosen_source, options, outcomes

__all__ = ["FAIL", "TESTS", "build", "main", "run"]

TESTS = {
    "vfio_dma_mapping_test": 30,
    "vfio_dma_mapping_mmio_test": 15,
    "vfio_iommufd_setup_test": 6,
    "vfio_pci_device_test": 5,
    "vfio_pci_device_init_perf_test": 5,
    "vfio_pci_driver_test": 35,
}
"""How many tests each program has. Another one, vfio_pci_sriov_uapi_test, skips all of it: no endpoint has SR-IOV."""
FAIL = frozenset(
    f"vfio_dma_mapping_mmio_test.{mode}.{test}"
    for mode in ("iommufd_compat_type1", "iommufd_compat_type1v2", "iommufd")
    for test in ("map_full_bar", "map_partial_bar", "map_bar_misaligned")
)
"""They expect that iommufd refuses to map a BAR. A BAR that is mapped here is memory like any other."""
_DEVICE = "0000:01:00.0"
_FOLDER = "tools/testing/selftests/vfio"
_DRIVER = ("suites/vfio/libvfio_wrap.h", "suites/vfio/pviommu_dma_test.c", "driver/pviommu_dma_test.h")
_GUEST_TOOLS = Path(__file__).parents[2] / "guest-tools"
_OPTIONS = ("-O1", "-w", "-D_GNU_SOURCE", "-D__counted_by(x)=")
_HEADERS = ("vfio.h", "iommufd.h", "pci_regs.h", "idxd.h")
_PARTS = (
    *("tools/testing/selftests/*.h", "tools/testing/selftests/kselftest", _FOLDER, "tools/include"),
    *("tools/arch/x86/include", "include/linux/pci_ids.h"),
    *(f"include/uapi/linux/{name}" for name in _HEADERS),
    # the targets of links in the tests
    *("drivers/dma/ioat/*.h", "drivers/dma/idxd/*.h", "drivers/net/ethernet/intel/igb/*.h"),
)
_UUID = """\
typedef unsigned char uuid_t[16];
static inline int uuid_parse(const char *text, unsigned char *uuid) { return -1; }
"""
"""Stands for <uuid/uuid.h>: only tests of SR-IOV have one."""


def build(source: Path) -> list[Path]:
    """The programs, of a kernel source that is a folder or an archive. Those of an archive are kept in the cache."""
    identity = f"{_OPTIONS} {_UUID}".encode() + b"".join((_GUEST_TOOLS / name).read_bytes() for name in _DRIVER)
    kept = built("vfio-selftest", source, _PARTS, identity, _compile)
    return [kept / name for name in TESTS]


def _compile(source: Path, folder: Path) -> list[Path]:
    own, tests = folder / "own", source / _FOLDER
    for name in ("linux", "uuid", "out"):
        (own / name).mkdir(parents=True, exist_ok=True)
    (own / "uuid/uuid.h").write_text(_UUID)
    for name in _HEADERS:
        shutil.copyfile(source / "include/uapi/linux" / name, own / "linux" / name)
    for name in _DRIVER:
        shutil.copyfile(_GUEST_TOOLS / name, own / Path(name).name)
    includes = [f"-I{path}" for path in (own, source / "tools/include", tests.parent, tests / "lib/include")]
    objects = []
    for number, path in enumerate([*sorted((tests / "lib").rglob("*.c")), own / "pviommu_dma_test.c"]):
        objects.append(own / f"{number}.o")
        subprocess.run(["cc", *_OPTIONS, *includes, "-c", "-o", objects[-1], path], check=True)
    made = []
    for name in TESTS:
        made.append(own / "out" / name)
        words = ["-o", made[-1], tests / f"{name}.c", *objects, "-Wl,--wrap=vfio_pci_driver_probe", "-lpthread"]
        subprocess.run(["cc", *_OPTIONS, *includes, *words], check=True)
    return made


def run(program: Path) -> dict[str, str]:
    """What became of each test, "passed", "failed" or "skipped", by fixture and name."""
    system, machine = build_machine(load(Path("lab")))
    with tempfile.TemporaryDirectory(prefix="vfio-selftest-") as name:
        said = Path(name) / "said"
        try:
            command = ["sh", "-c", 'exec "$0" "$1" >"$2" 2>&1', str(program), _DEVICE, str(said)]
            run_program(command, system, machine=machine)
        finally:
            machine.close()
        return outcomes(said.read_text(errors="replace"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module text."""
    parser = options("vfio-selftest", __doc__)
    parser.add_argument(
        "--beside",
        metavar="DIR",
        type=Path,
        help="results of `pviommu lab run --suite vfio` (lab-results/latest): print a table of both in Markdown",
    )
    args = parser.parse_args(arguments)
    source = chosen_source("vfio-selftest", args.source)
    if source is None:
        return 3
    guest = guest_outcomes(args.beside) if args.beside else {}
    every: dict[str, str] = {}
    lost: list[str] = []
    for program in build(source):
        found = run(program)
        for test, outcome in found.items():
            print(f"{outcome:8} {test}", flush=True)
        every.update(found)
        if len(found) != TESTS[program.name]:
            lost.append(f"{program.name}: {len(found)} of {TESTS[program.name]} tests said what became of them")
    lost += sorted(test for test, outcome in every.items() if outcome == "failed" and test not in FAIL)
    counts = [list(every.values()).count(outcome) for outcome in ("passed", "skipped", "failed")]
    print("{} passed, {} skipped, {} failed".format(*counts), *(f"lost: {line}" for line in lost), sep="\n")
    if guest:
        print(table(guest, every))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
