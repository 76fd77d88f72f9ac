"""Registers as C constants and as documentation."""

from __future__ import annotations

from enum import IntEnum

from wire_layout.register_text import CConstant, bit_diagram, c_constants, field_rows, member_docs, register_rows
from wire_layout.registers import AccessKind, BitField, BitFields, Register


class Mode(IntEnum):
    """How fast."""

    SLOW = 0
    """as it comes"""
    FAST = 1


class Control(BitFields):
    """Bits of CONTROL."""

    ENABLE = BitField(0, doc="turns it on")
    MODE = BitField(4, 5, doc="how fast", values=Mode, reset=Mode.FAST)
    SPARE = BitField(8, 11, access=AccessKind.RES0)
    DONE = BitField(31, access=AccessKind.RW1C)


class Wide(BitFields, width=64):
    """A field of each half."""

    LOW = BitField(0)
    HIGH = BitField(32, 63)


CONTROL = Register("CONTROL", 0x10, AccessKind.RW, "what it does", holds=Control)


def test_fields_become_masks_shifts_and_values() -> None:
    assert list(c_constants("X_CONTROL", Control)) == [
        CConstant("X_CONTROL_ENABLE", "0x1", "turns it on"),
        CConstant("X_CONTROL_MODE_MASK", "0x30", "how fast"),
        CConstant("X_CONTROL_MODE_SHIFT", "4", ""),
        CConstant("X_CONTROL_MODE_SLOW", "0", "as it comes"),
        CConstant("X_CONTROL_MODE_FAST", "1", ""),
        CConstant("X_CONTROL_DONE", "0x80000000", ""),
    ]


def test_constants_of_64_bits_say_so() -> None:
    assert [constant.value for constant in c_constants("X", Wide)] == ["0x1ULL", "0xffffffff00000000ULL", "32"]


def test_a_register_of_named_values_becomes_these() -> None:
    assert list(c_constants("X_MODE", Mode)) == [
        CConstant("X_MODE_SLOW", "0", "as it comes"),
        CConstant("X_MODE_FAST", "1", ""),
    ]


def test_the_diagram_has_the_highest_bit_first() -> None:
    assert bit_diagram(CONTROL) == [
        "   31    30:12    11:8   7:6    5:4    3:1      0",
        "+------+-------+-------+------+------+------+--------+",
        "| DONE |   0   | SPARE |  0   | MODE |  0   | ENABLE |",
        "+------+-------+-------+------+------+------+--------+",
        "  RW1C    RES0    RES0   RES0    RW    RES0     RW",
    ]


def test_a_register_without_fields_is_one_box() -> None:
    assert bit_diagram(Register("SEED", 0, AccessKind.RW, "a number", width=16)) == [
        "  15:0",
        "+------+",
        "| SEED |",
        "+------+",
        "   RW",
    ]


def test_a_wide_diagram_goes_on_in_another_row() -> None:
    fields = {f"FIELD_WITH_A_LONG_NAME_{bit}": BitField(bit) for bit in range(8)}
    many = type("Many", (BitFields,), fields, width=8)

    lines = bit_diagram(Register("MANY", 0, AccessKind.RW, "eight", width=8, holds=many))

    assert max(map(len, lines)) <= 100
    assert len(lines) == 15
    names = [name.strip() for line in lines if line.startswith("|") for name in line.strip("|").split("|")]
    assert names == [f"FIELD_WITH_A_LONG_NAME_{bit}" for bit in reversed(range(8))]


def test_rows_tell_what_is_read_after_a_reset_unless_the_declaration_cannot() -> None:
    registers = (
        CONTROL,
        Register("COUNT", 0x14, AccessKind.RO, "how many", reset=None),
        Register("BELL", 0x18, AccessKind.WO, "ring", count=4, width=16),
    )

    assert list(register_rows(registers)) == [
        ("0x010", "RW", "`CONTROL`", "32", "0x10", "what it does"),
        ("0x014", "RO", "`COUNT`", "32", "", "how many"),
        ("0x018", "WO", "`BELL`", "4 of 16", "", "ring"),
    ]
    assert [row[:5] for row in field_rows("X_CONTROL", CONTROL)][1:] == [
        ("`X_CONTROL_MODE_MASK`", "5:4", "0x30", "RW", "0x1"),
        ("`X_CONTROL_SPARE_MASK`", "11:8", "0xf00", "RES0", "0x0"),
        ("`X_CONTROL_DONE`", "31", "0x80000000", "RW1C", "0x0"),
    ]


def test_member_docs_are_those_below_the_members() -> None:
    assert member_docs(Mode) == {"SLOW": "as it comes"}
