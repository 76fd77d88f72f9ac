"""The tests of iommu/test_function.py, on a device with the native core."""

from ..interfaces.pv.test_function import *  # noqa: F403
