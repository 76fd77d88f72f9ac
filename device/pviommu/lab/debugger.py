"""How to attach a debugger to a guest that waits for one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["KERNEL_ARGUMENTS", "instructions"]

KERNEL_ARGUMENTS = ("nokaslr",)
"""Symbols are where the kernel was linked to."""


def instructions(gdb_socket: Path, vmlinux: Path | None, modules: Sequence[Path]) -> str:
    """How to attach gdb to a QEMU that waits at ``gdb_socket``, as text for a reader.

    ``vmlinux`` is the kernel with its symbols, None if this kernel has none; ``modules`` are the built ``.ko`` files.
    """
    symbols = [] if vmlinux is None else [str(vmlinux)]
    command = shlex.join(["gdb", *symbols, "-ex", f"target remote {gdb_socket}"])
    lines = ["the guest waits for a debugger, without a time limit:", f"  {command}"]
    if vmlinux is None:
        lines.append("  (gdb) continue")
        lines.append("this kernel has no symbols: --kernel lab or your own build tree has them")
    else:
        scripts = vmlinux.parent / "vmlinux-gdb.py"
        with_scripts = scripts.is_file()
        if with_scripts:
            lines.append(f"  (gdb) source {scripts}")
        lines += ["  (gdb) hbreak start_kernel", "  (gdb) continue"]
        if with_scripts:  # from here on the kernel is at its final address, and gdb follows the modules that it loads
            folders = sorted({str(path.parent) for path in modules})
            lines += [f"  (gdb) lx-symbols {' '.join(folders)}", "  (gdb) continue"]
    if modules:
        lines.append("a module's symbols, with the address in its /sys/module/NAME/sections/.text in the guest:")
        lines += [f"  (gdb) add-symbol-file {path} ADDRESS" for path in modules]
    return "\n".join(lines)
