"""The C interface as declared here is that of the library's own headers; a library that cannot be used is refused."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from libvfio_user import Generation, Library, LibraryError, find_library, raw
from pviommu.lab.libvfio_user import compile_in, headers

STRUCTURES = {
    "struct iovec": raw.IoVec,
    "vfu_dma_info_t": raw.DmaInfo,
    "vfu_migration_callbacks_t": raw.MigrationCallbacks,
}
ENUMS = {
    "VFU_TRANS_": (raw.Transport, ()),
    "VFU_DEV_TYPE_": (raw.DeviceType, ()),
    "LIBVFIO_USER_FLAG_": (raw.CreateFlag, ()),
    "VFU_REGION_FLAG_": (raw.RegionFlag, ("BITS_64", "PREFETCH")),
    "VFU_CAP_FLAG_": (raw.CapabilityFlag, ()),
    "VFU_RESET_": (raw.Reset, ()),
    "VFU_PCI_TYPE_": (raw.PciType, ()),
    "VFU_MIGR_STATE_": (raw.MigrationState, ()),
}
"""Classes by the beginning of their names in C, and members that the library of 2022 has not."""
SCALARS = {
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "ssize_t": ctypes.c_ssize_t,
    "loff_t": ctypes.c_longlong,
    "bool": ctypes.c_bool,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "void": None,
    "vfu_dma_addr_t": ctypes.c_void_p,
}


def assertions() -> list[str]:
    lines = []
    for name, structure in STRUCTURES.items():
        lines.append(f"sizeof({name}) == {ctypes.sizeof(structure)}")
        for field, kind in structure._fields_:
            place = getattr(structure, field)
            lines.append(f"offsetof({name}, {field}) == {place.offset}")
            lines.append(f"sizeof((({name} *)0)->{field}) == {ctypes.sizeof(kind)}")
    for beginning, (enum, newer) in ENUMS.items():
        lines += [f"{beginning}{item.name} == {item.value}" for item in enum if item.name not in newer]
    lines += [f"VFU_DEV_{item.name}_IRQ == {item.value}" for item in raw.Irq]
    lines += [f"VFU_PCI_DEV_{item.name}_REGION_IDX == {item.value}" for item in raw.Region]
    return [*lines, "VFU_MIGR_CALLBACKS_VERS == 1"]


def test_layouts_and_values_are_those_of_the_headers(library_path: Path, compiler: Path, tmp_path: Path) -> None:
    includes = headers(library_path)
    (tmp_path / "include").symlink_to(includes)
    text = "".join(f'_Static_assert({line}, "{line}");\n' for line in assertions())
    source = f'#include <stdbool.h>\n#include <stddef.h>\n#include "libvfio-user.h"\n{text}'
    (tmp_path / "check.c").write_text(source)

    assert compile_in(compiler, tmp_path, ["-D_GNU_SOURCE", "-Iinclude", "-c", "check.c"])


def prototypes(text: str) -> dict[str, tuple[str, list[str]]]:
    """Result and arguments of every function in a header, as it spells them, and of every callback type."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|\\\n", " ", text, flags=re.DOTALL)
    text = re.sub(r"__attribute__\(\(.*?\)\)\)", "", text, flags=re.DOTALL)
    found = {}
    for result, name, arguments in re.findall(r"([\w* ]+?)\s*\(?\b((?:vfu|dma)_\w+)\)?\s*\(([^()]*)\)\s*;", text):
        kinds = [" ".join(re.sub(r"\b\w+$", "", one.strip()).split()) for one in arguments.split(",")]
        found[name] = " ".join(result.replace("typedef", "").split()), ([] if arguments == "void" else kinds)
    return found


def spelled(kind: str) -> Any:
    """The type that a C spelling has here. Enums are ints."""
    plain = kind.removeprefix("const ").strip()
    if plain.endswith("*"):
        target = plain[:-1].strip()
        if target == "char":
            return ctypes.c_char_p
        if target in raw.CALLBACK_TYPES:
            return raw.CALLBACK_TYPES[target]
        known = STRUCTURES.get(target)
        return ctypes.c_void_p if known is None else ctypes.POINTER(known)
    if plain.startswith("enum ") or plain in ("vfu_trans_t", "vfu_dev_type_t", "vfu_pci_type_t", "vfu_reset_type_t"):
        return ctypes.c_int
    return SCALARS[plain]


def test_every_function_has_the_types_of_its_prototype(library_path: Path) -> None:
    found = prototypes((headers(library_path) / "libvfio-user.h").read_text())
    declared = raw.declarations(Generation.OF_2022)

    functions = {name: types for name, types in found.items() if name not in raw.CALLBACK_TYPES}
    assert functions.keys() == declared.keys()
    for name, (result, arguments) in functions.items():
        kinds = [spelled(kind) for kind in arguments if kind != "..."]
        assert (spelled(result), kinds) == (declared[name][0], list(declared[name][1])), name


def test_every_callback_has_the_types_of_its_prototype(library_path: Path) -> None:
    found = prototypes((headers(library_path) / "libvfio-user.h").read_text())

    for name, kind in raw.CALLBACK_TYPES.items():
        result, arguments = found[name]
        kinds = [spelled(one) for one in arguments]
        if name == "vfu_region_access_cb_t":
            kinds[1] = ctypes.c_void_p  # a buffer, which Python must not turn into bytes up to a zero
        assert (spelled(result), kinds) == (kind._restype_, list(kind._argtypes_)), name


def test_a_generation_is_known_by_its_exports(library: Library) -> None:
    assert library.generation is Generation.OF_2022
    assert raw.declarations(Generation.CURRENT).keys() == Library.__annotations__.keys() - {
        "vfu_get_migr_register_area_size"
    }
    assert raw.declarations(Generation.OF_2022).keys() == Library.__annotations__.keys()


def test_a_named_library_wins(library_path: Path, tmp_path: Path) -> None:
    found = find_library({"LIBVFIO_USER": str(library_path)}, [tmp_path / "no.so"])

    assert found.path == str(library_path)


def test_others_come_last(library_path: Path) -> None:
    assert find_library({}, [library_path], soname="libvfio-user-no-such.so").path == str(library_path)


def test_an_installed_library_comes_before_others(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"libc\.so\.6: it is of another interface"):
        find_library({}, [tmp_path / "built.so"], soname="libc.so.6")


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"LIBVFIO_USER": "/no/such.so"}, "libvfio-user /no/such.so: LIBVFIO_USER names no file"),
        ({}, "libvfio-user libvfio-user-no-such.so: none is installed, and LIBVFIO_USER names none"),
    ],
)
def test_no_library_is_said_in_one_line_with_what_to_do_if_known(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(LibraryError) as caught:
        find_library(environment, soname="libvfio-user-no-such.so")
    assert str(caught.value) == problem
    caught.value.how = "buy one"
    assert str(caught.value) == f"{problem}; buy one"


def test_a_file_that_is_no_library_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("no library")

    with pytest.raises(LibraryError, match=r"^libvfio-user /\S+text\.so: it cannot be loaded: [^/]+$"):
        find_library({"LIBVFIO_USER": str(path)})


def test_a_library_of_another_interface_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(LibraryError, match=r"libc\.so\.6: it is of another interface, and has no dma_sg_size$"):
        Library("libc.so.6")
