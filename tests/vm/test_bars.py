"""DMA to BARs as a real guest has it: by the DMA API, by VFIO, under both profiles."""

from __future__ import annotations

import pytest

from .conftest import LabRun

ENGINES = ("0000:00:11.0", "0000:01:00.0")
BY_DMA_API = {"reaches shared memory of another engine", "reaches registers of another engine"}
BY_VFIO = {
    "a whole BAR is mapped, and DMA reaches it",
    "part of a BAR is mapped, and DMA reaches no more of it",
    "part of a BAR is mapped at a device address that is aligned otherwise",
    "registers of a BAR are mapped and read by DMA",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.row("driver", 44)
def test_the_dma_api_reaches_bars_under_both_profiles(lab_run: LabRun, strict_run: LabRun, engine: str) -> None:
    for run in (lab_run, strict_run):
        assert run.passed_in(f"DMA API of {engine}") >= BY_DMA_API


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.row("driver", 48)
def test_what_no_device_may_reach_is_efault_under_both_profiles(
    lab_run: LabRun, strict_run: LabRun, engine: str
) -> None:
    shown = "what is neither memory nor a BAR of an engine cannot be mapped: EFAULT"
    for run in (lab_run, strict_run):
        assert shown in run.passed_in(f"DMA API of {engine}")


@pytest.mark.row("driver", 49)
def test_vfio_maps_bars_under_both_profiles(lab_run: LabRun, strict_run: LabRun) -> None:
    for run in (lab_run, strict_run):
        assert run.passed_in("VFIO by type1") >= BY_VFIO
