"""The guest driver's rings, and what it does about a device that does not answer: what the guest has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import LabRun


@pytest.mark.row("driver", 1)
def test_no_doorbell_is_lost_to_an_interrupt(lab_run: LabRun) -> None:
    assert "no doorbell is lost to who interrupts the one who rings" in lab_run.passed


@pytest.mark.row("driver", 2)
def test_each_doorbell_is_heard_and_none_was_lost(lab_run: LabRun) -> None:
    shown = {"the device has heard each doorbell that the driver rang", "no doorbell of the storm was lost"}

    assert shown <= lab_run.passed


@pytest.mark.row("driver", 3)
def test_queued_dma_does_not_reach_memory_of_a_device_given_up(strict_run: LabRun) -> None:
    shown = {
        "nothing that was queued is written to memory that is used again",
        "the device is given up once, and DMA is stopped by a reset",
    }

    assert shown <= strict_run.passed


@pytest.mark.row("driver", 4)
def test_a_device_given_up_works_after_unbind_and_bind(strict_run: LabRun) -> None:
    assert "after unbind and bind, without a reload, DMA works" in strict_run.passed


@pytest.mark.row("driver", 6)
def test_a_guest_that_stood_still_with_its_server_gives_nothing_up(strict_run: LabRun) -> None:
    assert "nothing is given up after standing still together" in strict_run.passed
