"""The tests of engine/test_domain.py, on the native core."""

import pytest

from ..engine import test_domain
from ..engine.test_domain import *  # noqa: F403

ORIGINAL = test_domain
pytestmark = pytest.mark.usefixtures("native_engines")
