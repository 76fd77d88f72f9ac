"""The tests of engine/test_nested.py, on the native core."""

import pytest

from ..engine import test_nested
from ..engine.test_nested import *  # noqa: F403

ORIGINAL = test_nested
pytestmark = pytest.mark.usefixtures("native_engines")
