"""The tests of interfaces/pv/test_vendor.py, on a device with the native core."""

from ..interfaces.pv.test_vendor import *  # noqa: F403
