"""The tests of interfaces/smmuv3/test_smmu.py, on the native core."""

from ...interfaces.smmuv3.test_smmu import *  # noqa: F403
