"""A guest that speaks profile xen-v7, and operations whose structures lie in its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pviommu.guest.xen_2024 import UNTOUCHED
from pviommu_abi.registers import Profile
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import Batch, Call, MapOp, VendorOp
from pviommu_abi.xen_v7 import (
    V7Alloc,
    V7Capabilities,
    V7Free,
    V7Init,
    V7MapPages,
    V7ReattachDevice,
    V7UnmapPages,
    XenV7Op,
)

from ...conftest import DEVFN, Driver

PLACE = 0x8000
"""Guest physical address of structures and arrays."""


class V7:
    """The operations of xen-v7 by ``driver``."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def call(self, op: int, payload: bytes = b"", **how: Any) -> tuple[int, bytes]:
        """Result and payload."""
        return self.driver.call(payload, OpClass.XEN_V7, op, **how)

    def query(self) -> V7Capabilities:
        result, answer = self.call(XenV7Op.QUERY_CAPABILITIES, b"\xff" * V7Capabilities.SIZE)
        assert (result, answer[V7Capabilities.SIZE :]) == (0, bytes(48 - V7Capabilities.SIZE))
        return V7Capabilities.unpack(answer)

    def init(self, max_ctx_no: int = 128, arena_order: int = 12) -> int:
        return self.call(XenV7Op.INIT, V7Init(max_ctx_no, arena_order).pack())[0]

    def alloc(self, flags: int = 0) -> tuple[int, int]:
        """Result and ctx_no."""
        result, answer = self.call(XenV7Op.ALLOC_CONTEXT, V7Alloc(UNTOUCHED, 0, flags).pack())
        return result, V7Alloc.unpack(answer).ctx_no

    def free(self, ctx: int, flags: int = 0) -> int:
        return self.call(XenV7Op.FREE_CONTEXT, V7Free(ctx, 0, flags).pack())[0]

    def reattach(self, name: str, ctx: int, pasid: int = 0) -> int:
        return self.call(XenV7Op.REATTACH_DEVICE, V7ReattachDevice(ctx, 0, 0, DEVFN[name], 0, pasid).pack())[0]

    def map(
        self, ctx: int, dfn: int, gfn: int, nr: int, flags: int = 3, pgsize: int = 4096, mapped: int = 0
    ) -> tuple[int, int]:
        """Result and mapped."""
        op = V7MapPages(ctx, 0, 0, gfn, dfn, flags, pgsize, nr, mapped)
        result, answer = self.call(XenV7Op.MAP_PAGES, op.pack())
        return result, V7MapPages.unpack(answer).mapped

    def unmap(self, ctx: int, dfn: int, nr: int, pgsize: int = 4096, unmapped: int = 0) -> tuple[int, int]:
        """Result and unmapped."""
        op = V7UnmapPages(ctx, 0, 0, dfn, pgsize, nr, unmapped, 0)
        result, answer = self.call(XenV7Op.UNMAP_PAGES, op.pack())
        return result, V7UnmapPages.unpack(answer).unmapped

    def lookup(self, ctx: int, dfn: int) -> int | None:
        """There is no such operation; this asks the engine."""
        found = self.driver.iommu.engine.lookup(ctx, dfn)
        return None if found is None else found[0]

    def attached(self, name: str = "dma0", ctx: int | None = None) -> int:
        """Bind an endpoint, let it master the bus, attach it to ``ctx`` or a new context; the context."""
        if ctx is None:
            result, ctx = self.alloc()
            assert result == 0
        assert (self.driver.bind(name), self.reattach(name, ctx)) == (0, 0)
        self.driver.master(name)
        return ctx


class Memory:
    """CALL and BATCH by ``driver``, with what they point to at :data:`PLACE`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def call(self, structure: bytes, op: int = 0, address: int = PLACE) -> tuple[int, bytes]:
        """Result, and the structure afterwards."""
        if address == PLACE:
            self.driver.ram[PLACE : PLACE + len(structure)] = structure
        result, _ = self.driver.call(Call(address, op).pack(), OpClass.VENDOR, VendorOp.CALL)
        return result, self.driver.ram[PLACE : PLACE + len(structure)]

    def put_array(self, elements: list[MapOp]) -> None:
        packed = b"".join(element.pack() for element in elements)
        self.driver.ram[PLACE : PLACE + len(packed)] = packed

    def statuses(self, count: int) -> list[int]:
        return [MapOp.unpack(self.driver.ram, PLACE + place * MapOp.SIZE).status for place in range(count)]

    def batch(
        self, ctx: int, elements: list[MapOp], flags: int = 0, address: int = PLACE, count: int | None = None
    ) -> tuple[int, int]:
        """Result and done."""
        self.put_array(elements)
        op = Batch(address, len(elements) if count is None else count, flags, ctx)
        result, answer = self.driver.call(op.pack(), OpClass.VENDOR, VendorOp.BATCH)
        return result, Batch.unpack(answer).done


@pytest.fixture
def make_v7(make_driver: Callable[..., Driver]) -> Callable[..., V7]:
    """Guests that selected xen-v7; INIT is up to them."""
    return lambda **settings: V7(make_driver(**settings).start(profile=Profile.XEN_V7))


@pytest.fixture
def v7(make_v7: Callable[..., V7]) -> V7:
    """A guest that selected xen-v7 and did its INIT."""
    guest = make_v7()
    assert guest.init() == 0
    return guest
