"""Registers and their bit fields, declared once.

A word that is divided into bit fields is a class::

    class Control(BitFields):
        \"\"\"Bits of CONTROL.\"\"\"

        ENABLE = BitField(0, doc="turns the engine on")
        MODE = BitField(4, 7, doc="how it moves data", values=Mode)
        RESET = BitField(31, access=AccessKind.WO, doc="cancels what is queued")

``Control.MODE`` is a number, the mask of its bits, with attributes such as ``low`` and ``doc``. In a word of the class
it is the field's value: ``Control(0x21).MODE`` is 2, ``Control(MODE=2, ENABLE=1)`` is 0x21.

Registers place such words in a BAR::

    REGISTERS = RegisterMap(
        Register("MAGIC", 0x00, AccessKind.RO, "a constant", reset=0x1234),
        Register("CONTROL", 0x04, AccessKind.RW, "PREFIX_CONTROL_*", holds=Control),
        Register("ADDRESS", 0x08, AccessKind.RW, "where to", width=64),
    )

The declaration is the single source for encoding and decoding, for what an access does (:class:`AccessKind`), for C
constants and documentation (:mod:`wire_layout.register_text`), and for what tests generate
(:mod:`wire_layout.strategies`, which needs hypothesis). A mistake in a declaration raises :class:`ValueError` at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, IntEnum
from itertools import pairwise
from typing import Any, ClassVar, Self, overload

from . import bits

__all__ = ["AccessKind", "BitField", "BitFields", "Register", "RegisterMap"]

WIDTHS = (8, 16, 32, 64)


class AccessKind(Enum):
    """What reads and writes of a register, or of one of its fields, do."""

    RO = "read only; writes are ignored"
    RW = "reads back what was written"
    WO = "reads as 0"
    RW1C = "each 1 that is written clears its bit, each 0 leaves it"
    RW1S = "each 1 that is written sets its bit, each 0 leaves it"
    RES0 = "reserved: reads as 0, writes are ignored"


class BitField(int):
    """Bits ``low`` to ``high`` inclusive, or bit ``low``, of a word: as a number, their mask.

    ``access`` is the register's unless it is given; ``reset`` is the field's value after a reset, and ``values`` is an
    enumeration that names its values.
    """

    name: str
    low: int
    high: int
    access: AccessKind | None
    doc: str
    reset: int
    values: type[IntEnum] | None

    def __new__(
        cls,
        low: int,
        high: int | None = None,
        *,
        access: AccessKind | None = None,
        doc: str = "",
        reset: int = 0,
        values: type[IntEnum] | None = None,
    ) -> Self:
        top = low if high is None else high
        if not 0 <= low <= top:
            raise ValueError(f"a bit field of bits {top}:{low}: the lowest comes first and must not be negative")
        self = super().__new__(cls, bits(low, top))
        self.name, self.low, self.high, self.access = "", low, top, access
        self.doc, self.reset, self.values = doc, reset, values
        for value in (reset, *(values or ())):
            if not 0 <= value <= self.most:
                raise ValueError(f"{value} does not fit a bit field of {self.place}")
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, word: None, owner: type) -> Self: ...
    @overload
    def __get__(self, word: BitFields, owner: type) -> int: ...
    def __get__(self, word: BitFields | None, owner: type) -> int:
        return self if word is None else (word & self) >> self.low

    @property
    def most(self) -> int:
        """The largest value."""
        return int(self) >> self.low

    @property
    def place(self) -> str:
        """Which bits, in words."""
        return f"bit {self.low}" if self.low == self.high else f"bits {self.high}:{self.low}"


class _Body(dict[str, Any]):
    """What a class declares; a bit field may not be declared twice."""

    def __setitem__(self, name: str, value: Any) -> None:
        before = self.get(name)
        if isinstance(before, BitField):
            places = " and ".join(each.place if isinstance(each, BitField) else repr(each) for each in (before, value))
            raise ValueError(f"{self['__qualname__']}: two fields are named {name}: {places}")
        super().__setitem__(name, value)


class _FieldsType(type):
    """Classes of words: iterating over one gives its fields, the lowest first."""

    fields: tuple[BitField, ...]

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **options: Any) -> _Body:
        return _Body()

    def __iter__(cls) -> Iterator[BitField]:
        return iter(cls.fields)


class BitFields(int, metaclass=_FieldsType):
    """A word that is divided into bit fields; see the module text for how to declare one. Bits without a field are
    reserved.

    ``width``, a keyword of the class, is 8, 16, 32 or 64 bits; it is 32 unless it is given.
    """

    fields: ClassVar[tuple[BitField, ...]] = ()
    width: ClassVar[int] = 32

    def __init_subclass__(cls, width: int = 32) -> None:
        super().__init_subclass__()
        if cls.__bases__ != (BitFields,):
            raise ValueError(f"{cls.__name__}: words cannot be derived from {cls.__bases__[0].__name__}")
        if width not in WIDTHS:
            raise ValueError(f"{cls.__name__} of {width} bits: a word has 8, 16, 32 or 64")
        fields = [value for value in vars(cls).values() if isinstance(value, BitField)]
        fields.sort(key=lambda field: field.low)
        for field in fields:
            if hasattr(BitFields, field.name):
                raise ValueError(
                    f"{cls.__name__}: a field cannot be named {field.name}, which is an attribute of all words"
                )
            if field.high >= width:
                raise ValueError(f"{cls.__name__}: {field.name}, {field.place}, is outside its {width} bits")
        for one, other in pairwise(fields):
            if other.low <= one.high:
                text = f"{one.name}, {one.place}, and {other.name}, {other.place}"
                raise ValueError(f"{cls.__name__}: {text}, overlap")
        cls.fields, cls.width = tuple(fields), width

    def __new__(cls, value: int = 0, /, **fields: int) -> Self:
        """``value`` with ``fields`` set in it. Raises :class:`ValueError` for a value that does not fit, and for an
        unknown field.
        """
        if not 0 <= value < 1 << cls.width:
            raise ValueError(f"{value:#x} does not fit the {cls.width} bits of {cls.__name__}")
        named = {field.name: field for field in cls.fields} if fields else {}
        for name, part in fields.items():
            field = named.get(name)
            if field is None:
                raise ValueError(f"{cls.__name__} has no field {name}")
            if not 0 <= part <= field.most:
                raise ValueError(f"{cls.__name__}: {part:#x} does not fit {name}, {field.place}")
            value = value & ~field | part << field.low
        return super().__new__(cls, value)

    def replace(self, **fields: int) -> Self:
        """This word with other values of ``fields``; raises as the constructor does."""
        return type(self)(int(self), **fields)

    def decode(self) -> dict[str, int]:
        """The value of each field by its name; a value that has a name is a member of the field's ``values``."""
        return {field.name: _named(self & field, field) for field in self.fields}

    def __repr__(self) -> str:
        decoded = (f"{name}={value}" for name, value in self.decode().items() if value)
        return f"{type(self).__name__}({', '.join(decoded)})"


def _named(word: int, field: BitField) -> int:
    value = word >> field.low
    return field.values(value) if field.values and value in list(field.values) else value


class Register:
    """One register, or ``count`` of them, ``stride`` bytes apart: byte offset in its BAR, access kind, meaning.

    ``width`` is 8, 16, 32 or 64 bits. ``holds`` is the class of its bit fields, or the enumeration of its values; their
    C constants begin with ``prefix``. ``reset`` is its value after a reset, None if that depends on the device; a
    register with bit fields takes it from them. ``stride`` is the register's size, and ``prefix`` its name, unless they
    are given.
    """

    def __init__(
        self,
        name: str,
        offset: int,
        access: AccessKind,
        doc: str,
        count: int = 1,
        *,
        width: int = 32,
        holds: type[BitFields] | type[IntEnum] | None = None,
        reset: int | None = 0,
        stride: int = 0,
        prefix: str = "",
    ) -> None:
        self.name, self.offset, self.access, self.doc, self.count = name, offset, access, doc, count
        self.width, self.holds, self.reset = width, holds, reset
        if width not in WIDTHS:
            raise ValueError(f"{name} of {width} bits: a register has 8, 16, 32 or 64")
        self.size = width // 8
        """bytes of one register"""
        self.stride, self.prefix = stride or self.size, prefix or name
        if offset < 0 or offset % self.size or self.stride % self.size or self.stride < self.size:
            text = f"{name} at {offset:#x}, {self.stride} bytes apart"
            raise ValueError(f"{text}: both must be multiples of its {self.size} bytes")
        if count < 1:
            raise ValueError(f"{name}: {count} registers")
        self.fields: tuple[BitField, ...] = ()
        """its bit fields, the lowest first; none if it is not divided"""
        values: Iterable[int] = ()
        if holds is not None and issubclass(holds, BitFields):
            self.fields = holds.fields
            if width != holds.width:
                raise ValueError(f"{name} has {width} bits, {holds.__name__} has {holds.width}")
            if reset:
                raise ValueError(f"{name}: {holds.__name__} says what its fields are after a reset")
            if reset is not None:
                self.reset = sum(field.reset << field.low for field in self.fields)
        elif holds is not None:
            values = holds
        for value in (self.reset or 0, *values):
            if not 0 <= value < 1 << width:
                raise ValueError(f"{name}: {int(value):#x} does not fit its {width} bits")

    @property
    def places(self) -> range:
        """The byte offset of each register of an array, in order."""
        return range(self.offset, self.offset + self.stride * self.count, self.stride)

    def mask(self, *kinds: AccessKind) -> int:
        """The bits whose access is one of ``kinds``; bits without a field are :attr:`AccessKind.RES0`."""
        whole = bits(0, self.width - 1)
        if not self.fields:
            return whole if self.access in kinds else 0
        found = sum(field for field in self.fields if (field.access or self.access) in kinds)
        return found | (whole & ~sum(self.fields) if AccessKind.RES0 in kinds else 0)


class RegisterMap(tuple[Register, ...]):
    """The registers of one BAR, in the order of their declaration."""

    by_name: dict[str, Register]

    def __new__(cls, *registers: Register) -> Self:
        """Raises :class:`ValueError` if two registers share a byte or a name."""
        self = super().__new__(cls, registers)
        self.by_name = {}
        for register in registers:
            other = self.by_name.setdefault(register.name, register)
            if other is not register:
                text = f"at {other.offset:#x} and at {register.offset:#x}"
                raise ValueError(f"two registers are named {register.name}, {text}")
        taken = sorted((place, place + each.size, each.name) for each in registers for place in each.places)
        for (one, end, name), (other_place, _, other_name) in pairwise(taken):
            if other_place < end:
                raise ValueError(f"registers {name} at {one:#x} and {other_name} at {other_place:#x} overlap")
        return self

    @property
    def end(self) -> int:
        """The first byte after the last register."""
        return max((each.places[-1] + each.size for each in self), default=0)
