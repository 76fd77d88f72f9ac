"""The sources of the driver that need no kernel around them, compiled as they are for user space."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from pviommu.native.build import find_compiler

SHIM = Path(__file__).with_name("src")
OPTIONS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Werror", "-pthread")
INCLUDE = re.compile(r"^#include <(?:linux|asm)/([a-z_]+\.h)>$", re.MULTILINE)

Compile = Callable[..., Path]
Load = Callable[[str, Mapping[str, tuple[object, list[object]]]], ctypes.CDLL]


def make_headers(driver: Path, folder: Path) -> None:
    """Empty ones for all that the driver includes and user space lacks: ``kernel.h`` has what is needed of them."""
    for source in driver.glob("*.[ch]"):
        for name in INCLUDE.findall(source.read_text()):
            for place in ("linux", "asm"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                (folder / place / name).touch()


@pytest.fixture(scope="session")
def compile_driver(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """``compile_driver(name, *options)``: a source of ``src`` as a program or library, whose path it returns."""
    compiler = find_compiler()
    assert compiler, "these tests need a C compiler"
    driver = checkout / "guest-tools" / "driver"
    headers = tmp_path_factory.mktemp("headers")
    make_headers(driver, headers)

    def build(name: str, options: Sequence[str] = ()) -> Path:
        target = tmp_path_factory.mktemp("built") / name.removesuffix(".c")
        command = [compiler, *OPTIONS, *options, f"-I{SHIM}", f"-I{driver}", "-idirafter", str(headers)]
        done = subprocess.run(
            [*command, "-o", str(target), str(SHIM / name)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return target

    return build


@pytest.fixture(scope="session")
def load_driver(compile_driver: Compile) -> Load:
    """``load_driver(name, types)``: a source of ``src`` as a loaded library, whose functions have these types, a result
    and arguments each.
    """

    def load(name: str, types: Mapping[str, tuple[object, list[object]]]) -> ctypes.CDLL:
        library = ctypes.CDLL(str(compile_driver(name, ("-shared", "-fPIC"))))
        for function_name, (result, arguments) in types.items():
            function = getattr(library, function_name)
            function.restype, function.argtypes = result, arguments
        return library

    return load


@pytest.fixture(scope="session")
def run_threads(compile_driver: Compile) -> Callable[[str, int], None]:
    """``run_threads(name, rounds)``: a source of ``src`` as a program whose threads find nothing wrong, under
    ThreadSanitizer, which ends a program that has a race with status 66.
    """

    def run(name: str, rounds: int) -> None:
        program = compile_driver(name, ("-fsanitize=thread", "-Wno-tsan"))
        done = subprocess.run([str(program), str(rounds)], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (0, f"{rounds} rounds\n"), done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def run_histories() -> Callable[[type[RuleBasedStateMachine], ctypes.CDLL], None]:
    """``run_histories(machine, library)``: random histories of a machine whose class attribute is the library."""

    def run(machine: type[RuleBasedStateMachine], library: ctypes.CDLL) -> None:
        bound = type(machine.__name__, (machine,), {"library": library})
        run_state_machine_as_test(bound, settings=settings(max_examples=150, stateful_step_count=30))  # type: ignore[no-untyped-call]

    return run
