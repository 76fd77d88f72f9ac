"""What all requests of iommufd have in common."""

from __future__ import annotations

import errno

import pytest

from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd.commands import COMMANDS, Command, request
from pviommu.interfaces.iommufd.process import blank

from .conftest import BOTH, Program, fails

EACH = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
SIZES = {
    0x80: (8, 8), 0x81: (12, 12), 0x82: (24, 24), 0x83: (40, 40), 0x84: (32, 32), 0x85: (40, 40), 0x86: (24, 24),
    0x87: (24, 24), 0x88: (12, 12), 0x89: (48, 24), 0x8A: (40, 32), 0x8B: (16, 16), 0x8C: (48, 48), 0x8D: (32, 32),
    0x8E: (16, 16), 0x8F: (40, 40), 0x90: (40, 24), 0x91: (24, 24), 0x92: (8, 8), 0x93: (32, 28), 0x94: (40, 40),
    0x95: (40, 40),
}  # fmt: skip
"""Size and smallest size of each structure, as a C compiler has them of the kernel's header."""


@EACH
def test_structures_are_as_long_as_those_of_the_kernel(command: Command) -> None:
    assert (command.record.SIZE, command.minimum) == SIZES[command.number]
    assert command.request == 0x3B00 + command.number


@pytest.mark.row("space", 47)
@EACH
def test_sizes_are_judged_alike(program: Program, command: Command) -> None:
    """Less than the minimum: EINVAL; more than is known: E2BIG if something is in it, otherwise nothing changes."""

    def outcome(size: int, behind: bytes = b"") -> int | None:
        data = bytearray(blank(command.record).pack() + behind)
        data[:4] = size.to_bytes(4, "little")
        place = program.memory.add(data)
        try:
            program.ioctl(program.fd, command.request, place)
        except OSError as error:
            return error.errno
        finally:
            program.memory.remove(place)
        return None

    size = command.record.SIZE
    assert outcome(command.minimum - 1) == errno.EINVAL
    assert outcome(0) == errno.EINVAL
    assert outcome(size + 1, b"\1") == errno.E2BIG
    assert outcome(size + 70000, bytes(69999) + b"\1") == errno.E2BIG
    exact = outcome(size)
    assert exact not in (errno.EINVAL, errno.E2BIG) or command.record in (s.IoasMap, s.IoasMapFile, s.IoasCopy)
    assert outcome(size + 3, bytes(3)) == exact
    assert outcome(command.minimum) == exact


@pytest.mark.row("space", 47)
@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (s.IoasAlloc, {"flags": 1 << 31}),
        (s.IoasMap, {"flags": 1 << 31 | BOTH}),
        (s.IoasMap, {"flags": BOTH, "reserved": 1}),
        (s.IoasCopy, {"flags": 1 << 31}),
        (s.IoasIovaRanges, {"reserved": 1}),
        (s.IoasAllowIovas, {"reserved": 1}),
        (s.Option, {"reserved": 1}),
        (s.Option, {"option_id": 2}),
        (s.VfioIoas, {"reserved": 1}),
        (s.VfioIoas, {"op": 3}),
        (s.HwptAlloc, {"reserved": 1}),
        (s.GetHwInfo, {"flags": 2}),
        (s.GetHwInfo, {"reserved": b"\0\0\1"}),
        (s.HwptSetDirtyTracking, {"flags": 2}),
        (s.HwptGetDirtyBitmap, {"flags": 2}),
        (s.HwptGetDirtyBitmap, {"reserved": 1}),
        (s.IoasNoiommuGetPa, {}),
    ],
)
def test_unknown_flags_and_reserved_fields_outrank_ids(program: Program, record: type, fields: dict[str, int]) -> None:
    with fails("EOPNOTSUPP"):
        program.iommu(record, **fields)


@pytest.mark.row("space", 47)
@pytest.mark.parametrize("number", [0x00, 0x7F, 0x96, 0xA0])
def test_a_request_that_there_is_not_is_enotty(program: Program, number: int) -> None:
    with fails("ENOTTY"):
        program.ioctl(program.fd, request(number), program.memory.add(64))


@pytest.mark.row("space", 47)
def test_a_request_of_another_type_is_enotty(program: Program) -> None:
    place = program.memory.add(64)
    with fails("ENOTTY"):
        program.ioctl(program.fd, 0x4000_3B80, place)
    with fails("EFAULT"):
        program.ioctl(program.fd, 0x4000_3B80, 0)


@pytest.mark.row("space", 47)
def test_an_argument_that_cannot_be_read_is_efault(program: Program) -> None:
    with fails("EFAULT"):
        program.ioctl(program.fd, request(0x80), 0)
    short = program.memory.add(bytearray((40).to_bytes(4, "little") + bytes(20)))
    with fails("EFAULT"):
        program.ioctl(program.fd, request(0x85), short)
    long = program.memory.add(bytearray((1 << 31).to_bytes(4, "little") + bytes(100)))
    with fails("EFAULT"):
        program.ioctl(program.fd, request(0x80), long)


def test_an_argument_that_cannot_be_written_back_leaves_no_object(program: Program) -> None:
    place = program.memory.add(blank(s.IoasAlloc).pack())

    with fails("EFAULT", "read-only"):
        program.ioctl(program.fd, request(0x81), place)

    assert program.ioas() == 1


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_request_is_part_of_the_model(program: Program, command: Command) -> None:
    assert callable(getattr(program.file(program.fd), f"_do_{command.name}"))
