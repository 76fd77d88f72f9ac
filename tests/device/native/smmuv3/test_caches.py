"""The tests of interfaces/smmuv3/test_caches.py, on the native core."""

from ...interfaces.smmuv3.test_caches import *  # noqa: F403
