"""The tests of interfaces/smmuv3/test_golden.py, on the native core."""

from ...interfaces.smmuv3.test_golden import *  # noqa: F403
