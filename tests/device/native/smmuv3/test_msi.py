"""The tests of interfaces/smmuv3/test_msi.py, on the native core."""

from ...interfaces.smmuv3.test_msi import *  # noqa: F403
