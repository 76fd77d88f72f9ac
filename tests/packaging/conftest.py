"""What the tests of packaging share."""

from __future__ import annotations

import io

import pytest

from pviommu.lab.driver_checks import STEPS, DriverChecks, prepare_checks
from pviommu.lab.progress import Progress


@pytest.fixture(scope="session")
def checks() -> DriverChecks:
    """A private root with Debian's headers, sparse, checkpatch and dkms."""
    return prepare_checks(Progress(io.StringIO(), STEPS))


@pytest.fixture(params=["6.12", "7"])
def release(checks: DriverChecks, request: pytest.FixtureRequest) -> str:
    """A kernel of Debian's whose headers the root has, by the beginning of its version."""
    (found,) = [name for name in checks.releases if name.startswith(f"{request.param}.")]
    return found
