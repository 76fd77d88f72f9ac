"""The tests of engine/test_model.py, on the native core."""

import pytest

from ..engine import test_model
from ..engine.test_model import *  # noqa: F403

ORIGINAL = test_model
pytestmark = pytest.mark.usefixtures("native_engines")
