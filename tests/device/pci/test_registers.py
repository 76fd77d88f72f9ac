"""Register files: kinds of access, widths, and handlers found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.pci.registers import RegisterFile, check_handlers
from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap
from wire_layout.strategies import RegisterAccess, accesses

DECLARED = (
    Register("MAGIC", 0x00, AccessKind.RO, "a constant"),
    Register("SCRATCH", 0x04, AccessKind.RW, "keeps what is written"),
    Register("CHECKED", 0x08, AccessKind.RW, "has an accept method"),
    Register("LIVE", 0x0C, AccessKind.RO, "has a read method"),
    Register("KICK", 0x20, AccessKind.WO, "four in a row", 4),
)


class Owner:
    """Handlers of some registers."""

    def __init__(self) -> None:
        self.kicks: list[tuple[int, int]] = []
        self.file = RegisterFile(DECLARED, self)
        self.file["MAGIC"] = 0xCAFE

    def read_live(self, _: int) -> int:
        return -1

    def accept_checked(self, _: int, value: int) -> bool:
        return value < 10

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


def test_an_accept_method_decides_what_is_kept(owner: Owner) -> None:
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

    owner.file.reset("SCRATCH", "KICK")

    assert owner.file["SCRATCH"] == 0
    assert owner.file["MAGIC"] == 0xCAFE


@given(st.integers(0, 0x1000), st.binary(min_size=1, max_size=16))
def test_every_access_is_answered_with_its_length(offset: int, data: bytes) -> None:
    file = Owner().file

    file.write(offset, data)

    assert len(file.read(offset, len(data))) == len(data)


class Every(BitFields, width=64):
    """A field of each kind in each half, with gaps."""

    STATE = BitField(0, 7, access=AccessKind.RO, reset=0x5A)
    MODE = BitField(8, 11, reset=3)
    KICK = BitField(12, access=AccessKind.WO)
    ERRORS = BitField(16, 23, access=AccessKind.RW1C, reset=0xFF)
    ENABLED = BitField(24, 27, access=AccessKind.RW1S)
    ADDRESS = BitField(30, 40)
    PENDING = BitField(44, 50, access=AccessKind.RW1C, reset=0x7F)
    ARMED = BitField(52, 63, access=AccessKind.RW1S, reset=0x800)


WIDE = RegisterMap(
    Register("BYTE", 0x00, AccessKind.RW, "8 bits"),
    Register("EVERY", 0x08, AccessKind.RW, "all kinds", width=64, holds=Every, count=2),
    Register("HALF", 0x18, AccessKind.RW1C, "16 bits", width=16, reset=0xFFFF, count=3, stride=4),
    Register("SMALL", 0x24, AccessKind.RW1S, "8 bits", width=8),
    Register("SECRET", 0x28, AccessKind.WO, "64 bits", width=64),
    Register("NOTHING", 0x30, AccessKind.RES0, "reserved"),
)


class Silent:
    """Handlers of nothing."""


class Model:
    """The bits of registers, one by one, as :class:`AccessKind` describes them."""

    def __init__(self, registers: RegisterMap) -> None:
        self.kind: dict[tuple[int, int], AccessKind] = {}
        self.bit: dict[tuple[int, int], int] = {}
        self.known: set[tuple[int, int]] = set()
        for register in registers:
            for place in register.places:
                self.known.add((place, register.size))
                if register.size == 8:
                    self.known |= {(place, 4), (place + 4, 4)}
                for bit in range(register.width):
                    at = (place + bit // 8, bit % 8)
                    inside = [field for field in register.fields if field.low <= bit <= field.high]
                    kind = (inside[0].access or register.access) if inside else AccessKind.RES0
                    self.kind[at] = kind if register.fields else register.access
                    self.bit[at] = (register.reset or 0) >> bit & 1

    def read(self, offset: int, size: int) -> bytes:
        if (offset, size) not in self.known:
            return bytes(size)
        hidden = (AccessKind.WO, AccessKind.RES0)
        return bytes(
            sum(self.bit[place, bit] << bit for bit in range(8) if self.kind[place, bit] not in hidden)
            for place in range(offset, offset + size)
        )

    def write(self, offset: int, data: bytes) -> None:
        if (offset, len(data)) not in self.known:
            return
        for place, byte in enumerate(data, offset):
            for bit in range(8):
                written = byte >> bit & 1
                match self.kind[place, bit]:
                    case AccessKind.RW | AccessKind.WO:
                        self.bit[place, bit] = written
                    case AccessKind.RW1C:
                        self.bit[place, bit] &= ~written
                    case AccessKind.RW1S:
                        self.bit[place, bit] |= written


@pytest.mark.parametrize("registers", [WIDE, RegisterMap(*DECLARED)], ids=["wide", "32 bits"])
@given(data=st.data())
def test_each_bit_does_what_its_access_kind_says(registers: RegisterMap, data: st.DataObject) -> None:
    file, model = RegisterFile(registers, Silent()), Model(registers)

    history: list[RegisterAccess] = data.draw(st.lists(accesses(registers), max_size=30))
    for access in history:
        if access.data is not None:
            file.write(access.offset, access.data)
            model.write(access.offset, access.data)
        assert file.read(access.offset, access.size) == model.read(access.offset, access.size)
    for offset, size in model.known:
        assert file.read(offset, size) == model.read(offset, size)


@pytest.mark.parametrize(("offset", "size"), [(0x08, 8), (0x08, 4), (0x0C, 4), (0x18, 2), (0x20, 2), (0x24, 1)])
def test_a_register_is_written_at_its_own_size_and_one_of_64_bits_by_halves(offset: int, size: int) -> None:
    file = RegisterFile(WIDE, Silent())
    before = file.read(offset, size)

    file.write(offset, b"\xff" * size)

    assert file.read(offset, size) != before


@pytest.mark.parametrize(
    ("offset", "size"), [(0x08, 2), (0x0A, 4), (0x0E, 8), (0x10, 16), (0x18, 4), (0x1A, 2), (0x24, 2), (0x00, 8)]
)
def test_other_sizes_read_zero_and_write_nothing(offset: int, size: int) -> None:
    file = RegisterFile(WIDE, Silent())
    before = [file.read(place, each.size) for each in WIDE for place in each.places]

    file.write(offset, b"\xff" * size)

    assert file.read(offset, size) == bytes(size)
    assert [file.read(place, each.size) for each in WIDE for place in each.places] == before


class Told:
    """Writes down what its handlers are told, and what the file held then."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int, int]] = []
        self.file = RegisterFile(WIDE, self)

    def accept_every(self, index: int, value: int) -> bool:
        self.told.append(("accept", index, value, self.file["EVERY"]))
        return value >> 56 != 0xEE

    def write_every(self, index: int, value: int) -> None:
        self.told.append(("write", index, value, self.file["EVERY"]))

    def read_half(self, index: int) -> int:
        return 0x1_0000 + index

    def write_secret(self, index: int, value: int) -> None:
        self.told.append(("secret", index, value, 0))


def test_handlers_get_what_was_written_and_the_file_holds_the_outcome_when_the_write_method_is_told() -> None:
    owner = Told()
    reset = owner.file["EVERY"]

    owner.file.write(0x08, b"\xff" * 8)

    every = (1 << 64) - 1
    held = Every(STATE=0x5A, MODE=0xF, KICK=1, ENABLED=0xF, ADDRESS=0x7FF, ARMED=0xFFF)
    assert owner.told == [("accept", 0, every, reset), ("write", 0, every, held)]


def test_a_write_of_one_half_comes_with_what_the_other_holds() -> None:
    owner = Told()

    owner.file.write(0x28, word(0x11223344))
    owner.file.write(0x2C, word(0x55667788))

    assert [value for _, _, value, _ in owner.told] == [0x11223344, 0x5566778811223344]
    assert owner.file.read(0x28, 8) == bytes(8)


def test_ones_of_the_half_that_is_not_written_are_not_written() -> None:
    owner = Told()

    owner.file.write(0x08, word(0))

    assert [value for _, _, value, _ in owner.told] == [0, 0]
    assert owner.file.read(0x0C, 4) == word((0x7F << 44 | 0x800 << 52) >> 32)


def test_what_is_not_accepted_changes_nothing_and_is_not_told() -> None:
    owner = Told()
    before = owner.file.read(0x10, 8)

    owner.file.write(0x10, bytes(7) + b"\xee")

    assert [(kind, index) for kind, index, _, _ in owner.told] == [("accept", 1)]
    assert owner.file.read(0x10, 8) == before


def test_a_read_method_of_an_array_is_told_which_and_is_cut_to_the_width() -> None:
    assert Told().file.read(0x20, 2) == (2).to_bytes(2, "little")


def test_a_reset_brings_back_what_was_declared_or_sealed() -> None:
    file = RegisterFile(WIDE, Silent())
    declared = file["EVERY"]
    file["BYTE"] = 7
    file.seal()
    for place in (0x00, 0x18, 0x1C):
        file.write(place, b"\xff" * (4 if place == 0 else 2))
    file.write(0x08, bytes(8))

    file.reset()

    assert (file["BYTE"], file["EVERY"], file.read(0x1C, 2)) == (7, declared, b"\xff\xff")


def test_a_reset_of_some_leaves_the_others() -> None:
    file = RegisterFile(WIDE, Silent())
    file.write(0x00, word(5))
    file.write(0x24, b"\x05")

    file.reset("SMALL")

    assert (file["BYTE"], file["SMALL"]) == (5, 0)


def test_registers_that_overlap_are_refused_by_a_file_too() -> None:
    with pytest.raises(ValueError, match="registers A at 0x0 and B at 0x0 overlap"):
        RegisterFile((Register("A", 0, AccessKind.RW, "one"), Register("B", 0, AccessKind.RW, "another")), Silent())


def handlers(name: str) -> Any:
    """An object with one method."""
    return type("Misspelt", (), {name: lambda *_: None})()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("write_scrach", "Misspelt.write_scrach fits no register; the nearest name that does is write_scratch"),
        ("read_lives", "Misspelt.read_lives fits no register; the nearest name that does is read_live"),
        ("accept_check", "Misspelt.accept_check fits no register; the nearest name that does is accept_checked"),
        ("write_magic", "Misspelt.write_magic would never be called: by its access kind, its register is not written"),
        ("accept_live", "Misspelt.accept_live would never be called: by its access kind, its register is not written"),
        ("read_kick", "Misspelt.read_kick would never be called: by its access kind, its register is not read"),
    ],
)
def test_a_handler_that_would_never_be_called_is_refused(name: str, message: str) -> None:
    file = RegisterFile(DECLARED, handlers(name))

    with pytest.raises(ValueError) as caught:
        check_handlers([file])

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["write_scratch", "_write_scrach", "written", "ready", "accepted_scratch"])
def test_handlers_of_registers_and_other_names_are_not(name: str) -> None:
    check_handlers([RegisterFile(DECLARED, handlers(name))])


def test_an_object_may_handle_registers_of_several_files() -> None:
    both: Callable[..., Any] = lambda *_: None  # noqa: E731
    owner = type("Two", (), {"read_live": both, "write_every": both})()

    check_handlers([RegisterFile(DECLARED, owner), RegisterFile(WIDE, owner)])

    with pytest.raises(ValueError, match=r"Two\.write_every fits no register"):
        check_handlers([RegisterFile(DECLARED, owner)])


def test_what_was_saved_is_held_again(owner: Owner) -> None:
    state = owner.file.save()
    owner.file["SCRATCH"] = 5
    changed = owner.file.save()

    owner.file.load(state)
    assert owner.file.save() == state
    owner.file.load(changed)

    assert owner.file["SCRATCH"] == 5


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"OTHER": (0,)}, "register OTHER: it is not on both sides"),
        ({"SCRATCH": (1 << 32,)}, "register SCRATCH cannot hold"),
        ({"SCRATCH": (-1,)}, "register SCRATCH cannot hold"),
        ({"SCRATCH": (1, 2)}, "register SCRATCH cannot hold"),
    ],
)
def test_what_other_registers_held_is_not_loaded(owner: Owner, changes: dict[str, tuple[int, ...]], text: str) -> None:
    state = owner.file.save()

    with pytest.raises(ValueError, match=text):
        owner.file.load(state | {"SCRATCH": (4,)} | changes)

    assert owner.file.save() == state
