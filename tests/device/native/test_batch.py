"""The tests of iommu/test_batch.py, on a device with the native core."""

from ..interfaces.pv.test_batch import *  # noqa: F403
