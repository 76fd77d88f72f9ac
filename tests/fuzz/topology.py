"""Topology files.

Input: the text of the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pviommu.endpoints import ENDPOINTS
from pviommu.host.work import Work
from pviommu.topology import EndpointSection, IommuSection, ReservedSection, TopologyError, load

from .machine import build, check_engine, nothing_raised, open_descriptors

__all__ = ["TOKENS", "target"]

MAX_BUILT = 8
"""Endpoints of a topology that is built: each takes memory, and more of the same teaches nothing."""
TOKENS = (
    b"[iommu]\n",
    b"[[endpoint]]\n",
    b"[[endpoint.reserved]]\n",
    *(
        f"{field.encode_name} = ".encode()
        for kind in (IommuSection, EndpointSection, ReservedSection)
        for field in msgspec.structs.fields(kind)
    ),
    *(f'"{name}"\n'.encode() for name in (*ENDPOINTS, "identity", "blocked", "0000:00:05.0")),
)


def target(data: bytes) -> None:
    """A file is refused with one line that names it, or the machine that it describes can be built."""
    before = open_descriptors()
    fd = os.memfd_create("topology", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        _load_and_build(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
    assert open_descriptors() == before


def _load_and_build(path: Path) -> None:
    try:
        topology, refused = load(path), str(path)
    except TopologyError as error:
        topology, refused = None, str(error)
    assert str(path) in refused
    if topology is None or len(topology.endpoint) > MAX_BUILT:
        return
    with nothing_raised():
        machine = build(topology)
        try:
            assert not Work(machine).step()
            check_engine(machine.iommu.engine)
        finally:
            machine.close()
