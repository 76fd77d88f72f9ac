"""The implementations (cores) of engine and rings that can be measured, and what measures them."""

from __future__ import annotations

from ctypes import addressof, c_char
from pathlib import Path

from ..engine import Engine, EngineConfig
from ..engine.stages import Stage
from ..engine.walk import Tables
from ..lab.problems import EnvironmentProblem
from ..machine import Machine
from ..native.build import BuildError, LibraryError, build
from ..native.core import NativeCore, native_core
from ..native.memory import NativeCopier
from ..native.walk import NativeWalker, Place
from ..pci.function import Environment
from ..topology import Topology
from .mechanisms import Mechanism, NativeMechanism, PythonMechanism

__all__ = [
    "NATIVE",
    "PYTHON",
    "build_engine",
    "build_machine",
    "chosen_cores",
    "mechanism_of",
    "native_walker",
    "serve_options",
]

NATIVE = "native"
PYTHON = "python"
PROBE = Path(__file__).with_name("native")
"""Sources of the measuring side for a native server."""


def build_engine(config: EngineConfig, core: str) -> Engine:
    """An engine of core ``native`` or ``python``. Raises EnvironmentProblem."""
    return Engine(config, _new_core(core))


def build_machine(topology: Topology, environment: Environment, core: str) -> Machine:
    """A machine of core ``native`` or ``python``. Raises EnvironmentProblem."""
    return Machine.build(topology, environment, _new_core(core))


def native_walker(tables: Tables, ram: bytearray) -> NativeWalker:
    """What walks tables in memory that is ``ram`` from address 0 on, which lives as long as it. Raises
    EnvironmentProblem.
    """
    lib = _native().lib
    copier = NativeCopier(lib)
    copier.add(0, len(ram), addressof(c_char.from_buffer(ram)))
    return NativeWalker(lib, Place(copier), Stage(tables))


def _new_core(core: str) -> NativeCore | None:
    return None if core == PYTHON else _native()


def _native() -> NativeCore:
    try:
        return native_core(_built())
    except LibraryError as problem:
        raise EnvironmentProblem(str(problem), "remove it and build it again") from problem


def _built() -> Path:
    """The library of the native core, which is built unless it is there. Raises EnvironmentProblem."""
    try:
        return build()
    except BuildError as problem:
        raise EnvironmentProblem(str(problem), "install a C compiler, or choose --core python") from problem


def chosen_cores(choice: str) -> list[str]:
    """The cores that ``--core`` names; ``both`` is only Python's if the native one cannot be built. Raises
    EnvironmentProblem.
    """
    if choice == PYTHON:
        return [PYTHON]
    try:
        _new_core(NATIVE)
    except EnvironmentProblem:
        if choice == NATIVE:
            raise
        return [PYTHON]
    return [NATIVE] if choice == NATIVE else [NATIVE, PYTHON]


def serve_options(core: str) -> tuple[str, ...]:
    """The options of ``pviommu serve`` that select a core."""
    return ("--core", core)


def mechanism_of(core: str) -> tuple[Mechanism, Path | None]:
    """What measures a server of this core, and its library.

    For a native core without a compiler it is Python too: both sides of a comparison are then slower.
    """
    if core == NATIVE:
        try:
            library = build(sources=PROBE)
        except BuildError:
            return PythonMechanism(), None
        return NativeMechanism(library), library
    return PythonMechanism(), None
