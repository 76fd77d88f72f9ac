"""The guest's driver on machines of its own: topologies and QEMU options that the lab's runs do not have."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pviommu import resources
from pviommu.interfaces.pv.config import MAX_ENDPOINTS, MAX_RESERVED
from pviommu.lab.boot import EXPECTED_PATH, GUEST_MODULES
from pviommu.lab.image import KernelModules, guest_image
from pviommu.lab.progress import Progress
from pviommu.lab.run import Setup, Wanted, prepare, short_folder
from pviommu.lab.server import ServerProcess, capabilities, summary
from pviommu.lab.vm import KERNEL_ARGUMENTS, VirtualMachine, VmConfig

TIME_LIMIT = 240
CONNECTED = 3
"""Endpoints of a machine, however many its topology has."""

HEAD = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
for part in lib devices setup lifecycle vfio lost kernel_log; do
	. "./$part.sh"
done
profile=xen-2024
tables=auto
mode=lazy
kernel=debian
iommu=$(functions "$iommu_id" | head -n 1)
engines=$(functions "$engine_id")
engine_count=$(echo "$engines" | wc -l)
"""


@dataclass(frozen=True)
class Machine:
    """What a guest wrote: its report, and its console; and what its server did."""

    report: list[str]
    console: str
    operations: dict[str, int]
    """how many of each the server has carried out"""

    @property
    def passed(self) -> set[str]:
        """Names of the tests that passed."""
        words = (line.split(" ", 2) for line in self.report if line.startswith("ok "))
        return {word[2] for word in words}


Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def setup() -> Setup:
    """QEMU, kernel and modules."""
    return prepare(Progress(io.StringIO(), 5), Wanted(kernel="lab"))


@pytest.fixture(scope="module")
def boot(setup: Setup, artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Boot a machine on a topology, with a script for its first process."""

    def run(
        name: str,
        topology: str,
        script: str,
        *,
        arguments: Sequence[str] = (),
        options: str = "",
        more: Sequence[str] = (),
    ) -> Machine:
        tmp_path = tmp_path_factory.mktemp(name)
        (tmp_path / "topology.toml").write_text(topology)
        tools = tmp_path / "guest-tools"
        shutil.copytree(resources.guest_tools() / "image", tools / "image")
        shutil.copytree(resources.guest_tools() / "tests", tools / "tests")
        (tools / "tests/main.sh").write_text(HEAD + script)
        offered = capabilities(tmp_path / "topology.toml")
        own = KernelModules(setup.toolbox.modules)
        initrd = tmp_path / "initrd"
        initrd.write_bytes(
            guest_image(
                setup.toolbox,
                tools,
                setup.modules,
                programs=setup.programs,
                extra_modules=[module for module in GUEST_MODULES if module in own],
                files={EXPECTED_PATH: "".join(f"{line}\n" for line in offered.driver_lines).encode()},
            )
        )
        console = artefacts / f"{name}-console.log"
        with (
            short_folder() as folder,
            ServerProcess(tmp_path / "topology.toml", folder, artefacts / f"{name}-server.jsonl") as server,
        ):
            server.start()
            config = VmConfig(
                initrd=initrd,
                console_log=console,
                qemu_log=artefacts / f"{name}-qemu.log",
                accelerator=setup.accelerator,
                memory=1 << 30,
                vcpus=2,
                sockets=[folder / socket for socket in offered.sockets[: 1 + CONNECTED]],
                kernel_arguments=(*KERNEL_ARGUMENTS, *arguments),
                machine_options=options,
                extra_arguments=more,
            )
            with VirtualMachine(setup.toolbox, config) as machine:
                machine.start()
                report = list(machine.lines(time.monotonic() + TIME_LIMIT))
            assert server.stop() == []
        counts = summary(artefacts / f"{name}-server.jsonl")
        return Machine(report, console.read_text(errors="replace"), counts["ops"])

    return run


REGIONS = """
direct_regions() {
	set -- $engines
	same "$(grep direct "$(group_of "$1")/reserved_regions")" "0x0000000010000000 0x00000000100fffff direct" &&
		same "$(grep direct "$(group_of "$2")/reserved_regions")" "0x0000000010080000 0x000000001017ffff direct" &&
		same "$(grep -c direct "$(group_of "$3")/reserved_regions")" 62
}

no_user_space() {
	vfio_load && vfio_bind vfio-pci vfio-pci || return 1
	vfio_allow type1 Y
	for engine in $engines; do
		same "$engine $(pviommu_vfio --type1 --attach "$engine")" "$engine EINVAL" || return 1
	done
	vfio_allow type1 N
	vfio_bind pviommu_dmatest "" && dma_works
}

plan 7
check "the driver binds" load_all
check "its capabilities are those of the server" compare_capabilities
check "direct regions are told as such" direct_regions
check "DMA works in domains that have direct regions" dma_works
check "user space gets no function that has direct regions" no_user_space
check "functions whose direct regions conflict all leave and come back" unbind_in_wrong_order
check "the kernel has nothing to complain about" kernel_is_content
kernel_log >/dev/console
finish
"""

BEHIND_ANOTHER = """
dmesg -c >/dev/null
insmod "$modules/pviommu.ko"
dmesg
"""


def topology() -> str:
    """As many endpoints and regions as there may be. The regions of the first two overlap; the third has all others."""
    regions = [(0, 0x10000000, 0x100000), (1, 0x10080000, 0x100000)]
    regions += [(2, 0x20000000 + 0x10000 * n, 0x1000) for n in range(MAX_RESERVED - len(regions))]
    text = ""
    for n in range(MAX_ENDPOINTS):
        text += f'[[endpoint]]\nname = "dma{n}"\nkind = "dma-test"\nstream = {n + 1}\n\n'
        for _, start, size in (region for region in regions if region[0] == n):
            text += f"[[endpoint.reserved]]\nstart = {start:#x}\nsize = {size:#x}\n\n"
    return text


@pytest.fixture(scope="module")
def regions(boot: Boot) -> Machine:
    """A guest whose functions have direct regions, as many as there may be."""
    return boot("regions", topology(), REGIONS)


@pytest.mark.row("driver", 27)
def test_driver_takes_as_many_endpoints_and_regions_as_a_device_may_have(regions: Machine) -> None:
    assert {"the driver binds", "its capabilities are those of the server"} <= regions.passed, regions.report


@pytest.mark.row("driver", 22)
@pytest.mark.parametrize(
    "name",
    [
        "direct regions are told as such",
        "DMA works in domains that have direct regions",
        "user space gets no function that has direct regions",
        "functions whose direct regions conflict all leave and come back",
        "the kernel has nothing to complain about",
    ],
)
def test_guest_respects_direct_regions(regions: Machine, name: str) -> None:
    assert name in regions.passed, "\n".join(regions.report)


@pytest.mark.row("driver", 22)
def test_every_function_with_direct_regions_leaves_by_way_of_blocked(regions: Machine) -> None:
    """Newer kernels would take it through identity if they knew the domain of released functions to be blocked."""
    assert regions.operations["block"] == regions.operations["unbind"] == CONNECTED


@pytest.mark.row("driver", 29)
def test_another_iommu_in_front_is_one_line(boot: Boot) -> None:
    machine = boot(
        "another-iommu",
        topology(),
        BEHIND_ANOTHER,
        arguments=("intel_iommu=on",),
        options="kernel-irqchip=split",
        more=("-device", "intel-iommu,caching-mode=on"),
    )

    said = [line for line in machine.report if "pviommu 0000:" in line]
    assert len(said) == 1, "\n".join(machine.report)
    assert "another IOMMU is in front of this one: not used" in said[0]
    assert "Call Trace" not in machine.console
