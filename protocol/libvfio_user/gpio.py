"""A GPIO card in one file: ``python -m libvfio_user.gpio SOCKET``.

    qemu-system-x86_64 ... -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"SOCKET"}}'

It is an ADLINK PCI-7230, for Linux' driver adl_pci7x3x: 16 outputs and 16 inputs, and here each input is wired to the
output of the same number. A rising input 0 or 1 interrupts, if the driver has allowed it.
"""

import logging
import sys

from . import ArgumentError, Device, Irq, LibraryError, Region, RegionFlag, Reset

__all__ = ["Card"]

_PORT, _CLEAR = 0x00, 0x40  # BAR 2: the lines, 32 bits; any write ends the interrupts
_INTCSR = 0x4C  # BAR 1, of the bridge PLX 9052: 1 and 8 enable lines 0 and 1, 4 and 0x20 are their status, 0x40 all


class Card(Device):
    """The card on a socket."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lines = self.control = 0
        self.pci(0x144A, 0x7230, class_code=0x118000)
        self.region(Region.BAR1, 128, flags=RegionFlag.RW)
        self.region(Region.BAR2, 128, flags=RegionFlag.RW)
        self.interrupts(Irq.INTX, 1)
        self.realize()

    def read(self, region: Region, offset: int, count: int) -> bytes:
        value = {(Region.BAR1, _INTCSR): self.control, (Region.BAR2, _PORT): self.lines}.get((region, offset), 0)
        return value.to_bytes(4, "little")[:count].ljust(count, b"\0")

    def write(self, region: Region, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if (region, offset) == (Region.BAR1, _INTCSR):
            self.control = self.control & 0x24 | value & ~0x24
        elif (region, offset) == (Region.BAR2, _PORT):
            seen = (value & ~self.lines) & 1 and self.control & 1 and 0x04
            seen |= (value & ~self.lines) & 2 and self.control & 8 and 0x20
            self.lines, self.control = value & 0xFFFF, self.control | seen
            if seen and self.control & 0x40:
                self.trigger(0)
        elif (region, offset) == (Region.BAR2, _CLEAR):
            self.control &= ~0x24

    def reset(self, kind: Reset) -> None:
        self.lines = self.control = 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    try:
        with Card(sys.argv[1] if len(sys.argv) > 1 else sys.exit(__doc__)) as card:
            card.serve()
    except (ArgumentError, LibraryError, OSError) as error:
        print(f"gpio: {error}", file=sys.stderr)
        sys.exit(3)
