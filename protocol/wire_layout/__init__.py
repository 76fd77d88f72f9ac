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
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, dataclass_transform, get_args, get_origin, get_type_hints

import construct

__all__ = ["S32", "U8", "U16", "U32", "U64", "Field", "Record", "bits"]

U8 = construct.Int8ul
U16 = construct.Int16ul
U32 = construct.Int32ul
U64 = construct.Int64ul
S32 = construct.Int32sl


@dataclass(frozen=True)
class Field:
    """One field of a record: its place, its construct type and what it means."""

    name: str
    offset: int
    """bytes from the start of the record"""
    subcon: Any
    doc: str

    @property
    def format(self) -> str:
        """The :mod:`struct` character of this field, or ``Ns`` for a run of bytes."""
        if isinstance(self.subcon, construct.FormatField):
            return str(self.subcon.fmtstr)[-1]
        return f"{self.subcon.sizeof()}s"

    @property
    def size(self) -> int:
        """Bytes that this field takes."""
        return int(self.subcon.sizeof())


@dataclass_transform(frozen_default=True)
class Record:
    """Base of all records. Subclasses are frozen dataclasses; see the module text for how to declare one."""

    STRUCT: ClassVar[struct.Struct]
    SIZE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True)(cls)
        fields: list[Field] = []
        offset = 0
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                continue
            _, subcon, doc = get_args(hint)
            fields.append(Field(name, offset, subcon, doc))
            offset += fields[-1].size
        cls.FIELDS = tuple(fields)
        cls.STRUCT = struct.Struct("<" + "".join(field.format for field in fields))
        cls.SIZE = cls.STRUCT.size

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
        for field in cls.FIELDS:
            if field.name == name:
                return field.offset
        raise KeyError(f"{cls.__name__} has no field {name!r}")

    @classmethod
    def construct(cls) -> Any:
        """The same layout as a construct ``Struct``: slow, but it decodes with names and builds from dictionaries."""
        return construct.Struct(*(field.name / field.subcon for field in cls.FIELDS))


def bits(low: int, high: int | None = None) -> int:
    """The mask of bit ``low``, or of bits ``low`` to ``high`` inclusive."""
    return (1 << ((low if high is None else high) + 1)) - (1 << low)
