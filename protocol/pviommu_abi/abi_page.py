"""The ABI page of the documentation, made from the declarations of :mod:`pviommu_abi.interface`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

from wire_layout import Record
from wire_layout.register_text import CConstant, bit_diagram, c_constants, field_rows, register_rows
from wire_layout.registers import AccessKind, Register

from .c_header import c_type, enum_constants
from .interface import INTERFACES, Section


def _plain(text: str) -> str:
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _record(prefix: str, name: str, record: type[Record]) -> list[str]:
    rows = [(str(f.offset), str(f.size), c_type(f), f"`{f.name}`", _plain(f.doc)) for f in record.FIELDS]
    doc = _plain(inspect.cleandoc(record.__doc__ or ""))
    title = f"### struct {prefix}_{name} ({record.SIZE} bytes)"
    return [title, "", doc, "", *_table(("offset", "bytes", "type", "field", "meaning"), rows)]


def _enum(title: str, doc: str, constants: Iterable[CConstant]) -> list[str]:
    rows = [(f"`{name}`", value, _plain(doc)) for name, value, doc in constants]
    return [f"### {title}_*", "", _plain(inspect.cleandoc(doc)), "", *_table(("name", "value", "meaning"), rows)]


def _fields(prefix: str, register: Register) -> list[str]:
    """The bit fields of a register, or the names of its values."""
    holds, title = register.holds, f"{prefix}_{register.prefix}"
    if holds is None:
        return []
    doc = holds.__doc__ or register.doc
    if not register.fields:
        return _enum(title, doc, c_constants(title, holds))
    rows = [tuple(map(_plain, row)) for row in field_rows(title, register)]
    diagram = [f"    {line}" for line in bit_diagram(register)]
    lines = [f"### {title}_*", "", _plain(inspect.cleandoc(doc)), "", *diagram, ""]
    return lines + _table(("name", "bits", "mask", "access", "after reset", "meaning"), rows)


def _section(prefix: str, section: Section) -> list[str]:
    lines = [f"## {section.title}", "", _plain(inspect.cleandoc(section.doc)), ""]
    if section.registers:
        rows = [tuple(map(_plain, row)) for row in register_rows(section.registers)]
        lines += _table(("offset", "access", "register", "bits", "after reset", "meaning"), rows)
        kinds = [kind for kind in AccessKind if any(register.mask(kind) for register in section.registers)]
        lines += _table(("access", "meaning"), [(kind.name, kind.value) for kind in kinds])
    constants = [
        (f"`{prefix.upper()}_{c.name}`", f"{c.value:#x}" if c.hexadecimal else str(c.value), _plain(c.doc))
        for c in section.constants
    ]
    lines += _table(("constant", "value", "meaning"), constants)
    for register in section.registers:
        lines += _fields(prefix.upper(), register)
    for name, enum in section.enums:
        title = f"{prefix.upper()}_{name}"
        lines += _enum(title, enum.__doc__ or "", enum_constants(title, enum))
    for name, record in section.records:
        lines += _record(prefix, name, record)
    return lines


def abi_page() -> str:
    """The Markdown text of ``docs/abi.md``."""
    lines = [
        "# The guest-visible interface",
        "",
        "Generated from the declarations in `protocol/pviommu_abi`; do not edit. All fields are little-endian.",
        "",
    ]
    for interface in INTERFACES:
        lines += [f"# {interface.title}", "", f"C header: `guest-tools/driver/{interface.header}`", ""]
        for section in interface.sections:
            lines += _section(interface.prefix, section)
    return "\n".join(lines).rstrip() + "\n"
