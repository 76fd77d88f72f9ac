"""The example of docs/libvfio-user.md in a real guest, behind the C library, driven by a driver of Linux itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

from pviommu.lab import accelerator, boot, libvfio_user
from pviommu.lab.image import KernelModules, base_image
from pviommu.lab.libvfio_user import compile_in
from pviommu.lab.progress import Progress
from pviommu.lab.provision import cache_folder, provision
from pviommu.lab.vm import FIRST_SLOT, VirtualMachine, VmConfig

LIMIT = 120.0
DRIVER = "adl_pci7x3x"
INIT = """#!/bin/sh
mount -t devtmpfs none /dev
exec >/dev/console 2>&1
mount -t proc none /proc
mount -t sysfs none /sys
for module in {modules}; do insmod /modules/$module.ko; done
echo gpio: $(ls /sys/bus/pci/drivers/{driver} | grep :)
/bin/gpio
poweroff -f
"""


def test_a_stock_driver_drives_the_card_and_is_interrupted(artefacts: Path, tmp_path: Path) -> None:
    progress = Progress(io.StringIO(), 100)
    toolbox = provision(progress)
    library = libvfio_user.build(progress)
    compiler = libvfio_user.compiler_root(progress)
    (tmp_path / "gpio.c").write_bytes(Path(__file__).with_name("gpio.c").read_bytes())
    program = compile_in(compiler, tmp_path, ["-Wall", "-Wextra", "-Werror", "-static", "gpio.c"])
    modules = KernelModules(toolbox.modules).with_dependencies([DRIVER])
    image = base_image(toolbox.busybox, INIT.format(modules=" ".join(modules), driver=DRIVER).encode())
    image.file("/bin/gpio", program, 0o755)
    image.folder("/modules")
    for name, content in modules.items():
        image.file(f"/modules/{name}.ko", content)
    folder = artefacts / "gpio"
    folder.mkdir()
    (tmp_path / "initrd").write_bytes(image.pack())

    with boot.short_folder() as short, (folder / "card.log").open("wb") as log:
        socket = short / "gpio.sock"
        card = subprocess.Popen(
            [sys.executable, "-m", "libvfio_user.gpio", str(socket)],
            env={**os.environ, "LIBVFIO_USER": str(library)},
            stderr=log,
        )
        try:
            while not socket.exists():
                assert card.poll() is None, (folder / "card.log").read_text()
                time.sleep(0.02)
            config = VmConfig(
                initrd=tmp_path / "initrd",
                console_log=folder / "console.log",
                qemu_log=folder / "qemu.log",
                accelerator=accelerator.choose_accelerator("auto", toolbox, cache_folder(os.environ), progress),
                memory=256 << 20,
                sockets=[socket],
            )
            with VirtualMachine(toolbox, config) as machine:
                machine.start()
                for _ in machine.lines(time.monotonic() + LIMIT):
                    pass
            assert card.poll() is None  # it waits for the next client
        finally:
            card.kill()
            card.wait()

    console = (folder / "console.log").read_text(errors="replace")
    said = [line.rstrip() for line in console.splitlines() if line.startswith("gpio: ")]
    bound, *seen = said
    assert (bound, seen) == (
        f"gpio: 0000:00:{FIRST_SLOT:x}.0",
        ["gpio: inputs 0xa5a1", "gpio: interrupt with inputs 0xa5a3"],
    ), console[-3000:]
