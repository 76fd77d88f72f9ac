"""What is read of an ELF file: machine, kind, loader; nothing that is cut off is taken for a program."""

from __future__ import annotations

import struct

import pytest

from pviommu.elf import X86_64, ElfProgram, read_elf

LOADER = b"/lib64/ld-linux-x86-64.so.2\0"


def elf(kind: int = 3, machine: int = X86_64, entry: int = 0x1000, loader: bytes = b"", segment_kind: int = 0) -> bytes:
    """A file of one segment, its loader's path if it has one."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", segment_kind or (3 if loader else 1), 4, 120, 0, 0, len(loader), len(loader), 1)
    return header + segment + loader


def dynamic(flags: int) -> bytes:
    """A dynamic section with DT_FLAGS_1."""
    return struct.pack("<QQQQ", 30, 8, 0x6FFFFFFB, flags)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (elf(loader=LOADER), ElfProgram(X86_64, is_program=True, loader="/lib64/ld-linux-x86-64.so.2")),
        (elf(kind=2), ElfProgram(X86_64, is_program=True, is_static=True)),
        (elf(kind=2, loader=LOADER), ElfProgram(X86_64, True, "/lib64/ld-linux-x86-64.so.2")),
        # a program that can be anywhere in memory, a loader, and a section that is cut off
        (elf(segment_kind=2, loader=dynamic(1 << 27 | 1)), ElfProgram(X86_64, is_program=True, is_static=True)),
        (elf(segment_kind=2, loader=dynamic(1)), ElfProgram(X86_64, is_program=True)),
        (elf(segment_kind=2, loader=dynamic(1 << 27))[:-1], ElfProgram(X86_64, is_program=True)),
        (elf(entry=0), ElfProgram(X86_64, is_program=False)),  # a library
        (elf(machine=183, kind=2), ElfProgram(183, is_program=True, is_static=True)),
        (elf()[:100], ElfProgram(X86_64, is_program=False)),
        (elf()[:40], ElfProgram(0, is_program=False)),
        (b"\x7fELF\x01\x01" + bytes(100), ElfProgram(0, is_program=False)),  # 32 bits
        (b"#!/bin/sh\n", None),
        (b"", None),
    ],
)
def test_elf_file_tells_what_it_takes(content: bytes, found: ElfProgram | None) -> None:
    assert read_elf(content) == found
