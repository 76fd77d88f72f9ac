"""What the bindings raise, apart from :class:`~libvfio_user.raw.LibraryError`."""

from __future__ import annotations

import os

__all__ = ["ArgumentError", "DisconnectedError", "StateError", "VfuError"]


class VfuError(OSError):
    """A call of the library failed: ``errno`` is what it left, ``call`` says which call it was, of what."""

    def __init__(self, number: int, call: str) -> None:
        super().__init__(number, os.strerror(number))
        self.call = call

    def __str__(self) -> str:
        return f"{self.call}: {self.strerror}"


class DisconnectedError(VfuError):
    """The client has gone; the device waits for the next one."""


class ArgumentError(ValueError):
    """An argument that the library would take unchecked, and that is wrong."""


class StateError(RuntimeError):
    """A call that is not possible now. The library would not notice, or would end the process."""
