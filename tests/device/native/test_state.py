"""The tests of engine/test_state.py, on the native core."""

import pytest

from ..engine import test_state
from ..engine.test_state import *  # noqa: F403

ORIGINAL = test_state
pytestmark = pytest.mark.usefixtures("native_engines")
