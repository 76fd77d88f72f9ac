"""The library as ctypes sees it: structures as large as the compiler makes them, functions by name."""

import ctypes
import re
import subprocess

import pytest

from pviommu.native import build, library


def test_structures_are_as_the_compiler_lays_them_out(tmp_path):
    names = {
        "pool": library.Pool,
        "table": library.Table,
        "ring": library.Ring,
        "report": library.Report,
        "field": library.Field,
        "operation": library.Operation,
        "rings": library.Rings,
    }
    lines = []
    for name, structure in names.items():
        lines.append(f'printf("%zu\\n", sizeof(struct pv_{name}));')
        lines += [f'printf("%zu\\n", offsetof(struct pv_{name}, {field[0]}));' for field in structure._fields_]
    program = tmp_path / "sizes.c"
    program.write_text(f'#include <stdio.h>\n#include "ring.h"\nint main(void) {{ {" ".join(lines)} return 0; }}\n')
    compiler = build.find_compiler()
    subprocess.run([compiler, f"-I{build.SOURCES}", program, "-o", tmp_path / "sizes"], check=True)
    said = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout

    expected = []
    for structure in names.values():
        expected.append(ctypes.sizeof(structure))
        expected += [getattr(structure, field[0]).offset for field in structure._fields_]
    assert [int(number) for number in said.split()] == expected


def test_every_exported_function_is_declared_and_the_other_way_round():
    exported = set()
    for source in build.SOURCES.glob("*.c"):
        exported |= set(re.findall(r"^PV_EXPORT .*?\b(pv_\w+)\(", source.read_text(), re.MULTILINE))

    assert exported == {*library._FUNCTIONS, *library._SLEEPING}


def test_a_function_that_is_not_there_is_named(native_library):
    with pytest.raises(AttributeError, match="pv_nothing"):
        _ = native_library.pv_nothing


def test_a_file_that_is_no_library_does_not_load(tmp_path):
    path = tmp_path / "core.so"
    path.write_text("text")

    with pytest.raises(OSError, match=r"core\.so"):
        library.load(path)
