"""PCI configuration space: bytes, write masks and capabilities.

A write changes the bits that its mask allows and succeeds in any case, as on hardware: guests and firmware
write to read-only registers all the time.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CommandBits", "ConfigSpace", "Identity"]

CONFIG_SIZE = 4096
"""Bytes of a PCI Express function's configuration space."""
COMMAND = 0x04
STATUS = 0x06
BAR0 = 0x10
_BARS_END = 0x28
_BAR_FLAGS = 0xF
CAPABILITIES_POINTER = 0x34
_STANDARD_HEADER_END = 0x40
_CONVENTIONAL_END = 0x100

STATUS_CAPABILITY_LIST = 1 << 4
_STATUS_W1C = 0xF900
"""Error bits of the status register: writing 1 clears them."""


class CommandBits:
    """Bits of the command register that these functions implement."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    INTX_DISABLE = 1 << 10
    WRITABLE = MEMORY | BUS_MASTER | INTX_DISABLE


@dataclass(frozen=True)
class Identity:
    """PCI ids; ``class_code`` has 24 bits: base class, subclass, programming interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 1


class ConfigSpace:
    """4 KiB of configuration space that begins as at power-on and can go back there."""

    def __init__(self, identity: Identity) -> None:
        self._bytes = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._clear_on_one = bytearray(CONFIG_SIZE)
        self._power_on: bytes | None = None
        self._bars: list[tuple[int, int, bool]] = []
        """index, size, whether it is wide"""
        self._next_capability = _STANDARD_HEADER_END
        self._last_link = CAPABILITIES_POINTER
        self.set(0x00, identity.vendor, 2)
        self.set(0x02, identity.device, 2)
        self.set(0x08, identity.revision | identity.class_code << 8, 4)
        self.set(0x2C, identity.vendor, 2)
        self.set(0x2E, identity.device, 2)
        self.allow(COMMAND, CommandBits.WRITABLE, 2)
        self._clear_on_one[STATUS : STATUS + 2] = _STATUS_W1C.to_bytes(2, "little")
        self.allow(0x0C, 0xFF, 1)  # cache line size
        self.allow(0x3C, 0xFF, 1)  # interrupt line; the interrupt pin stays 0: there is no INTx

    # -- building ---------------------------------------------------------------------------------------------------

    def set(self, offset: int, value: int, size: int) -> None:
        """Set a register whatever its mask says."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, mask: int, size: int) -> None:
        """Make the bits of ``mask`` writable."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_bar(self, index: int, size: int, *, wide: bool, prefetchable: bool) -> None:
        """A memory BAR of ``size`` bytes, a power of two from 4096; a wide one also takes the next index."""
        if size < 4096 or size & (size - 1):
            raise ValueError(f"BAR {index} of {size:#x} bytes: the size must be a power of two from 4096")
        flags = (0x4 if wide else 0) | (0x8 if prefetchable else 0)
        width = 8 if wide else 4
        self._bars.append((index, size, wide))
        self.set(BAR0 + 4 * index, flags, width)
        self.allow(BAR0 + 4 * index, ((1 << 8 * width) - 1) & ~(size - 1), width)

    def add_capability(self, body: bytes, writable: bytes = b"") -> int:
        """Append a conventional capability and return its offset.

        ``body`` begins with the id and a byte for the link; ``writable`` masks it from the start, and what it
        does not cover is read only. Raises :class:`ValueError` when the 192 bytes for capabilities are full.
        """
        offset = self._next_capability
        if offset + len(body) > _CONVENTIONAL_END:
            raise ValueError(f"capability of {len(body)} bytes at {offset:#x}: past the end of conventional space")
        self._bytes[offset : offset + len(body)] = body
        self._writable[offset : offset + len(writable)] = writable
        self._bytes[self._last_link] = offset
        self._last_link = offset + 1
        self._next_capability = (offset + len(body) + 3) & ~3
        self.set(STATUS, STATUS_CAPABILITY_LIST, 2)
        return offset

    def seal(self) -> None:
        """Take the present state as the one that :meth:`reset` returns to."""
        self._power_on = bytes(self._bytes)

    # -- running ----------------------------------------------------------------------------------------------------

    def reset(self, *, keep_bars: bool = False) -> None:
        """Back to power-on, with ``keep_bars`` but for the addresses of BARs."""
        if self._power_on is not None:
            bars = self._bytes[BAR0:_BARS_END]
            self._bytes[:] = self._power_on
            if keep_bars:
                self._bytes[BAR0:_BARS_END] = bars

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes; the caller has checked the bounds."""
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Change what may be changed; the caller has checked the bounds."""
        for place, value in enumerate(data, offset):
            mask = self._writable[place]
            kept = self._bytes[place] & ~mask & ~(value & self._clear_on_one[place])
            self._bytes[place] = kept | (value & mask)

    def get(self, offset: int, size: int) -> int:
        """A register as a number."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def decoded(self) -> list[tuple[int, int, int]]:
        """(index, address, size) of each BAR that answers to addresses.

        Address 0 and what reaches the end of the BAR's address space mean that nothing was written there, or that the
        guest is asking for the size.
        """
        if not self.get(COMMAND, 2) & CommandBits.MEMORY:
            return []
        found = []
        for index, size, wide in self._bars:
            width = 8 if wide else 4
            address = self.get(BAR0 + 4 * index, width) & ~_BAR_FLAGS
            if address and address + size < 1 << 8 * width:
                found.append((index, address, size))
        return found

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function do DMA."""
        return bool(self._bytes[COMMAND] & CommandBits.BUS_MASTER)  # one byte, since each DMA asks
