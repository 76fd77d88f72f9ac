"""What tests draw from declarations of registers."""

from __future__ import annotations

import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap
from wire_layout.strategies import accesses, register_values, words


class Gaps(BitFields, width=16):
    """Two fields, reserved bits around them."""

    LOW = BitField(2, 3)
    HIGH = BitField(8, 14)


REGISTERS = RegisterMap(
    Register("WIDE", 0x10, AccessKind.RW, "64 bits", width=64),
    Register("SMALL", 0x20, AccessKind.RW, "8 bits", width=8, count=3),
)


def test_words_have_every_value_of_a_field_and_no_reserved_bits() -> None:
    seen = set()

    @given(words(Gaps))
    def look(word: Gaps) -> None:
        assert word & ~(Gaps.LOW | Gaps.HIGH) == 0
        seen.add(word.LOW)

    look()
    assert seen == {0, 1, 2, 3}


def test_register_values_reach_the_last_bit_and_not_further() -> None:
    wide = REGISTERS.by_name["WIDE"]

    assert find(register_values(wide), lambda value: value >= 1 << 63) == 1 << 63
    with pytest.raises(NoSuchExample):
        find(register_values(wide), lambda value: value >= 1 << 64)


KNOWN = [(0x10, 8), (0x10, 4), (0x14, 4), (0x20, 1), (0x21, 1), (0x22, 1)]


@pytest.mark.parametrize("place", KNOWN)
@pytest.mark.parametrize("is_write", [False, True])
def test_accesses_are_of_registers_and_of_their_halves(place: tuple[int, int], is_write: bool) -> None:
    found = find(
        accesses(REGISTERS),
        lambda access: (access.offset, access.size) == place and (access.data is not None) == is_write,
    )

    assert found.data == (bytes(place[1]) if is_write else None)


def test_some_accesses_are_of_no_register() -> None:
    assert find(accesses(REGISTERS), lambda access: (access.offset, access.size) not in KNOWN)


@given(st.data())
def test_a_write_has_the_bytes_of_its_size(data: st.DataObject) -> None:
    access = data.draw(accesses(REGISTERS))

    assert access.data is None or len(access.data) == access.size
