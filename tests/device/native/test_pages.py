"""The tests of iommu/test_pages.py, on a device with the native core."""

from ..interfaces.pv.test_pages import *  # noqa: F403
