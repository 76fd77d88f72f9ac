"""What tests of every folder may use."""

from __future__ import annotations

import os
import signal
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine only. Under CI the same code meets the same examples.
settings.register_profile(
    "pviommu", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("pviommu")

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Shells start background jobs with SIGINT ignored, and Python leaves it so: tests of Ctrl-C need it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built and unpacked as an installer would: a folder for ``PYTHONPATH``."""
    from hatchling.builders.wheel import WheelBuilder

    target = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(CHECKOUT)).build(directory=str(target), versions=["standard"])
    site = target / "site"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="session")
def wheel_environment(installed_wheel: Path) -> dict[str, str]:
    """Environment in which ``python -m pviommu`` is the wheel's and not the checkout's."""
    return {**os.environ, "PYTHONPATH": str(installed_wheel), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="session")
def pviommu_command() -> list[str]:
    """The ``pviommu`` command of whatever ``PYTHONPATH`` says."""
    return [sys.executable, "-m", "pviommu"]
