"""The tests of engine/test_context.py, on the native core."""

import pytest

from ..engine import test_context
from ..engine.test_context import *  # noqa: F403

ORIGINAL = test_context
pytestmark = pytest.mark.usefixtures("native_engines")
