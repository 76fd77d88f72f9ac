"""Random histories: whatever a program asks for, page tables have what their address spaces have, and nothing stays."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.engine import PAGE_SIZE
from pviommu.interfaces.iommufd import DmaRefusedError, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.commands import COMMANDS
from pviommu.interfaces.iommufd.context import Iommufd
from pviommu.interfaces.iommufd.ioas import Ioas
from pviommu.interfaces.iommufd.process import blank
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest

from .conftest import CONFIGS, Program

PLACES = (
    *(page * PAGE_SIZE for page in range(12)),
    *(1, 0x800, 0xFEDFF000, 0xFEE00000, 1 << 32, (1 << 48) - PAGE_SIZE, 1 << 48, (1 << 64) - PAGE_SIZE),
)
SIZES = (*(pages * PAGE_SIZE for pages in range(1, 6)), PAGE_SIZE, 0x800, 0, 1 << 33, (1 << 64) - 1)
BUILT = (
    *(s.IoasMap, s.IoasMap, s.IoasMap, s.IoasUnmap, s.IoasUnmap, s.IoasCopy, s.Destroy, s.IoasAlloc, s.IoasAllowIovas),
    *(s.IoasIovaRanges, s.Option, s.VfioIoas, s.HwptAlloc, s.HwptSetDirtyTracking, s.HwptGetDirtyBitmap),
)
ACTIONS = (*("request",) * 8, "attach", "attach", "detach", "bind", "close", "type1", "write", "write")


class Chance:
    """Choices of one history."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self) -> int:
        """Of an object: mostly of one of the first two."""
        return self.random.choice((1, 1, 1, 2, 2, self.random.randrange(10)))

    def field(self, name: str) -> int:
        """Of a structure; any that is no address is an id."""
        if name in ("iova", "src_iova", "dst_iova"):
            return self.random.choice(PLACES)
        if name in ("length", "page_size"):
            return self.random.choice(SIZES)
        if name == "flags":
            return self.random.choice((7, 7, 6, 3, self.random.randrange(8)))
        limit = {"num_iovas": 3, "op": 3, "option_id": 2, "val64": 2, "data_type": 1, "data_len": 1}.get(name)
        return self.number() if limit is None else self.random.randrange(limit)

    def step(self) -> tuple[str, Any, Any]:
        """One step of :class:`History`."""
        action = self.random.choice(ACTIONS)
        if action == "request":
            record = self.random.choice(BUILT)
            names = [field.name for field in record.FIELDS[1:] if "reserved" not in field.name]
            return action, record, {name: self.field(name) for name in names if name not in ("user_va", "data")}
        if action == "type1":
            return action, self.random.choice((1, 3)), self.random.choice(PLACES)
        second = self.random.choice(PLACES) if action == "write" else self.number()
        return action, self.random.randrange(6), second


class History:
    """A program and its devices, with two address spaces, 1 and 2."""

    def __init__(self) -> None:
        self.system = System(CONFIGS)
        self.program = Program(self.system)
        self.file = self.program.file(self.program.fd)
        self.open: dict[int, int] = {}
        self.names = [config.name for config in CONFIGS]
        for _ in range(2):
            self.program.ioas()
        for number in (0, 3, 2):
            self.step("bind", number, 0)
        for number in (0, 3):
            self.step("attach", number, 1)  # by two page tables, one of 48 bits and one of 32
        self.ranges = self.program.memory.add(s.IovaRange(0x10000, 0x1FFFF).pack() * 2)

    def step(self, what: str, first: Any, second: Any) -> None:
        program = self.program
        if what == "request":
            extra = {"allowed_iovas": self.ranges} if "allowed_iovas" in second else {}
            if first in (s.IoasMap, s.HwptGetDirtyBitmap):
                extra["user_va" if first is s.IoasMap else "data"] = program.va
            program.iommu(first, **{**second, **extra})
        elif what == "bind":
            fd = program.open(self.system.devices[self.names[first]].node)
            try:
                program.call(fd, v.BindIommufd, iommufd=program.fd)
            except OSError:
                program.close(fd)
                raise
            self.open[first] = fd
        elif what == "type1":
            program.ioctl(program.fd, VfioRequest.SET_IOMMU, first)
            program.iommu(v.DmaUnmap, iova=second, size=PAGE_SIZE)
        elif what == "write":
            self.system.write(self.names[first], second, b"x")
        elif first in self.open:
            if what == "attach":
                program.call(self.open[first], v.AttachIommufdPt, pt_id=second)
            elif what == "detach":
                program.call(self.open[first], v.DetachIommufdPt)
            else:
                program.close(self.open.pop(first))

    def check(self) -> None:
        """Each page table has what is mapped in its address space, which keeps to what it may use."""
        assert isinstance(self.file, Iommufd)
        for ioas in self.file.objects:
            if not isinstance(ioas, Ioas):
                continue
            mapped = [
                (area.first // PAGE_SIZE, area.target // PAGE_SIZE, area.length // PAGE_SIZE, area.tag.access)
                for area in ioas.space.areas
            ]
            for hwpt in ioas.hwpts:
                assert [area[:4] for area in self.system.hardware.engine.areas(hwpt.table)] == mapped
            for first, last in ioas.space.reserved:
                assert ioas.space.areas.first_in(first, last) is None
            for area in ioas.space.areas:
                assert not (area.first | area.last + 1) & ioas.space.alignment - 1


@pytest.mark.parametrize("seed", range(30))
def test_page_tables_follow_their_address_spaces_and_nothing_stays(seed: int) -> None:
    chance, history = Chance(seed), History()
    for _ in range(150):
        with contextlib.suppress(OSError, DmaRefusedError):
            history.step(*chance.step())
        history.check()
    history.program.exit()
    engine = history.system.hardware.engine
    assert engine.domains() == ()
    assert engine.pool_pages()[0] == 0
    assert all(device.owner is None for device in history.system.devices.values())


@settings(deadline=None, max_examples=150)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([*COMMANDS, *(request & 0xFF for request in VfioRequest), 0x7F, 0x96, 0xA0]),
            st.binary(max_size=64),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_random_bytes_are_refused_with_an_errno(requests: list[tuple[int, bytes, bool]]) -> None:
    program = Program(System(CONFIGS))
    program.device("dma0").attach(program.ioas())
    for number, data, is_sized in requests:
        argument = bytearray(data.ljust(64, b"\0"))
        if is_sized:
            record = COMMANDS[number].record if number in COMMANDS else v.DmaMap
            argument[: record.SIZE] = blank(record).pack()[:4] + data[: record.SIZE - 4].ljust(record.SIZE - 4, b"\0")
        with contextlib.suppress(OSError):
            program.ioctl(program.fd, 0x3B00 | number, program.memory.add(argument))
    program.exit()
    assert program.system.hardware.engine.domains() == ()
