"""Boots one configuration and measures in it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import resources
from ..lab.image import guest_image
from ..lab.run import Setup, short_folder
from ..lab.server import PROGRAM, ServerProcess, capabilities, summary
from ..lab.vm import KERNEL_ARGUMENTS, VirtualMachine, VmConfig
from .configurations import ACCESS_EVENTS, INTERRUPT_EVENTS, Configuration, device_address
from .guest import Boot, Conversation, MeasurementError, Plan
from .traces import Traces, trace_arguments

__all__ = ["INITRD", "Bench", "boot", "image_files", "server_counts", "vm_config"]

INITRD = "initrd"
"""the name of a guest's image"""
_VFIO_MODULES = ("vfio_pci", "vfio_iommu_type1")
_SERVER_COUNTS = ("traps", "slots", "doorbells", "interrupts")


@dataclass(frozen=True, slots=True)
class Bench:
    """What all boots share. ``memory`` is in bytes, ``timeout`` in seconds per boot, ``program`` starts the server.

    ``vcpus`` is the least number of processors; a boot has at least as many as its plan has threads.
    """

    setup: Setup
    memory: int
    vcpus: int
    timeout: float
    program: Sequence[str] = PROGRAM


def image_files(configuration: Configuration, plan: Plan) -> dict[str, bytes]:
    """The files that turn the lab's image into one of this benchmark."""
    script = resources.guest_tools() / "bench/bench.sh"
    return {
        "/tests/main.sh": script.read_bytes(),
        "/lab/bench": plan.settings(device_address(configuration), configuration.modules, configuration.options),
        "/lab/early-modules": "".join(f"{name}\n" for name in configuration.early_modules).encode(),
    }


def boot(bench: Bench, configuration: Configuration, plan: Plan, folder: Path) -> tuple[Boot, dict[str, Any]]:
    """Boot ``configuration`` and measure ``plan``; returns the figures and, if there is a server, its own counts.

    Logs go to ``folder``. Raises MeasurementError, GuestTimeoutError, RunError, EnvironmentProblem.
    """
    folder.mkdir(parents=True)
    log = folder / "server.jsonl"
    with short_folder() as short:
        if not configuration.served:
            return _boot_guest(bench, configuration, plan, folder, short, ()), {}
        topology = resources.qemu_configs() / "lab.toml"
        sockets = [short / name for name in capabilities(topology, bench.program).sockets]
        with ServerProcess(topology, short, log, bench.program, configuration.server_options) as server:
            server.start()
            measured = _boot_guest(bench, configuration, plan, folder, short, sockets)
            problems = server.stop()
    if problems:
        raise MeasurementError("; ".join(problems))
    measured.facts["core"] = _core(log)
    return measured, summary(log)


def _core(log: Path) -> str:
    """Which core the server says that it uses."""
    with log.open(errors="replace") as lines:
        for line in lines:
            if '"listening"' in line:
                return str(json.loads(line).get("core", "unknown"))
    return "unknown"


def vm_config(
    setup: Setup,
    configuration: Configuration,
    sockets: Sequence[Path],
    folder: Path,
    short: Path,
    *,
    memory: int,
    vcpus: int,
    trace_log: Path,
) -> VmConfig:
    """A guest of ``configuration``, whose image is INITRD in ``short``. QEMU's log of events goes to ``trace_log``."""
    return VmConfig(
        initrd=short / INITRD,
        console_log=folder / "console.log",
        qemu_log=folder / "qemu.log",
        accelerator=setup.accelerator,
        memory=memory,
        vcpus=vcpus,
        sockets=sockets,
        kernel_arguments=(*KERNEL_ARGUMENTS, *configuration.kernel_arguments, *setup.toolbox.kernel_arguments),
        qmp_socket=short / "qmp",
        extra_arguments=(*configuration.arguments, *trace_arguments(trace_log)),
    )


def _boot_guest(
    bench: Bench, configuration: Configuration, plan: Plan, folder: Path, short: Path, sockets: Sequence[Path]
) -> Boot:
    deadline = time.monotonic() + bench.timeout
    (short / INITRD).write_bytes(
        guest_image(
            bench.setup.toolbox,
            resources.guest_tools(),
            bench.setup.modules,
            programs=bench.setup.programs,
            extra_modules=(*configuration.early_modules, *(_VFIO_MODULES if plan.vfio_mib else ())),
            files=image_files(configuration, plan),
        )
    )
    trace_log = folder / "trace.log"
    config = vm_config(
        *(bench.setup, configuration, sockets, folder, short),
        memory=bench.memory,
        vcpus=max(bench.vcpus, plan.threads),
        trace_log=trace_log,
    )
    traces = Traces(short / "qmp", trace_log, (*ACCESS_EVENTS, *INTERRUPT_EVENTS))
    with VirtualMachine(bench.setup.toolbox, config) as machine:
        (folder / "qemu-command.txt").write_text(machine.command_line + "\n")
        machine.start()
        conversation = Conversation(plan, traces.switch, traces.counts, machine.send)
        for line in machine.lines(deadline):
            conversation.line(line)
    return conversation.finish()


def server_counts(measured: Mapping[str, Any], empty: Mapping[str, Any], pairs: int) -> dict[str, float]:
    """The server's counts per pair: those of a boot that measured ``pairs``, minus those of one that measured none."""
    counts: dict[str, float] = {}
    for name in _SERVER_COUNTS:
        with_pairs, without = measured.get(name), empty.get(name)
        if isinstance(with_pairs, int) and isinstance(without, int):
            counts[name] = (with_pairs - without) / pairs
    return counts
