"""Where the checkout is."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def checkout() -> Path:
    """The root folder of the checkout."""
    return Path(__file__).parents[3]
