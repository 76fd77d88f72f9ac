"""The tests of iommu/test_indirect.py, on a device with the native core."""

from ..iommu.test_indirect import *  # noqa: F403
