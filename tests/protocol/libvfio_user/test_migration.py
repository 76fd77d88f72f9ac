"""Migration with the library of 2022: a client saves one device by its region's registers, and loads another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from libvfio_user import Device, Library, MigrationState, Region

from .conftest import PAGE, Beside, Card

Attach = Callable[[Device], Beside]

# Registers and states of VFIO's first migration protocol: linux/vfio.h, struct vfio_device_migration_info.
STATE, PENDING, OFFSET, SIZE = 0, 8, 16, 24
RUNNING, SAVING, RESUMING, STOPPED = 1, 2, 4, 0


class Migrating(Card):
    """Its state is its memory."""

    def setup(self) -> Card:
        self.saved = b""
        self.pci(1, 2)
        self.migration(room=100)
        self.realize()
        return self

    def migration_state(self, state: MigrationState) -> None:
        self.told.append(state)
        if state is MigrationState.STOP_AND_COPY:
            self.saved = bytes(self.memory)
        elif state is MigrationState.RESUME:
            self.memory.clear()

    def save(self, count: int) -> bytes:
        piece, self.saved = self.saved[:count], self.saved[count:]
        return piece

    def load(self, data: bytes) -> None:
        self.memory += data


def number(it: Beside, place: int) -> int:
    return int.from_bytes(it.during(lambda: it.client.region_read(Region.MIGR, place, 8)), "little")


def put(it: Beside, place: int, data: bytes) -> None:
    it.during(lambda: it.client.region_write(Region.MIGR, place, data))


def test_a_device_is_saved_in_pieces_and_loaded(library: Library, tmp_path: Path, beside: Attach) -> None:
    with Migrating(tmp_path / "from.sock", library) as old, Migrating(tmp_path / "to.sock", library) as new:
        source, target = beside(old.setup()), beside(new.setup())
        old.memory[5] = 0xEE
        put(source, STATE, SAVING.to_bytes(4, "little"))
        put(target, STATE, RESUMING.to_bytes(4, "little"))
        pieces = []
        while pending := number(source, PENDING):
            offset, size = number(source, OFFSET), number(source, SIZE)
            assert (offset, size) == (PAGE, pending)
            piece = source.during(lambda at=offset, size=size: source.client.region_read(Region.MIGR, at, size))  # type: ignore[misc]
            put(target, number(target, OFFSET), piece)
            put(target, SIZE, size.to_bytes(8, "little"))
            pieces.append(size)
        put(source, STATE, STOPPED.to_bytes(4, "little"))
        put(target, STATE, RUNNING.to_bytes(4, "little"))

        assert pieces == [100, 100, 56]
        assert old.told == [MigrationState.STOP_AND_COPY, MigrationState.STOP]
        assert new.told == [MigrationState.RESUME, MigrationState.RUNNING]
        assert new.memory == old.memory
        source.close()
        target.close()
