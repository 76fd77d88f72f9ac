"""Registers and bit fields: words by their fields, and mistakes that are refused where they are made."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu_abi import dma_test, registers
from wire_layout import registers as declarations
from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap
from wire_layout.strategies import words


class Mode(IntEnum):
    """How fast."""

    SLOW = 1
    FAST = 2


class Sample(BitFields):
    """Fields of one bit and of several, one of them up to the end."""

    MODE = BitField(4, 7, doc="how fast", values=Mode, reset=Mode.SLOW)
    ENABLE = BitField(0, doc="on", access=AccessKind.RW1S)
    TOP = BitField(20, 31)


class Wide(BitFields, width=64):
    """A field across the middle."""

    ADDRESS = BitField(12, 51)


DECLARED = [Sample, Wide, registers.Feature, registers.Status, registers.RingControl, dma_test.Control]


def test_a_field_is_the_mask_of_its_bits() -> None:
    assert (Sample.ENABLE, Sample.MODE, Sample.TOP) == (0x1, 0xF0, 0xFFF00000)
    assert Sample.MODE | Sample.ENABLE == 0xF1
    assert (Sample.MODE.name, Sample.MODE.low, Sample.MODE.high, Sample.MODE.most) == ("MODE", 4, 7, 15)


def test_in_a_word_it_is_its_value() -> None:
    word = Sample(0xABC00021)

    assert (word.ENABLE, word.MODE, word.TOP) == (1, 2, 0xABC)
    assert Wide(0xFFF8_1234_5678_9FFF).ADDRESS == 0x8_1234_5678_9


def test_a_word_is_made_of_fields() -> None:
    assert Sample(MODE=Mode.FAST, ENABLE=1) == 0x21
    assert Sample(0xFFFFFFFF, MODE=0) == 0xFFFFFF0F
    assert Sample(0x21).replace(TOP=1, MODE=0) == 0x100001


def test_decoding_names_fields_and_values() -> None:
    assert Sample(0x21).decode() == {"ENABLE": 1, "MODE": Mode.FAST, "TOP": 0}
    assert isinstance(Sample(0x21).decode()["MODE"], Mode)
    assert Sample(0xF0).decode()["MODE"] == 15
    assert repr(Sample(0x31)) == "Sample(ENABLE=1, MODE=3)"


def test_iterating_over_a_class_of_words_gives_its_fields_from_the_lowest() -> None:
    assert [field.name for field in Sample] == ["ENABLE", "MODE", "TOP"]


@pytest.mark.parametrize("declared", DECLARED)
@given(data=st.data())
def test_every_word_is_its_fields(declared: type[BitFields], data: st.DataObject) -> None:
    word = data.draw(words(declared))

    assert declared(0, **word.decode()) == word
    assert word & ~sum(declared.fields) == 0
    assert {name: getattr(word, name) for name in word.decode()} == word.decode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample(MODE=16), "Sample: 0x10 does not fit MODE, bits 7:4"),
        (lambda: Sample(ENABLE=-1), "Sample: -0x1 does not fit ENABLE, bit 0"),
        (lambda: Sample(COLOUR=1), "Sample has no field COLOUR"),
        (lambda: Sample(1 << 32), "0x100000000 does not fit the 32 bits of Sample"),
        (lambda: Sample(0).replace(TOP=0x1000), "Sample: 0x1000 does not fit TOP, bits 31:20"),
    ],
)
def test_what_does_not_fit_a_word_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()

    assert str(caught.value) == message


def overlapping() -> None:
    class Bad(BitFields):
        ONE = BitField(4, 7)
        OTHER = BitField(7)


def outside() -> None:
    class Bad(BitFields, width=16):
        ONE = BitField(8, 16)


def twice() -> None:
    class Bad(BitFields):
        ONE = BitField(0)
        ONE = BitField(3, 4)  # noqa: PIE794


def odd() -> None:
    class Bad(BitFields, width=24):
        ONE = BitField(0)


def derived() -> None:
    class Bad(Sample):
        MORE = BitField(1)


def taken() -> None:
    class Bad(BitFields):
        decode = BitField(1)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (overlapping, "Bad: ONE, bits 7:4, and OTHER, bit 7, overlap"),
        (outside, "Bad: ONE, bits 16:8, is outside its 16 bits"),
        (twice, "twice.<locals>.Bad: two fields are named ONE: bit 0 and bits 4:3"),
        (odd, "Bad of 24 bits: a word has 8, 16, 32 or 64"),
        (derived, "Bad: words cannot be derived from Sample"),
        (taken, "Bad: a field cannot be named decode, which is an attribute of all words"),
        (lambda: BitField(7, 4), "a bit field of bits 4:7: the lowest comes first and must not be negative"),
        (lambda: BitField(0, 1, reset=4), "4 does not fit a bit field of bits 1:0"),
        (lambda: BitField(3, values=Mode), "2 does not fit a bit field of bit 3"),
    ],
)
def test_a_mistake_in_a_word_is_refused_where_it_is_declared(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        declare()

    assert str(caught.value) == message


def register(name: str, offset: int, **more: object) -> Register:
    return Register(name, offset, AccessKind.RW, "a register", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            lambda: RegisterMap(register("A", 0, width=64), register("B", 4)),
            "registers A at 0x0 and B at 0x4 overlap",
        ),
        (
            lambda: RegisterMap(register("B", 0x18), register("A", 0x10, count=3)),
            "registers A at 0x18 and B at 0x18 overlap",
        ),
        (
            lambda: RegisterMap(register("A", 0, count=2, stride=8), register("B", 4), register("C", 8)),
            "registers A at 0x8 and C at 0x8 overlap",
        ),
        (
            lambda: RegisterMap(register("A", 0), register("A", 4)),
            "two registers are named A, at 0x0 and at 0x4",
        ),
        (
            lambda: register("A", 4, width=64),
            "A at 0x4, 8 bytes apart: both must be multiples of its 8 bytes",
        ),
        (
            lambda: register("A", 4, count=2, stride=6),
            "A at 0x4, 6 bytes apart: both must be multiples of its 4 bytes",
        ),
        (lambda: register("A", 0, width=24), "A of 24 bits: a register has 8, 16, 32 or 64"),
        (lambda: register("A", 0, count=0), "A: 0 registers"),
        (lambda: register("A", 0, width=8, reset=256), "A: 0x100 does not fit its 8 bits"),
        (lambda: register("A", 0, holds=Wide), "A has 32 bits, Wide has 64"),
        (lambda: register("A", 0, holds=Sample, reset=1), "A: Sample says what its fields are after a reset"),
    ],
)
def test_a_mistake_in_a_register_is_refused_where_it_is_declared(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        declare()

    assert str(caught.value) == message


def test_arrays_may_lie_between_each_other() -> None:
    pairs = RegisterMap(register("TAIL", 0x10, count=4, stride=8), register("HEAD", 0x14, count=4, stride=8))

    assert list(pairs.by_name["HEAD"].places) == [0x14, 0x1C, 0x24, 0x2C]
    assert pairs.end == 0x30


def test_a_register_knows_which_of_its_bits_are_of_which_kind() -> None:
    control = register("CONTROL", 0, holds=Sample)

    assert control.mask(AccessKind.RW) == Sample.MODE | Sample.TOP
    assert control.mask(AccessKind.RW1S) == Sample.ENABLE
    assert control.mask(AccessKind.RES0) == 0x000FFF0E
    assert control.mask(*AccessKind) == 0xFFFFFFFF
    assert register("PLAIN", 0, width=16).mask(AccessKind.RW) == 0xFFFF
    assert register("PLAIN", 0, width=16).mask(AccessKind.RO, AccessKind.RES0) == 0


def test_its_value_after_a_reset_is_that_of_its_fields() -> None:
    assert register("CONTROL", 0, holds=Sample).reset == Mode.SLOW << 4
    assert register("CONTROL", 0, holds=Sample, reset=None).reset is None
    assert register("PLAIN", 0, reset=7).reset == 7


def test_the_example_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "add-an-endpoint.md").read_text(encoding="utf-8")
    lines = page.split("    class Control(BitFields):\n")[1].split("\nAll of it is imported from")[0]
    names = dict(vars(declarations)) | {"Mode": Mode}

    exec(textwrap.dedent(f"    class Control(BitFields):\n{lines}"), names)

    control = names["REGISTERS"].by_name["CONTROL"]
    assert control.mask(AccessKind.RES0) == 0x7FFFFF0E
    assert [register.size for register in names["REGISTERS"]] == [4, 4, 8, 2, 4]


def test_declaring_needs_nothing_of_this_project_and_no_hypothesis() -> None:
    program = (
        "import sys, wire_layout.registers, wire_layout.register_text;"
        "sys.exit(any(name.split('.')[0] in ('hypothesis', 'construct', 'pviommu', 'pviommu_abi', 'vfio_user')"
        " for name in sys.modules))"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
