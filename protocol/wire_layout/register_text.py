"""Registers in C and in documentation: constants, and diagrams and tables in Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, IntEnum
from typing import NamedTuple

from .registers import AccessKind, BitField, BitFields, Register

__all__ = ["CConstant", "bit_diagram", "c_constants", "field_rows", "member_docs", "register_rows"]

DIAGRAM_COLUMNS = 100


class CConstant(NamedTuple):
    """One constant of a C header."""

    name: str
    value: str
    doc: str


def member_docs(enum: type[Enum]) -> dict[str, str]:
    """The string literal below each member of ``enum``, by member name; members without one are left out."""
    docs: dict[str, str] = {}
    last = ""
    for line in inspect.getsource(enum).splitlines()[1:]:
        text = line.strip()
        if text.startswith('"""') and text.endswith('"""') and last in enum.__members__:
            docs[last] = text.strip('"')
        last = text.split(" = ")[0]
    return docs


def c_constants(prefix: str, holds: type[BitFields] | type[IntEnum]) -> Iterator[CConstant]:
    """The C constants of bit fields or of named values; all names begin with ``prefix``.

    A field of one bit gives the mask, under its own name. A wider one gives ``_MASK`` and ``_SHIFT``, and its named
    values, which are not shifted. Constants of a 64-bit word are unsigned long long, so that their complement has 64
    bits too.
    """
    if issubclass(holds, IntEnum):
        yield from _values(prefix, holds)
        return
    suffix = "ULL" if holds.width == 64 else ""
    for field in holds.fields:
        name, mask = f"{prefix}_{field.name}", f"{int(field):#x}{suffix}"
        if field.access is AccessKind.RES0:
            continue
        if field.low == field.high:
            yield CConstant(name, mask, field.doc)
            continue
        yield CConstant(f"{name}_MASK", mask, field.doc)
        yield CConstant(f"{name}_SHIFT", str(field.low), "")
        if field.values is not None:
            yield from _values(name, field.values)


def _values(prefix: str, values: type[IntEnum]) -> Iterator[CConstant]:
    docs = member_docs(values)
    for member in values:
        yield CConstant(f"{prefix}_{member.name}", str(int(member)), docs.get(member.name, ""))


def register_rows(registers: Iterable[Register]) -> Iterator[tuple[str, ...]]:
    """Cells for each register: offset, access, name, bits, value after a reset, meaning."""
    for register in registers:
        width = str(register.width) if register.count == 1 else f"{register.count} of {register.width}"
        reset = _reset(register, register.access, register.reset or 0)
        yield f"{register.offset:#05x}", register.access.name, f"`{register.name}`", width, reset, register.doc


def field_rows(prefix: str, register: Register) -> Iterator[tuple[str, ...]]:
    """Cells for each field of a register: C constant of its mask, bits, mask, access, value after a reset, meaning."""
    for field in register.fields:
        name = f"{prefix}_{field.name}" if field.low == field.high else f"{prefix}_{field.name}_MASK"
        access = field.access or register.access
        reset = _reset(register, access, field.reset)
        yield f"`{name}`", _span(field.high, field.low), f"{int(field):#x}", access.name, reset, field.doc


def _reset(register: Register, access: AccessKind, value: int) -> str:
    """What is read after a reset, if the declaration says so."""
    return "" if register.reset is None or access is AccessKind.WO else f"{value:#x}"


def bit_diagram(register: Register) -> list[str]:
    """The fields of a register as boxes, the highest bit first, with bit numbers above and access kinds below.

    A diagram wider than 100 columns continues in a second row.
    """
    lines: list[str] = []
    for row in _rows(list(_boxes(register))):
        rule = "+" + "+".join("-" * len(box.name) for box in row) + "+"
        lines += [
            " " + " ".join(box.bits for box in row),
            rule,
            "|" + "|".join(box.name for box in row) + "|",
            rule,
            " " + " ".join(box.access for box in row),
        ]
    return [line.rstrip() for line in lines]


class _Box(NamedTuple):
    """Three cells of one width."""

    bits: str
    name: str
    access: str


def _box(high: int, low: int, name: str, access: AccessKind) -> _Box:
    cells = (_span(high, low), name, access.name)
    width = max(map(len, cells)) + 2
    return _Box(*(cell.center(width) for cell in cells))


def _boxes(register: Register) -> Iterator[_Box]:
    top = register.width - 1
    fields: Sequence[BitField] = register.fields
    for field in reversed(fields):
        if field.high < top:
            yield _box(top, field.high + 1, "0", AccessKind.RES0)
        yield _box(field.high, field.low, field.name, field.access or register.access)
        top = field.low - 1
    if top >= 0:
        yield _box(top, 0, "0", AccessKind.RES0) if fields else _box(top, 0, register.name, register.access)


def _rows(boxes: list[_Box]) -> Iterator[list[_Box]]:
    row: list[_Box] = []
    for box in boxes:
        if row and sum(len(each.name) + 1 for each in [*row, box]) + 1 > DIAGRAM_COLUMNS:
            yield row
            row = []
        row.append(box)
    yield row


def _span(high: int, low: int) -> str:
    return str(low) if high == low else f"{high}:{low}"
