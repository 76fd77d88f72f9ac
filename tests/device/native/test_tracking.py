"""The tests of engine/test_tracking.py, on the native core."""

import pytest

from ..engine import test_tracking
from ..engine.test_tracking import *  # noqa: F403

ORIGINAL = test_tracking
pytestmark = pytest.mark.usefixtures("native_engines")
