"""Decides between KVM and TCG by trying: KVM that is present may still be unable to run a stock guest."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from .image import base_image
from .problems import EnvironmentProblem, RunError
from .progress import Progress
from .provision import Toolbox
from .vm import GuestTimeoutError, VirtualMachine, VmConfig

__all__ = ["KVM", "STEPS", "choose_accelerator", "kvm_runs_a_guest", "remembered_trial"]

STEPS = 1
_PROBE_SECONDS = 8.0
_MARKER = "pviommu lab: a guest runs"
_INIT = f"""#!/bin/sh
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for try in 1 2 3 4 5 6 7 8 9 10; do
    for port in /dev/vport*; do
        [ -c "$port" ] && echo "{_MARKER}" >"$port" && poweroff -f
    done
    sleep 0.1
done
poweroff -f
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KVM = Path("/dev/kvm")


def choose_accelerator(
    requested: str, toolbox: Toolbox, cache: Path, progress: Progress, *, device: Path = KVM, boot_id: Path = _BOOT_ID
) -> str:
    """``kvm`` or ``tcg`` for ``requested`` (auto, kvm or tcg).

    The answer of a trial boot is remembered in ``cache`` until the host reboots or QEMU or the guest kernel changes.
    Raises EnvironmentProblem when kvm was asked for and cannot run a guest.
    """
    if requested == "tcg":
        return "tcg"
    if toolbox.architecture.is_foreign:
        if requested == "kvm":
            raise EnvironmentProblem(
                f"--accel kvm: this host's processor runs no guest of {toolbox.architecture.name}", "use --accel tcg"
            )
        return "tcg"
    usable = os.access(device, os.R_OK | os.W_OK) and _trial(toolbox, cache, progress, boot_id)
    if requested == "kvm" and not usable:
        raise EnvironmentProblem(
            f"--accel kvm: {device} cannot run a guest here",
            "give this user access to it and enable (nested) virtualisation, or use --accel tcg",
        )
    return "kvm" if usable else "tcg"


def remembered_trial(toolbox: Toolbox, cache: Path, boot_id: Path = _BOOT_ID) -> bool | None:
    """The result of a trial boot since the host booted; None if there was none."""
    memory = _memory(toolbox, cache, boot_id)
    return memory.read_text() == "yes" if memory.is_file() else None


def _trial(toolbox: Toolbox, cache: Path, progress: Progress, boot_id: Path) -> bool:
    known = remembered_trial(toolbox, cache, boot_id)
    if known is not None:
        return known
    progress.step("trying a guest under KVM")
    answer = kvm_runs_a_guest(toolbox)
    progress.done("it runs" if answer else "no guest runs under it, TCG is used")
    _memory(toolbox, cache, boot_id).write_text("yes" if answer else "no")
    return answer


def _memory(toolbox: Toolbox, cache: Path, boot_id: Path) -> Path:
    key = "\n".join((boot_id.read_text().strip(), *toolbox.qemu_command, *toolbox.versions.values()))
    return cache / f"kvm-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def kvm_runs_a_guest(toolbox: Toolbox, accelerator: str = "kvm") -> bool:
    """Boot the guest kernel under ``accelerator`` until its first process writes something; False if it does not within
    8 s."""
    with tempfile.TemporaryDirectory(prefix="pviommu-") as name:
        folder = Path(name)
        initrd = folder / "initrd"
        initrd.write_bytes(base_image(toolbox.busybox, _INIT.encode()).pack())
        config = VmConfig(
            initrd=initrd,
            console_log=folder / "console.log",
            qemu_log=folder / "qemu.log",
            accelerator=accelerator,
            memory=256 << 20,
        )
        with VirtualMachine(toolbox, config) as machine:
            machine.start()
            try:
                return any(line.strip() == _MARKER for line in machine.lines(time.monotonic() + _PROBE_SECONDS))
            except (GuestTimeoutError, RunError):
                return False
