"""Register files: kinds of access, and handlers found by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.pci.registers import RegisterFile
from pviommu_abi.registers import Access, Register

DECLARED = (
    Register("MAGIC", 0x00, Access.RO, "a constant"),
    Register("SCRATCH", 0x04, Access.RW, "keeps what is written"),
    Register("CHECKED", 0x08, Access.RW, "has a write method"),
    Register("LIVE", 0x0C, Access.RO, "has a read method"),
    Register("KICK", 0x20, Access.WO, "four in a row", 4),
)


class Owner:
    """Handlers of some registers."""

    def __init__(self) -> None:
        self.kicks: list[tuple[int, int]] = []
        self.file = RegisterFile(DECLARED, self)
        self.file["MAGIC"] = 0xCAFE

    def read_live(self, _: int) -> int:
        return -1

    def write_checked(self, _: int, value: int) -> None:
        if value < 10:
            self.file["CHECKED"] = value

    def write_kick(self, index: int, value: int) -> None:
        self.kicks.append((index, value))


@pytest.fixture
def owner() -> Owner:
    return Owner()


def word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def test_a_read_only_register_keeps_its_value(owner: Owner) -> None:
    owner.file.write(0x00, word(1))

    assert owner.file.read(0x00, 4) == word(0xCAFE)


def test_a_writable_register_reads_back(owner: Owner) -> None:
    owner.file.write(0x04, word(0xFFFFFFFF))

    assert owner.file.read(0x04, 4) == word(0xFFFFFFFF)
    assert owner.file["SCRATCH"] == 0xFFFFFFFF


def test_a_write_method_decides_what_is_kept(owner: Owner) -> None:
    owner.file.write(0x08, word(3))
    owner.file.write(0x08, word(30))

    assert owner.file.read(0x08, 4) == word(3)


def test_a_read_method_gives_the_value_cut_to_32_bits(owner: Owner) -> None:
    assert owner.file.read(0x0C, 4) == word(0xFFFFFFFF)


def test_a_write_only_array_tells_the_index_and_reads_zero(owner: Owner) -> None:
    owner.file.write(0x20, word(5))
    owner.file.write(0x2C, word(6))

    assert owner.kicks == [(0, 5), (3, 6)]
    assert owner.file.read(0x2C, 4) == bytes(4)


@pytest.mark.parametrize(("offset", "data"), [(0x20, b"x"), (0x20, bytes(8)), (0x22, bytes(4)), (0x30, bytes(4))])
def test_other_sizes_and_places_write_nothing(owner: Owner, offset: int, data: bytes) -> None:
    owner.file.write(offset, data)

    assert owner.kicks == []
    assert owner.file.read(offset, len(data)) == bytes(len(data))


def test_clear_lets_registers_hold_zero(owner: Owner) -> None:
    owner.file["SCRATCH"] = 1

    owner.file.clear(("SCRATCH", "KICK"))

    assert owner.file["SCRATCH"] == 0
    assert owner.file["MAGIC"] == 0xCAFE


@given(st.integers(0, 0x1000), st.binary(min_size=1, max_size=16))
def test_every_access_is_answered_with_its_length(offset: int, data: bytes) -> None:
    file = Owner().file

    file.write(offset, data)

    assert len(file.read(offset, len(data))) == len(data)
