"""Guest memory that the server cannot share is refused in one clear line, by whoever can see it."""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu import resources
from pviommu.lab.image import guest_image
from pviommu.lab.progress import Progress
from pviommu.lab.run import Setup, Wanted, prepare, short_folder
from pviommu.lab.server import ServerProcess
from pviommu.lab.vm import VirtualMachine, VmConfig

SCRIPT = """#!/bin/sh
insmod /lib/modules-lab/pviommu.ko tables=on
rmmod pviommu
insmod /lib/modules-lab/pviommu.ko
dmesg
"""


@pytest.fixture(scope="session")
def setup() -> Setup:
    """QEMU, kernel and modules."""
    return prepare(Progress(io.StringIO(), 5), Wanted())


@pytest.fixture
def sockets(artefacts: Path) -> Iterator[tuple[Path, Path]]:
    """A running server of one engine: the folder of its sockets, its log."""
    log = artefacts / "unshared-server.jsonl"
    topology = artefacts / "unshared.toml"
    topology.write_text(
        "[iommu]\nguest-tables = false\n\n" + (resources.qemu_configs() / "one-engine.toml").read_text()
    )
    with short_folder() as folder, ServerProcess(topology, folder, log) as server:
        server.start()
        yield folder, log
        server.stop()


def complaints(log: Path) -> list[str]:
    """Lines about such memory. The log is written by a thread of the server, so QEMU may be gone before the first."""
    end = time.monotonic() + 10
    while True:
        lines = [line for line in log.read_text().splitlines() if '"memory-not-shared"' in line]
        if lines or time.monotonic() > end:
            return lines
        time.sleep(0.05)


@pytest.mark.row("wire", 51)
def test_qemu_without_a_shared_backend_ends_and_the_server_says_why(setup: Setup, sockets: tuple[Path, Path]) -> None:
    folder, log = sockets
    device = f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{folder}/iommu.sock"}}}}'
    command = [*setup.toolbox.qemu_command, "-M", "q35", "-m", "256M", "-nodefaults", "-display", "none"]

    done = subprocess.run(
        [*command, "-device", device],
        env=dict(setup.toolbox.qemu_environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    lines = complaints(log)
    assert len(lines) == 1
    assert "guest memory came without file descriptors" in lines[0]
    assert "share=on" in lines[0]


@pytest.mark.row("wire", 50)
@pytest.mark.row("driver", 86)
def test_guest_whose_backend_is_private_is_told_by_its_driver(
    setup: Setup, sockets: tuple[Path, Path], artefacts: Path, tmp_path: Path
) -> None:
    folder, log = sockets
    tools = tmp_path / "guest-tools"
    shutil.copytree(resources.guest_tools() / "image", tools / "image")
    (tools / "tests").mkdir()
    (tools / "tests/main.sh").write_text(SCRIPT)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(guest_image(setup.toolbox, tools, setup.modules))
    config = VmConfig(
        initrd=initrd,
        console_log=artefacts / "private-console.log",
        qemu_log=artefacts / "private-qemu.log",
        accelerator=setup.accelerator,
        memory=512 << 20,
        sockets=[folder / "iommu.sock", folder / "dma0.sock"],
    )
    with VirtualMachine(setup.toolbox, config) as machine:
        machine.command[:] = [word.replace("share=on", "share=off") for word in machine.command]
        machine.start()
        report = list(machine.lines(time.monotonic() + 60))

    assert [line for line in report if "guest memory is not shared with the device: share=on is missing" in line]
    assert complaints(log)
    # its device walks no tables of the guest either
    assert [line for line in report if "the device does not walk tables of the guest, as tables=on demands" in line]
