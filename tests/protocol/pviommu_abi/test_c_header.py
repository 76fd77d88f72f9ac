"""The C headers, as a C compiler sees them."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from pviommu.lab.build import find_sandbox
from pviommu.lab.processes import run
from pviommu.lab.progress import Progress
from pviommu.lab.provision import STEPS, provision
from pviommu_abi.c_header import c_header
from pviommu_abi.dma_test import DescriptorStatus
from pviommu_abi.interface import DMA_TEST, INTERFACES, PVIOMMU, Interface, Section
from pviommu_abi.xen_2024 import MapFlags
from wire_layout.register_text import member_docs
from wire_layout.registers import AccessKind, BitField, BitFields, Register

RunC = Callable[[Interface, list[str]], list[str]]


@pytest.fixture(scope="session")
def run_c() -> Iterator[RunC]:
    """The lines that statements print in a C program that includes the header of an interface.

    The compiler is the one that builds the guest's modules, so the host needs none.
    """
    toolbox = provision(Progress(io.StringIO(), STEPS))
    sandbox = find_sandbox(toolbox.root)
    folder = Path(tempfile.mkdtemp(dir=toolbox.root / "build"))
    inside = f"/{folder.relative_to(toolbox.root)}"

    def compile_and_run(interface: Interface, statements: list[str]) -> list[str]:
        for each in (interface, *INTERFACES):
            (folder / each.header).write_text(c_header(each))
        body = "\n".join(f"\t{statement}" for statement in statements)
        (folder / "program.c").write_text(
            f'#include <stddef.h>\n#include <stdio.h>\n#include "{interface.header}"\n'
            f"int main(void)\n{{\n{body}\n\treturn 0;\n}}\n"
        )
        options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-o", f"{inside}/program", f"{inside}/program.c"]
        compiled = run(sandbox.command(toolbox.root, ["gcc", *options]))
        assert compiled.status == 0, compiled.output
        finished = run(sandbox.command(toolbox.root, [f"{inside}/program"]))
        assert finished.status == 0, finished.output
        return finished.output.splitlines()

    yield compile_and_run
    shutil.rmtree(folder)


@pytest.mark.parametrize("interface", [PVIOMMU, DMA_TEST], ids=lambda interface: interface.prefix)
def test_sizes_and_offsets_of_every_field_are_those_of_the_declaration(run_c: RunC, interface: Interface) -> None:
    statements, expected = [], []
    for section in interface.sections:
        for name, record in section.records:
            c_name = f"struct {interface.prefix}_{name}"
            statements.append(f'printf("{name} %zu\\n", sizeof({c_name}));')
            expected.append(f"{name} {record.SIZE}")
            for field in record.FIELDS:
                member = f"(({c_name} *)0)->{field.name}"
                statements.append(
                    f'printf("{name}.{field.name} %zu %zu\\n", offsetof({c_name}, {field.name}), sizeof({member}));'
                )
                expected.append(f"{name}.{field.name} {field.offset} {field.size}")

    printed = run_c(interface, statements)

    assert printed == expected
    assert len(expected) > 15


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.prefix)
def test_constants_enumerations_and_registers_have_the_declared_values(run_c: RunC, interface: Interface) -> None:
    upper = interface.prefix.upper()
    values: dict[str, int] = {}
    for section in interface.sections:
        values |= {f"{upper}_{constant.name}": constant.value for constant in section.constants}
        values |= {f"{upper}_REG_{register.name}": register.offset for register in section.registers}
        for register in section.registers:
            parts = register.holds or ()
            values |= {f"{upper}_{register.prefix}_{part.name}": int(part) for part in parts}
        for name, enum in section.enums:
            values |= {f"{upper}_{name}_{member.name}": int(member) for member in enum}

    printed = run_c(interface, [f'printf("%lld\\n", (long long){name});' for name in values])

    assert dict(zip(values, map(int, printed), strict=True)) == values


class Mode(IntEnum):
    """How fast."""

    SLOW = 1
    FAST = 2


class Command(BitFields, width=64):
    """Bits of COMMAND."""

    GO = BitField(0, doc="starts it")
    MODE = BitField(4, 7, doc="how fast", values=Mode)
    COUNT = BitField(32, 63)


WIDE = Interface(
    "wide.h",
    "wide",
    "Wide registers",
    (Section("Registers", "Some.", (Register("COMMAND", 0x8, AccessKind.RW, "what to do", width=64, holds=Command),)),),
)


def test_fields_of_several_bits_have_a_mask_a_shift_and_values(run_c: RunC) -> None:
    statements = [
        'printf("%llx %llx %llx\\n", WIDE_COMMAND_GO, WIDE_COMMAND_MODE_MASK, WIDE_COMMAND_COUNT_MASK);',
        'printf("%d %d\\n", WIDE_COMMAND_MODE_SHIFT, WIDE_COMMAND_COUNT_SHIFT);',
        'printf("%llx\\n", ~WIDE_COMMAND_MODE_MASK);',
        'printf("%d %x\\n", WIDE_COMMAND_MODE_FAST, WIDE_REG_COMMAND);',
    ]

    assert run_c(WIDE, statements) == ["1 f0 ffffffff00000000", "4 32", "ffffffffffffff0f", "2 8"]


def test_a_header_may_be_included_twice_and_beside_the_other(run_c: RunC) -> None:
    printed = run_c(
        PVIOMMU,
        [f'puts("both");\n#include "{PVIOMMU.header}"\n#include "{DMA_TEST.header}"'],
    )

    assert printed == ["both"]


def test_member_docs_are_the_strings_below_the_members() -> None:
    assert member_docs(DescriptorStatus)["CANCELLED"] == "a reset came first"
    assert member_docs(MapFlags) == {}
