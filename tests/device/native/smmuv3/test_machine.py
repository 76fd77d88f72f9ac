"""The tests of interfaces/smmuv3/test_machine.py, on the native core."""

from ...interfaces.smmuv3.test_machine import *  # noqa: F403
