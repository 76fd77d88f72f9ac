"""The tests of engine/test_engine.py, on the native core."""

import pytest

from ..engine import test_engine
from ..engine.test_engine import *  # noqa: F403

ORIGINAL = test_engine
pytestmark = pytest.mark.usefixtures("native_engines")
