"""C headers for the guest drivers, made from the declarations of :mod:`pviommu_abi.interface`."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator
from enum import IntFlag

from wire_layout import Field, Record
from wire_layout.register_text import CConstant, c_constants, member_docs

from .interface import Constant, EnumClass, Interface, Section

_C_TYPES = {"B": "__u8", "H": "__le16", "L": "__le32", "l": "__le32", "Q": "__le64"}


def _comment(text: str) -> list[str]:
    lines = []
    for paragraph in text.split("\n\n"):
        plain = paragraph.replace("``", "").replace(":mod:", "").replace("`", "")
        lines += [*textwrap.wrap(" ".join(plain.split()), 96), ""]
    return ["/*", *(f" * {line}".rstrip() for line in lines[:-1]), " */"]


def _define(name: str, value: str, doc: str) -> str:
    return f"#define {name:<39} {value:<12} /* {doc} */" if doc else f"#define {name:<39} {value}"


def _constant(prefix: str, constant: Constant) -> str:
    value = f"{constant.value:#x}" if constant.hexadecimal else str(constant.value)
    return _define(f"{prefix}_{constant.name}", value, constant.doc)


def _constants(title: str, constants: Iterable[CConstant]) -> list[str]:
    """What a word or an enumeration is made of, below the first line of its documentation."""
    lines = [f"/* {inspect.cleandoc(title).splitlines()[0].replace('``', '')} */"]
    for full, value, documented in constants:
        doc = documented.replace("``", "")
        if len(doc) > 40:
            lines += [f"/* {line} */" for line in textwrap.wrap(doc, 92)]
            doc = ""
        lines.append(_define(full, value, doc))
    return [*lines, ""]


def enum_constants(prefix: str, enum: EnumClass) -> Iterator[CConstant]:
    """The C constants of an enumeration; those of flags are hexadecimal."""
    docs = member_docs(enum)
    form = "{:#x}" if issubclass(enum, IntFlag) else "{}"
    for member in enum:
        yield CConstant(f"{prefix}_{member.name}", form.format(int(member)), docs.get(member.name or "", ""))


def _record(prefix: str, name: str, record: type[Record]) -> list[str]:
    summary = inspect.cleandoc(record.__doc__ or "").splitlines()[0].rstrip(".").replace("``", "")
    lines = ["/**", f" * struct {prefix}_{name} - {summary}"]
    for field in record.FIELDS:
        doc = textwrap.wrap(f"@{field.name}: {field.doc}", 92)
        lines += [f" * {doc[0]}", *(f" *\t{line}" for line in doc[1:])]
    lines += [" */", f"struct {prefix}_{name} {{"]
    lines += [f"\t{c_type(field)}\t{field.name};" for field in record.FIELDS]
    return [*lines, "};", f"static_assert(sizeof(struct {prefix}_{name}) == {record.SIZE});", ""]


def c_type(field: Field) -> str:
    """The kernel's type for ``field``: fixed width, little-endian where that matters."""
    return _C_TYPES[field.format]


def _section(prefix: str, section: Section) -> list[str]:
    upper = prefix.upper()
    lines = [*_comment(f"{section.title}\n\n{section.doc}"), ""]
    lines += [_define(f"{upper}_REG_{r.name}", f"{r.offset:#05x}", "") for r in section.registers]
    if section.registers:
        lines.append("")
    lines += [_constant(upper, constant) for constant in section.constants] + [""]
    for register in section.registers:
        if register.holds is not None:
            constants = c_constants(f"{upper}_{register.prefix}", register.holds)
            lines += _constants(register.holds.__doc__ or register.doc, constants)
    for name, enum in section.enums:
        lines += _constants(enum.__doc__ or "", enum_constants(f"{upper}_{name}", enum))
    for name, record in section.records:
        lines += _record(prefix, name, record)
    return lines


def c_header(interface: Interface) -> str:
    """The text of ``interface``'s header. It needs ``<linux/types.h>`` and a C11 ``static_assert``."""
    guard = "_" + interface.header.upper().replace(".", "_")
    lines = [
        "/* SPDX-License-Identifier: GPL-2.0-only OR MIT */",
        f"/* {interface.title}. Generated from the declarations of pviommu_abi; do not edit. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <linux/types.h>",
        "#ifdef __KERNEL__",
        "#include <linux/build_bug.h>",
        "#else",
        "#include <assert.h>",
        "#endif",
        "",
    ]
    for section in interface.sections:
        lines += _section(interface.prefix, section)
    return "\n".join([*lines, f"#endif /* {guard} */", ""])
