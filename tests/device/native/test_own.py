"""The tests of iommu/test_own.py, on a device with the native core."""

from ..interfaces.pv.test_own import *  # noqa: F403
