"""What one types to debug a guest."""

from __future__ import annotations

import shlex
from pathlib import Path

from pviommu.lab.debugger import instructions


def test_command_attaches_to_the_socket_with_the_kernels_symbols(tmp_path: Path) -> None:
    text = instructions(Path("/run/a b/gdb"), tmp_path / "vmlinux", [])

    command = text.splitlines()[1]
    assert shlex.split(command) == ["gdb", str(tmp_path / "vmlinux"), "-ex", "target remote /run/a b/gdb"]


def test_kernel_without_symbols_says_which_have_them() -> None:
    text = instructions(Path("/run/gdb"), None, [])

    assert "this kernel has no symbols: --kernel lab or your own build tree has them" in text
    assert "hbreak" not in text


def test_modules_are_named_with_their_files(tmp_path: Path) -> None:
    text = instructions(Path("/run/gdb"), None, [tmp_path / "pviommu.ko"])

    assert f"add-symbol-file {tmp_path}/pviommu.ko ADDRESS" in text


def test_kernels_own_gdb_scripts_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "vmlinux-gdb.py").touch()
    text = instructions(Path("/run/gdb"), tmp_path / "vmlinux", [tmp_path / "m/b.ko", tmp_path / "m/a.ko"])

    assert f"(gdb) lx-symbols {tmp_path}/m\n" in text
