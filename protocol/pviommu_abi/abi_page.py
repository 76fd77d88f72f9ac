"""The ABI page of the documentation, made from the declarations of :mod:`pviommu_abi.interface`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from enum import IntFlag

from wire_layout import Record

from .c_header import c_type, member_docs
from .interface import INTERFACES, EnumClass, Section


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


def _enum(prefix: str, name: str, enum: EnumClass) -> list[str]:
    docs = member_docs(enum)
    form = "{:#x}" if issubclass(enum, IntFlag) else "{}"
    rows = [
        (
            f"`{prefix.upper()}_{name}_{member.name}`",
            form.format(int(member)),
            _plain(docs.get(member.name or "", "")),
        )
        for member in enum
    ]
    doc = _plain(inspect.cleandoc(enum.__doc__ or ""))
    return [f"### {prefix.upper()}_{name}_*", "", doc, "", *_table(("name", "value", "meaning"), rows)]


def _section(prefix: str, section: Section) -> list[str]:
    lines = [f"## {section.title}", "", _plain(inspect.cleandoc(section.doc)), ""]
    if section.registers:
        rows = [(f"{r.offset:#05x}", r.access.name, f"`{r.name}`", _plain(r.doc)) for r in section.registers]
        lines += _table(("offset", "access", "register", "meaning"), rows)
    constants = [
        (f"`{prefix.upper()}_{c.name}`", f"{c.value:#x}" if c.hexadecimal else str(c.value), _plain(c.doc))
        for c in section.constants
    ]
    lines += _table(("constant", "value", "meaning"), constants)
    for name, enum in section.enums:
        lines += _enum(prefix, name, enum)
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
