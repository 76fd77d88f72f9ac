"""The tests of interfaces/pv/test_contexts.py, on the native core."""

import pytest

from ..interfaces.pv import test_contexts
from ..interfaces.pv.test_contexts import *  # noqa: F403

ORIGINAL = test_contexts
pytestmark = pytest.mark.usefixtures("native_engines")
