"""Exit statuses of the commands."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitStatus"]


class ExitStatus(IntEnum):
    """Exit statuses of ``pviommu``. A command's help says what they mean for it."""

    PASSED = 0
    FAILED = 1
    """something was tested or compared and is not right, or the program itself failed"""
    USAGE = 2
    ENVIRONMENT = 3
    """the host lacks something, or refuses it"""
    UNEXPECTED = 5
    """the rules of a scenario did not do what was expected of them"""
    TIMEOUT = 124
    INTERRUPTED = 130
