"""The tests of engine/test_translation.py, on the native core."""

import pytest

from ..engine import test_engine
from ..engine.test_translation import *  # noqa: F403

ORIGINAL = test_engine  # where the engines of those tests are made
pytestmark = pytest.mark.usefixtures("native_engines")
