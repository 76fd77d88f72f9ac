"""Reads from an ELF file what it takes to run it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["AARCH64", "X86_64", "ElfProgram", "read_elf"]

X86_64, AARCH64 = 62, 183
"""Machine numbers (EM_X86_64, EM_AARCH64)."""

_MAGIC = b"\x7fELF"
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_EXECUTABLE, _SHARED = 2, 3  # file types; a position-independent program has the second
_DYNAMIC, _INTERPRETER = 2, 3  # segments of the types PT_DYNAMIC and PT_INTERP
_ENTRY = struct.Struct("<QQ")
_FLAGS_1, _IS_PROGRAM = 0x6FFFFFFB, 1 << 27  # an entry DT_FLAGS_1 of the dynamic section, and in it DF_1_PIE


@dataclass(frozen=True, slots=True)
class ElfProgram:
    """What an ELF file is. ``loader`` is the path of the loader of a dynamic program; None: it needs none.
    ``is_static``: a program into which no library is ever loaded, not a loader, which can be run as well.
    """

    machine: int
    is_program: bool
    loader: str | None = None
    is_static: bool = False


def read_elf(content: bytes) -> ElfProgram | None:
    """What ``content`` is; None if it is not an ELF file. A file that is cut off is not a program."""
    if not content.startswith(_MAGIC):
        return None
    if len(content) < _HEADER.size or content[4:6] != bytes((_CLASS_64, _LITTLE_ENDIAN)):
        return ElfProgram(0, is_program=False)
    fields = _HEADER.unpack_from(content)
    kind, machine, entry, start, size, count = fields[1], fields[2], fields[4], fields[5], fields[9], fields[10]
    loader = None
    is_static = kind == _EXECUTABLE
    for number in range(count):
        place = start + number * size
        if place + _SEGMENT.size > len(content):
            return ElfProgram(machine, is_program=False)
        segment = _SEGMENT.unpack_from(content, place)
        if segment[0] == _INTERPRETER:
            loader = content[segment[2] : segment[2] + segment[5]].rstrip(b"\0").decode(errors="replace")
        elif segment[0] == _DYNAMIC:
            dynamic = content[segment[2] : segment[2] + segment[5]]
            entries = _ENTRY.iter_unpack(dynamic[: len(dynamic) // _ENTRY.size * _ENTRY.size])
            is_static |= any(tag == _FLAGS_1 and value & _IS_PROGRAM for tag, value in entries)
    is_program = kind == _EXECUTABLE or (kind == _SHARED and entry != 0)
    return ElfProgram(machine, is_program, loader, is_static and loader is None)
