"""The guest's C is clean at W=1, under sparse and under checkpatch --strict; and each of them would say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu.lab.driver_checks import DriverChecks

BAD = """// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>
#include <linux/types.h>

{code}

MODULE_DESCRIPTION("a mistake");
MODULE_LICENSE("GPL");
"""


@pytest.fixture
def bad_module(tmp_path: Path) -> Path:
    """The sources of a module that has nothing in it yet."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m += bad.o\n")
    return folder


def test_modules_have_no_warning_of_compiler_or_sparse(checks: DriverChecks, checkout: Path, release: str) -> None:
    assert checks.modules(checkout / "guest-tools/driver", release) == []


def test_c_of_the_guest_is_clean_under_checkpatch(checks: DriverChecks, checkout: Path) -> None:
    assert checks.style(checkout / "guest-tools") == []


def test_sparse_sees_a_pointer_to_registers_read_as_memory(
    checks: DriverChecks, bad_module: Path, release: str
) -> None:
    code = "static int __maybe_unused get(int __iomem *p)\n{\n\treturn *(int *)p;\n}"
    (bad_module / "bad.c").write_text(BAD.format(code=code))

    (said,) = checks.modules(bad_module, release)

    assert said == "bad.c:7:18: warning: cast removes address space '__iomem' of expression"


def test_compiler_sees_a_function_without_a_prototype(checks: DriverChecks, bad_module: Path, release: str) -> None:
    (bad_module / "bad.c").write_text(BAD.format(code="int get(void);\n\nint get(void)\n{\n\treturn late();\n}"))

    said = checks.modules(bad_module, release)

    assert "bad.c:9:16: error: implicit declaration of function 'late' [-Wimplicit-function-declaration]" in said


def test_checkpatch_sees_spaces_for_a_tab(checks: DriverChecks, tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/bad.c").write_text(BAD.format(code="int get(void)\n{\n        return 1;\n}"))

    said = checks.style(tmp_path)

    assert any(line.startswith("driver/bad.c:7: ERROR:CODE_INDENT") for line in said), said
