"""The tests of interfaces/smmuv3/test_rows.py, on the native core."""

from ...interfaces.smmuv3.test_rows import *  # noqa: F403
