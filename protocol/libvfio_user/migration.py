"""Migration of a device, as both generations have it: version 1 through a region, version 2 by messages."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Any, Protocol

from . import raw
from .callbacks import Callbacks
from .raw import Generation, MigrationCallbacks, MigrationCallbacks2, MigrationState

__all__ = ["Migratable", "migration_callbacks"]


class Migratable(Protocol):
    """What a device that migrates has. Exceptions are handled as those of all callbacks."""

    def migration_state(self, state: MigrationState) -> None:
        """The client has asked for ``state``. On STOP_AND_COPY or PRE_COPY begin a new saved state."""

    def save(self, count: int) -> bytes:
        """The next at most ``count`` bytes of the saved state; empty when there are no more."""
        ...

    def load(self, data: bytes) -> None:
        """The next bytes of a saved state, after RESUME."""


class _Chunks:
    """Version 1 asks first how much is pending, then for a place, then for bytes at a place."""

    def __init__(self, device: Migratable, room: int) -> None:
        self._device = device
        self._room = room
        self._chunk = b""

    def transition(self, state: int) -> int:
        self._chunk = b""
        self._device.migration_state(MigrationState(state))
        return 0

    def pending(self) -> int:
        self._chunk = self._device.save(self._room)
        return len(self._chunk)

    def prepare(self, offset: Any, size: Any) -> int:
        offset[0] = 0
        if size:
            size[0] = len(self._chunk)
        return 0

    def read(self, buffer: int, count: int, offset: int) -> int:
        piece = self._chunk[offset : offset + count]
        if len(piece) < count:  # the library would send what else is in its buffer
            raise OSError(errno.EINVAL, f"{count} bytes at {offset} of a chunk of {len(self._chunk)}")
        ctypes.memmove(buffer, piece, len(piece))
        return len(piece)


def migration_callbacks(
    generation: Generation, device: Migratable, callbacks: Callbacks, room: int
) -> MigrationCallbacks | MigrationCallbacks2:
    """The structure for C; it keeps what C calls. ``room`` is the bytes of the region's data (version 1)."""

    def load(buffer: int, count: int) -> int:
        device.load(ctypes.string_at(buffer, count))
        return count

    def read(buffer: int, count: int) -> int:
        piece = device.save(count)
        if len(piece) > count:
            raise ValueError(f"save gave {len(piece)} bytes, {count} were asked for")
        ctypes.memmove(buffer, piece, len(piece))
        return len(piece)

    def changed(state: int) -> int:
        device.migration_state(MigrationState(state))
        return 0

    def called(name: str, call: Callable[..., int], failed: int = -1) -> Callable[..., int]:
        return lambda _, *arguments: callbacks.run(name, lambda: call(*arguments), failed)

    if generation is Generation.CURRENT:
        return MigrationCallbacks2(
            version=2,
            transition=raw.MIGRATION_TRANSITION(called("migration_state", changed)),
            read_data=raw.MIGRATION_DATA(called("save", read)),
            write_data=raw.MIGRATION_DATA(called("load", load)),
        )
    chunks = _Chunks(device, room)
    return MigrationCallbacks(
        version=1,
        transition=raw.MIGRATION_TRANSITION(called("migration_state", chunks.transition)),
        get_pending_bytes=raw.MIGRATION_PENDING(called("save", chunks.pending, failed=0)),
        prepare_data=raw.MIGRATION_PREPARE(called("save", chunks.prepare)),
        read_data=raw.MIGRATION_DATA_AT(called("save", chunks.read)),
        write_data=raw.MIGRATION_DATA_AT(called("load", lambda buffer, count, _: load(buffer, count))),
        data_written=raw.MIGRATION_WRITTEN(called("load", lambda _: 0)),
    )
