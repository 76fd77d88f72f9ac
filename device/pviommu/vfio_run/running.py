"""A program on a server, from its start to its end."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..interfaces.iommufd import System
from ..native.build import build
from .server import Server

__all__ = ["build_library", "run_program"]

_SOURCES = Path(__file__).with_name("src")


def build_library(environment: Mapping[str, str] = os.environ) -> Path:
    """The library that programs are given, built if it is not there yet. Raises native.build.BuildError."""
    return build(environment, sources=_SOURCES)


def run_program(command: Sequence[str], system: System, environment: Mapping[str, str] = os.environ) -> int:
    """Run a program on a system until it ends, and return its exit status; of one that a signal ended, minus its
    number. Raises native.build.BuildError, and OSError if the program cannot be started.

    Files that other processes have left open then are closed: they get EIO.
    """
    preloaded = " ".join(filter(None, (str(build_library(environment)), environment.get("LD_PRELOAD"))))
    with tempfile.TemporaryDirectory(prefix="pviommu-vfio-") as folder:
        path = Path(folder) / "socket"
        server = Server(system, path)
        try:
            additions = {"LD_PRELOAD": preloaded, "PVIOMMU_VFIO_SOCKET": str(path)}
            program = subprocess.Popen(command, env={**environment, **additions})
            ended = os.pidfd_open(program.pid)
            try:
                server.watch(ended)
                while not server.step():
                    pass
            finally:
                os.close(ended)
                if program.poll() is None:
                    program.kill()
            return program.wait()
        finally:
            server.close()
