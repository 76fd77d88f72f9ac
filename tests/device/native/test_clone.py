"""The tests of engine/test_clone.py, on the native core."""

import pytest

from ..engine import test_clone
from ..engine.test_clone import *  # noqa: F403

ORIGINAL = test_clone
pytestmark = pytest.mark.usefixtures("native_engines")
