"""The tests of interfaces/smmuv3/test_substreams.py, on the native core."""

from ...interfaces.smmuv3.test_substreams import *  # noqa: F403
