"""Fixed-size little-endian records, declared once.

A record is a class whose annotated attributes are its fields, in order and without implicit padding::

    class DmaMap(Record):
        \"\"\"Map a range of guest memory.\"\"\"

        argsz: Annotated[int, U32, "size of this structure in bytes"]
        flags: Annotated[int, U32, "1 read, 2 write"]

The declaration is the single source for

* ``Record.unpack`` and ``Record.pack`` (a compiled :class:`struct.Struct`, for the data path and for untrusted bytes),
* ``Record.construct()`` (a construct ``Struct``, for offline decoding and for generating inputs),
* the C header and the documentation of the guest-visible interface.

Programs declare many records and use few, so declaring one is cheap: it becomes a dataclass when its first instance is
made, and construct is imported only when it is needed. Modules of records do not use ``from __future__ import
annotations``: it would make a string of each annotation, to be compiled one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = ["S32", "U8", "U16", "U32", "U64", "Field", "FieldType", "Record", "bits", "run_of_bytes"]


class FieldType(NamedTuple):
    """What a field holds."""

    format: str
    """the :mod:`struct` character, or ``Ns`` for a run of bytes"""
    size: int
    """bytes"""

    def construct(self) -> Any:
        """The same as a construct type."""
        import construct

        return construct.Bytes(self.size) if self.format[-1] == "s" else construct.FormatField("<", self.format)


U8 = FieldType("B", 1)
U16 = FieldType("H", 2)
U32 = FieldType("L", 4)
U64 = FieldType("Q", 8)
S32 = FieldType("l", 4)


def run_of_bytes(size: int) -> FieldType:
    """``size`` bytes, whatever they hold."""
    return FieldType(f"{size}s", size)


class Field(NamedTuple):
    """One field of a record: its place, its type and what it means."""

    name: str
    offset: int
    """bytes from the start of the record"""
    type: FieldType
    doc: str

    @property
    def format(self) -> str:
        """The :mod:`struct` character of this field, or ``Ns`` for a run of bytes."""
        return self.type.format

    @property
    def size(self) -> int:
        """Bytes that this field takes."""
        return self.type.size


@dataclass_transform(frozen_default=True)
class Record:
    """Base of all records. Subclasses are frozen dataclasses; see the module text for how to declare one."""

    STRUCT: ClassVar[struct.Struct]
    SIZE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__bases__ != (Record,):
            raise TypeError(f"{cls.__name__}: a record cannot be derived from another one")
        hints: dict[str, Any] = cls.__annotations__
        if any(isinstance(hint, str) for hint in hints.values()):
            hints = get_type_hints(cls, include_extras=True)
        fields: list[Field] = []
        offset = 0
        for name, hint in hints.items():
            if get_origin(hint) is not Annotated:
                continue
            _, field_type, doc = get_args(hint)
            fields.append(Field(name, offset, field_type, doc))
            offset += field_type.size
        cls.FIELDS = tuple(fields)
        cls.STRUCT = struct.Struct("<" + "".join(field.format for field in fields))
        cls.SIZE = cls.STRUCT.size

    def __init__(self, *values: Any, **named: Any) -> None:
        """Make the first record of a class. The class becomes a dataclass by this, with a constructor of its own."""
        kind = type(self)
        dataclass(frozen=True)(kind)
        kind.unpack = classmethod(_unpacker(kind))  # type: ignore[method-assign, assignment]
        kind.pack = _packer(kind)  # type: ignore[method-assign, assignment]
        kind.__init__(self, *values, **named)

    @classmethod
    def unpack(cls, buffer: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Decode the record at ``offset`` bytes of ``buffer``; bytes after it are ignored.

        Raises :class:`struct.error` if fewer than ``SIZE`` bytes are there.
        """
        return cls(*cls.STRUCT.unpack_from(buffer, offset))

    def pack(self) -> bytes:
        """The ``SIZE`` bytes of this record. Raises :class:`struct.error` if a value does not fit its field."""
        return self.STRUCT.pack(*(getattr(self, field.name) for field in self.FIELDS))

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Bytes from the start of the record to field ``name``; :class:`KeyError` if there is none."""
        return cls.field_named(name).offset

    @classmethod
    def field_named(cls, name: str) -> Field:
        """Field ``name``; :class:`KeyError` if there is none."""
        for field in cls.FIELDS:
            if field.name == name:
                return field
        raise KeyError(f"{cls.__name__} has no field {name!r}")

    @classmethod
    def construct(cls) -> Any:
        """The same layout as a construct ``Struct``: slow, but it decodes with names and builds from dictionaries."""
        import construct

        return construct.Struct(*(field.name / field.type.construct() for field in cls.FIELDS))


def _unpacker(kind: type[Record]) -> Callable[..., Record]:
    """:meth:`Record.unpack` of one class, in half the time: the constructor of a frozen dataclass calls a function for
    each field, and every message is unpacked.
    """
    targets = ", ".join(f"values[{field.name!r}]" for field in kind.FIELDS)
    text = f"""\
def unpack(cls, buffer, offset=0):
    record = new(cls)
    values = record.__dict__
    ({targets},) = unpack_from(buffer, offset)
    return record
"""
    names: dict[str, Any] = {"new": object.__new__, "unpack_from": kind.STRUCT.unpack_from}
    exec(text, names)
    made: Callable[..., Record] = names["unpack"]
    made.__doc__ = Record.unpack.__doc__
    return made


def _packer(kind: type[Record]) -> Callable[[Record], bytes]:
    """:meth:`Record.pack` of one class, in a third of the time."""
    values = ", ".join(f"self.{field.name}" for field in kind.FIELDS)
    names: dict[str, Any] = {"pack_fields": kind.STRUCT.pack}
    exec(f"def pack(self):\n    return pack_fields({values})\n", names)
    made: Callable[[Record], bytes] = names["pack"]
    made.__doc__ = Record.pack.__doc__
    return made


def bits(low: int, high: int | None = None) -> int:
    """The mask of bit ``low``, or of bits ``low`` to ``high`` inclusive."""
    return (1 << ((low if high is None else high) + 1)) - (1 << low)
