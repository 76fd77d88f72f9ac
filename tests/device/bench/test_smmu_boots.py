"""Boots that measure an SMMUv3, with scripts in the place of QEMU and the server."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.bench.guest import MeasurementError
from pviommu.bench.samples import Figure
from pviommu.bench.smmu_boots import BESIDE, MEASURED, SmmuBench, SmmuBoot, boot_smmu, compared
from pviommu.lab.architecture import ARM64
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Setup

from .test_net import SERVER, script

OURS, THEIRS = BESIDE
ROUND = " ".join(f"{name}={1000 * number}" for number, name in enumerate(MEASURED.values(), 1))
GUEST = f"""#!/bin/bash
for word in "$@"; do case $word in socket,id=lab,fd=*) fd=${{word##*=}};; esac; done
printf 'bench fact group_type DMA\\nbench round 1 {ROUND} pages=1\\nbench round 2 {ROUND}\\n# lab: exit 0\\n' >&$fd
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmmuBench:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    busybox = script(tmp_path / "busybox", "#!/bin/sh\necho bin/sh\n")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/modules.builtin").write_text("kernel/virtio_console.ko\n")
    toolbox = Toolbox(
        tmp_path, (script(tmp_path / "qemu", GUEST),), {}, "11.1", tmp_path / "Image", "7.3", Path(busybox)
    )
    toolbox = replace(toolbox, kernel_modules=tmp_path / "modules", architecture=ARM64)
    (tmp_path / "server.py").write_text(SERVER)
    program = (sys.executable, str(tmp_path / "server.py"))
    return SmmuBench(Setup(toolbox, [], "tcg"), 2, 500, 1 << 30, 30.0, program=program)


@pytest.mark.parametrize("machine", BESIDE, ids=lambda one: one.name)
def test_a_boot_measures_in_a_machine_with_its_own_smmu(bench: SmmuBench, machine: object, tmp_path: Path) -> None:
    boot = boot_smmu(bench, machine, tmp_path / "boot")  # type: ignore[arg-type]

    command = (tmp_path / "boot/qemu-command.txt").read_text()
    assert len(boot.rounds) == 2
    assert ("iommu=smmuv3" in command, "net0.sock" in command) == (machine is THEIRS, machine is OURS)
    assert "iommu.strict=1" in command


def test_the_guest_is_told_where_the_smmu_is(bench: SmmuBench) -> None:
    common = "operations='500'\nrounds='2'\n"
    assert bench.settings(OURS).decode() == "registers=''\nfunction='0x1234:0x5057'\n" + common
    assert bench.settings(THEIRS).decode() == "registers='0x09050000'\nfunction='0x1b36:0x0005'\n" + common


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bench failed no such module", "no such module"),
        (f"bench round 1 {ROUND.replace('flush_ns', 'flush')}", "the guest's round lacks flush_ns"),
        ("bench round 1 read_ns=x", "lacks .*read_ns"),
    ],
)
def test_a_guest_that_gives_up_or_leaves_something_out_is_an_error(line: str, problem: str) -> None:
    with pytest.raises(MeasurementError, match=problem):
        SmmuBoot().line(line)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ((), "ended with status None after 0 rounds"),
        ((f"bench round 1 {ROUND}", "# lab: exit 0"), "type None: must be DMA"),
        ((f"bench round 1 {ROUND}", "bench fact group_type DMA-FQ", "# lab: exit 0"), "type DMA-FQ: must be DMA"),
        (
            (f"bench round 1 {ROUND}", "bench fact group_type DMA", "# lab: exit 1"),
            "ended with status 1 after 1 rounds",
        ),
        (("bench fact group_type DMA", "# lab: exit 0"), "ended with status 0 after 0 rounds"),
    ],
)
def test_a_boot_that_is_not_whole_is_an_error(lines: tuple[str, ...], problem: str) -> None:
    boot = SmmuBoot()
    for line in lines:
        boot.line(line)

    with pytest.raises(MeasurementError, match=problem):
        boot.finish(1)


def test_figures_are_of_all_rounds_of_all_boots_in_microseconds() -> None:
    boots = [SmmuBoot(rounds=[dict.fromkeys(MEASURED.values(), ns) for ns in times]) for times in ((1e3, 4e3), (9e3,))]

    found = compared({"one": boots, "other": boots[:1]})

    assert list(found) == list(MEASURED)
    assert found["unmap"]["one"] == Figure(4.0, 1.0, 9.0)
    assert found["map"]["other"].median == 2.5
