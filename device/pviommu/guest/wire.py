"""A function over vfio-user: a socket, and memory that is shared with the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pviommu_abi.registers import REGISTER_BAR, SHARED_BAR
from vfio_user import Client, ProtocolError
from wire_layout.registers import Register

from .function import WORD, Function

__all__ = ["Part", "WireFunction"]

Part = tuple[int, int, int, int]
"""Guest memory: address, size, descriptor of its file and offset in it, as :meth:`Function.plug` takes them."""


class WireFunction(Function):
    """The function of a connected client. Closing it closes the client."""

    def __init__(self, client: Client, registers: Mapping[str, Register], memory: Iterable[Part] = ()) -> None:
        """``memory`` is given before anything is asked, as QEMU does. Raises ProtocolError if the shared BAR
        cannot be mapped as a whole.
        """
        self.client = client
        self.registers = registers
        for part in memory:
            self.plug(*part)
        client.device_info()
        areas = client.map_region(SHARED_BAR)
        if len(areas) != 1:
            for area in areas:
                area.memory.close()
            raise ProtocolError(f"the shared BAR comes as {len(areas)} areas that can be mapped: one is needed")
        self._memory = areas[0].memory
        self._view = memoryview(self._memory)
        self._words = self._view.cast("I")

    @property
    def view(self) -> memoryview:
        return self._view

    @property
    def words(self) -> memoryview:
        return self._words

    def read_at(self, offset: int) -> int:
        return int.from_bytes(self.client.region_read(REGISTER_BAR, offset, WORD), "little")

    def write_at(self, offset: int, value: int) -> None:
        self.client.region_write(REGISTER_BAR, offset, value.to_bytes(WORD, "little"))

    def read_config(self, offset: int, size: int) -> int:
        return self.client.config_read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.client.config_write(offset, size, value)

    def plug(self, address: int, size: int, fd: int, offset: int = 0) -> None:
        self.client.dma_map(address, size, fd, offset)

    def unplug(self, address: int, size: int) -> None:
        self.client.dma_unmap(address, size)

    def close(self) -> None:
        self.client.close()
        self._words.release()
        self._view.release()
        self._memory.close()
