"""The guest's first root: what is in it, and modules found with what they need."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.lab.image import KernelModules, base_image, dependencies, guest_image
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome
from pviommu.lab.provision import Toolbox


def module(depends: str, body: bytes = b"") -> bytes:
    return b"\x7fELF license=GPL\0depends=" + depends.encode() + b"\0name=x\0" + body


def applets(command: Sequence[str]) -> Outcome:
    return Outcome(0, "bin/busybox\nbin/sh\nsbin/modprobe\n")


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    root = tmp_path / "root"
    folder = root / "usr/lib/modules/6.12/kernel"
    folder.mkdir(parents=True)
    (folder / "vfio-pci.ko.xz").write_bytes(lzma.compress(module("vfio-pci-core")))
    (folder / "vfio-pci-core.ko.xz").write_bytes(lzma.compress(module("vfio,irqbypass")))
    (folder / "vfio.ko").write_bytes(module(""))
    (folder.parent / "modules.builtin").write_text("kernel/virt/lib/irqbypass.ko\n")
    busybox = root / "busybox"
    busybox.write_bytes(b"busybox")
    return Toolbox(root, ("qemu",), {}, "11.1", root / "vmlinuz", "6.12", busybox)


def test_a_busybox_that_runs_here_says_what_the_guests_can(tmp_path: Path) -> None:
    asked: list[str] = []

    def run(command: Sequence[str]) -> Outcome:
        asked.append(command[0])
        return applets(command)

    (tmp_path / "of-arm64").write_bytes(b"foreign")
    packed = base_image(tmp_path / "of-arm64", b"", run, runnable=tmp_path / "of-here").pack()

    assert asked == [str(tmp_path / "of-here")]
    assert unpack(packed)["bin/busybox"][1] == b"foreign"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    tools = tmp_path / "guest-tools"
    (tools / "image/etc").mkdir(parents=True)
    (tools / "tests").mkdir()
    (tools / "image/init").write_text("#!/bin/sh\n")
    (tools / "image/etc/motd").write_text("hello")
    (tools / "tests/main.sh").write_text("#!/bin/sh\necho KTAP version 1\n")
    return tools


def unpack(packed: bytes) -> dict[str, tuple[int, bytes]]:
    raw, at = gzip.decompress(packed), 0
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        mode, size, name_size = (int(raw[at + o : at + o + 8], 16) for o in (14, 54, 94))
        name = raw[at + 110 : at + 109 + name_size].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, raw[start : start + size])
        at = (start + size + 3) // 4 * 4


def test_image_holds_busybox_applets_skeleton_tests_and_run_files(toolbox: Toolbox, tools: Path) -> None:
    packed = guest_image(toolbox, tools, [], files={"/lab/expect.json": b"{}"}, run=applets)
    found = unpack(packed)
    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"busybox")
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"/bin/busybox")
    assert found["etc/motd"][1] == b"hello"
    assert found["lab/expect.json"][1] == b"{}"


def test_programs_are_executables_in_bin(toolbox: Toolbox, tools: Path, tmp_path: Path) -> None:
    program = tmp_path / "pviommu_vfio"
    program.write_bytes(b"\x7fELF")
    found = unpack(guest_image(toolbox, tools, [], programs=[program], run=applets))
    assert found["bin/pviommu_vfio"] == (stat.S_IFREG | 0o755, b"\x7fELF")


def test_scripts_are_executable_even_if_the_source_lost_its_bit(toolbox: Toolbox, tools: Path) -> None:
    found = unpack(guest_image(toolbox, tools, [], run=applets))
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["tests/main.sh"][0] == stat.S_IFREG | 0o755
    assert found["etc/motd"][0] == stat.S_IFREG | 0o644


def test_modules_dep_lists_what_each_module_needs_and_leaves_out_builtins(
    toolbox: Toolbox, tools: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "pviommu.ko"
    ours.write_bytes(module(""))
    test = tmp_path / "pviommu_test.ko"
    test.write_bytes(module("pviommu"))
    found = unpack(guest_image(toolbox, tools, [ours, test], extra_modules=["vfio-pci"], run=applets))
    assert found["lib/modules/6.12/modules.dep"][1].decode().splitlines() == [
        "vfio.ko:",
        "vfio_pci_core.ko: vfio.ko",
        "vfio_pci.ko: vfio_pci_core.ko vfio.ko",
        "pviommu.ko:",
        "pviommu_test.ko: pviommu.ko",
    ]
    assert found["lib/modules/6.12/vfio_pci.ko"][1] == module("vfio-pci-core")
    assert found["lib/modules-lab"][1] == b"/lib/modules/6.12"


def test_builtins_are_listed_so_that_modprobe_succeeds_for_them(toolbox: Toolbox, tools: Path) -> None:
    found = unpack(guest_image(toolbox, tools, [], extra_modules=["irqbypass"], run=applets))
    assert found["lib/modules/6.12/modules.dep"][1] == b""
    assert found["lib/modules/6.12/modules.builtin"][1] == b"kernel/virt/lib/irqbypass.ko\n"


def test_build_tree_gives_the_modules_that_its_list_names(tmp_path: Path) -> None:
    for name in ("Module.symvers", "drivers/vfio/vfio.ko", "drivers/old/leftover.ko"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(module(""))
    (tmp_path / "modules.order").write_text("drivers/vfio/vfio.o\ndrivers/never/built.o\n")
    modules = KernelModules(tmp_path)
    assert list(modules.with_dependencies(["vfio"])) == ["vfio"]
    for absent in ("leftover", "built"):
        with pytest.raises(EnvironmentProblem, match=f"has no module {absent}"):
            modules.with_dependencies([absent])


def test_unknown_kernel_module_is_named_in_the_refusal(toolbox: Toolbox) -> None:
    with pytest.raises(EnvironmentProblem, match="has no module virtio_iommu"):
        KernelModules(toolbox.modules).with_dependencies(["virtio-iommu"])


def test_dependencies_are_read_from_the_module_and_normalised() -> None:
    assert dependencies(module("vfio-pci-core,irqbypass")) == ["vfio_pci_core", "irqbypass"]
    assert dependencies(module("")) == []
    assert dependencies(b"no such section") == []


def test_busybox_that_does_not_run_is_an_environment_problem(toolbox: Toolbox) -> None:
    with pytest.raises(EnvironmentProblem, match="does not run here"):
        base_image(toolbox.busybox, b"", lambda command: Outcome(126, "exec format error"))


def test_modules_are_known_by_either_spelling_and_built_in_ones_are_no_modules(toolbox: Toolbox) -> None:
    modules = KernelModules(toolbox.modules)

    assert [name in modules for name in ("vfio_pci", "vfio-pci", "irqbypass", "nvme")] == [True, True, False, False]
