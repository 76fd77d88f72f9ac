"""The tests of iommu/test_indirect.py, on a device with the native core."""

from ..interfaces.pv.test_indirect import *  # noqa: F403
