"""PCI configuration space: bytes, write masks and capabilities.

A write changes the bits that its mask allows and succeeds in any case, as on hardware: guests and firmware
write to read-only registers all the time.
"""

from __future__ import annotations

from functools import cache

from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

from .identity import Identity

__all__ = ["Command", "ConfigSpace", "Identity", "Status"]

CONFIG_SIZE = 4096
"""Bytes of a PCI Express function's configuration space."""
_STANDARD_HEADER_END = 0x40
_CONVENTIONAL_END = 0x100
_EXTENDED_LINK = 20
"""Where the link begins in the header of an extended capability."""


class Command(BitFields, width=16):
    """The command register; what these functions do not implement reads as 0."""

    MEMORY = BitField(1, doc="Memory Space Enable: BARs answer to addresses")
    BUS_MASTER = BitField(2, doc="Bus Master Enable: the function may do DMA")
    INTX_DISABLE = BitField(10, doc="Interrupt Disable")


class Status(BitFields, width=16):
    """The status register."""

    CAPABILITIES_LIST = BitField(4, access=AccessKind.RO, doc="set with the first capability")
    MASTER_DATA_PARITY_ERROR = BitField(8)
    SIGNALED_TARGET_ABORT = BitField(11)
    RECEIVED_TARGET_ABORT = BitField(12)
    RECEIVED_MASTER_ABORT = BitField(13)
    SIGNALED_SYSTEM_ERROR = BitField(14)
    DETECTED_PARITY_ERROR = BitField(15)


class RevisionAndClass(BitFields):
    """What the function is."""

    REVISION_ID = BitField(0, 7)
    CLASS_CODE = BitField(8, 31, doc="base class, subclass, programming interface")


HEADER = RegisterMap(
    Register("VENDOR_ID", 0x00, AccessKind.RO, "of its maker", width=16, reset=None),
    Register("DEVICE_ID", 0x02, AccessKind.RO, "of the device, by its maker", width=16, reset=None),
    Register("COMMAND", 0x04, AccessKind.RW, "what the function may do", width=16, holds=Command),
    Register("STATUS", 0x06, AccessKind.RW1C, "what it has, and errors", width=16, holds=Status),
    Register("CLASS", 0x08, AccessKind.RO, "what it is", holds=RevisionAndClass, reset=None),
    Register("CACHE_LINE_SIZE", 0x0C, AccessKind.RW, "no effect", width=8),
    Register("BAR", 0x10, AccessKind.RO, "base addresses; each BAR has its own writable bits", 6),
    Register("SUBSYSTEM_VENDOR_ID", 0x2C, AccessKind.RO, "as VENDOR_ID", width=16, reset=None),
    Register("SUBSYSTEM_ID", 0x2E, AccessKind.RO, "as DEVICE_ID", width=16, reset=None),
    Register("CAPABILITIES_POINTER", 0x34, AccessKind.RO, "offset of the first capability", width=8, reset=None),
    Register("INTERRUPT_LINE", 0x3C, AccessKind.RW, "software's own", width=8),
    Register("INTERRUPT_PIN", 0x3D, AccessKind.RO, "0: there is no INTx", width=8),
)
"""The header of type 0 (PCI Express Base Specification, section 7.5.1)."""
COMMAND, STATUS, CAPABILITIES_POINTER = (
    HEADER.by_name[name].offset for name in ("COMMAND", "STATUS", "CAPABILITIES_POINTER")
)
BARS = HEADER.by_name["BAR"].places
_BAR_FLAGS = 0xF
_MEMORY, _BUS_MASTER = int(Command.MEMORY), int(Command.BUS_MASTER)


@cache
def _header_mask(kind: AccessKind) -> bytes:
    """The bits of the header that are of a kind."""
    masks = bytearray(_STANDARD_HEADER_END)
    for register in HEADER:
        for place in register.places:
            masks[place : place + register.size] = register.mask(kind).to_bytes(register.size, "little")
    return bytes(masks)


def _bits(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "little")


class ConfigSpace:
    """4 KiB of configuration space that begins as at power-on and can go back there."""

    def __init__(self, identity: Identity) -> None:
        self._bytes = bytearray(CONFIG_SIZE)
        self._writable = bytearray(_header_mask(AccessKind.RW).ljust(CONFIG_SIZE, b"\0"))
        self._clear_on_one = bytearray(_header_mask(AccessKind.RW1C).ljust(CONFIG_SIZE, b"\0"))
        self._power_on: bytes | None = None
        self._bars: list[tuple[int, int, bool]] = []
        """index, size, whether it has 64 bits"""
        self._next_capability = _STANDARD_HEADER_END
        self._last_link = CAPABILITIES_POINTER
        self._next_extended, self._last_extended = _CONVENTIONAL_END, 0
        for name, value in (
            ("VENDOR_ID", identity.vendor),
            ("DEVICE_ID", identity.device),
            ("CLASS", RevisionAndClass(REVISION_ID=identity.revision, CLASS_CODE=identity.class_code)),
            ("SUBSYSTEM_VENDOR_ID", identity.vendor),
            ("SUBSYSTEM_ID", identity.device),
        ):
            self.set(HEADER.by_name[name].offset, value, HEADER.by_name[name].size)

    # -- building ---------------------------------------------------------------------------------------------------

    def set(self, offset: int, value: int, size: int) -> None:
        """Set a register, whether or not a guest may write it."""
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
        self.set(BARS[index], flags, width)
        self.allow(BARS[index], ((1 << 8 * width) - 1) & ~(size - 1), width)

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
        self.set(STATUS, Status.CAPABILITIES_LIST, 2)
        return offset

    def add_extended_capability(self, body: bytes, writable: bytes, clears: bytes) -> int:
        """Append an extended capability and return its offset. ``body`` begins with a header without a link,
        ``writable`` masks the bits that the guest may write, and ``clears`` those that it clears by writing 1. Raises
        ValueError when extended space is full.
        """
        offset = self._next_extended
        if offset + len(body) > CONFIG_SIZE:
            raise ValueError(f"extended capability of {len(body)} bytes at {offset:#x}: past the end of extended space")
        self._bytes[offset : offset + len(body)] = body
        self._writable[offset : offset + len(writable)] = writable
        self._clear_on_one[offset : offset + len(clears)] = clears
        if self._last_extended:
            self.set(self._last_extended, self.get(self._last_extended, 4) | offset << _EXTENDED_LINK, 4)
        self._last_extended = offset
        self._next_extended = (offset + len(body) + 3) & ~3
        return offset

    def seal(self) -> None:
        """Make the present state the one that :meth:`reset` returns to."""
        self._power_on = bytes(self._bytes)

    # -- running ----------------------------------------------------------------------------------------------------

    def reset(self, *, keep_bars: bool = False) -> None:
        """Back to power-on; with ``keep_bars`` the addresses of BARs stay."""
        if self._power_on is not None:
            bars = self._bytes[BARS.start : BARS.stop]
            self._bytes[:] = self._power_on
            if keep_bars:
                self._bytes[BARS.start : BARS.stop] = bars

    def save(self) -> bytes:
        """Its bytes, up to the last one that is not 0."""
        return bytes(self._bytes).rstrip(b"\0")

    def load(self, state: bytes) -> None:
        """Take over ``state``. Raises ValueError, and then changes nothing, if it is another function's, which shows in
        bits that nobody can write.
        """
        state = state.ljust(CONFIG_SIZE, b"\0")
        if len(state) > CONFIG_SIZE:
            raise ValueError(f"configuration space of {len(state)} bytes")
        fixed = ~(_bits(self._writable) | _bits(self._clear_on_one))
        if differing := (_bits(self._bytes) ^ _bits(state)) & fixed:
            place = ((differing & -differing).bit_length() - 1) // 8
            found, here = state[place], self._bytes[place]
            raise ValueError(f"configuration space has {found:#04x} at {place:#x}, and here it is {here:#04x}")
        self._bytes[:] = state

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

        A BAR at address 0, or one that reaches the end of its address space, does not answer: it was not written, or
        the guest is asking for the size.
        """
        if not self.get(COMMAND, 2) & _MEMORY:
            return []
        found = []
        for index, size, wide in self._bars:
            width = 8 if wide else 4
            address = self.get(BARS[index], width) & ~_BAR_FLAGS
            if address and address + size < 1 << 8 * width:
                found.append((index, address, size))
        return found

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function do DMA."""
        return bool(self._bytes[COMMAND] & _BUS_MASTER)  # one byte, since each DMA asks
