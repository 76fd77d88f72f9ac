"""The tests of iommu/test_pages.py, on a device with the native core."""

from ..iommu.test_pages import *  # noqa: F403
