"""The tests of interfaces/smmuv3/test_function.py, on the native core."""

from ...interfaces.smmuv3.test_function import *  # noqa: F403
