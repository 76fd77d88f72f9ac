"""Random histories: whatever a program asks for, page tables have what their address spaces have, and nothing stays."""

from __future__ import annotations

import contextlib
from typing import Any

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

IDS = st.one_of(st.integers(0, 9), st.integers(1, 2))
PLACES = st.one_of(
    st.integers(0, 12).map(lambda page: page * PAGE_SIZE),
    st.sampled_from([1, 0x800, 0xFEDFF000, 0xFEE00000, 1 << 32, (1 << 48) - PAGE_SIZE, 1 << 48, (1 << 64) - PAGE_SIZE]),
)
SIZES = st.one_of(
    st.integers(0, 5).map(lambda pages: pages * PAGE_SIZE), st.sampled_from([1, 0x800, 1 << 33, (1 << 64) - 1])
)
FLAGS = st.integers(0, 7)
OF_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "iova": PLACES, "src_iova": PLACES, "dst_iova": PLACES, "length": SIZES, "page_size": SIZES, "flags": FLAGS,
    "num_iovas": st.integers(0, 2), "op": st.integers(0, 2), "option_id": st.integers(0, 1), "val64": st.integers(0, 1),
}  # fmt: skip
"""What a field may be; any other that is no address is an id, and reserved ones are 0."""


def fields_of(record: type) -> st.SearchStrategy[dict[str, Any]]:
    names = [field.name for field in record.FIELDS[1:] if "reserved" not in field.name]  # type: ignore[attr-defined]
    return st.fixed_dictionaries({name: OF_FIELD.get(name, IDS) for name in names if name not in ("user_va", "data")})


BUILT = (
    s.Destroy, s.IoasAlloc, s.IoasAllowIovas, s.IoasCopy, s.IoasIovaRanges, s.IoasMap, s.IoasUnmap, s.Option,
    s.VfioIoas, s.HwptAlloc, s.HwptSetDirtyTracking, s.HwptGetDirtyBitmap,
)  # fmt: skip
REQUEST = st.sampled_from([*BUILT, s.IoasMap, s.IoasMap, s.IoasUnmap]).flatmap(
    lambda record: st.tuples(st.just(record), fields_of(record))
)
STEP = st.one_of(
    REQUEST.map(lambda request: ("request", *request)),
    REQUEST.map(lambda request: ("request", *request)),
    st.tuples(st.just("attach"), st.integers(0, 5), IDS),
    st.tuples(st.just("detach"), st.integers(0, 5), IDS),
    st.tuples(st.just("bind"), st.integers(0, 5), IDS),
    st.tuples(st.just("close"), st.integers(0, 5), IDS),
    st.tuples(st.just("type1"), st.sampled_from([1, 3]), PLACES),
    st.tuples(st.just("write"), st.integers(0, 5), PLACES),
)


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
            pages = {
                (area.first // PAGE_SIZE + number, area.target // PAGE_SIZE + number, area.tag.access)
                for area in ioas.space.areas
                for number in range(area.length // PAGE_SIZE)
            }
            for hwpt in ioas.hwpts:
                found = self.system.hardware.engine.areas(hwpt.table)
                assert {(a.dfn + n, a.gfn + n, a.access) for a in found for n in range(a.nr)} == pages
            for first, last in ioas.space.reserved:
                assert ioas.space.areas.first_in(first, last) is None
            for area in ioas.space.areas:
                assert not (area.first | area.last + 1) & ioas.space.alignment - 1


@settings(deadline=None, max_examples=120)
@given(steps=st.lists(STEP, max_size=40))
def test_page_tables_follow_their_address_spaces_and_nothing_stays(steps: list[tuple[Any, ...]]) -> None:
    history = History()
    for step in steps:
        with contextlib.suppress(OSError, DmaRefusedError):
            history.step(*step)
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
