"""The other process of a bare exchange: ``python -m pviommu.bench.partner words|echo DESCRIPTOR [LIBRARY]``."""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from .mechanisms import NativeMechanism, PythonMechanism

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """``words``: return each word of shared memory, spinning; ``echo``: return each message of a socket, asleep."""
    kind, descriptor, *library = arguments
    if kind == "echo":
        with socket.socket(fileno=int(descriptor)) as sock:
            while message := sock.recv(64):
                sock.send(message)
        return 0
    mechanism = NativeMechanism(Path(library[0])) if library else PythonMechanism()
    with mmap.mmap(int(descriptor), os.fstat(int(descriptor)).st_size) as memory:
        with memoryview(memory) as view:
            mechanism.pong(view)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
