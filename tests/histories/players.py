"""The machines that play random histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pviommu.bench import players
from pviommu.topology import load
from pviommu.vfio_run.machine import build, native_if_built

__all__ = ["on_the_model"]


def on_the_model(lines: Sequence[str], program: Path) -> list[str]:
    """What the model answers, with two DMA test engines behind an IOMMU like the guest's: it leaves the coherence of
    DMA to the devices. It takes page tables with a fault queue, as Linux does for any driver, also for one whose
    devices ask for no pages. Raises PlayError.
    """
    system, machine = build(load(Path("lab")), native_if_built())
    try:
        for device in system.devices.values():
            device.config = replace(device.config, enforces_snoop=False)
        return players.on_the_model(lines, program, system, machine)
    finally:
        machine.close()
