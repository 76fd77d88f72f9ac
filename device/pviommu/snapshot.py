"""Files of machine states.

A line of JSON says what follows it: format, versions, how many bytes and their CRC-32. The bytes are JSON, too: a
:class:`.machine.MachineState`, in which bytes are base64 and tables, registers and rings are plain numbers. It does not
matter which core the machine had.
"""

from __future__ import annotations

from typing import Literal
from zlib import crc32

import msgspec

from pviommu_abi.registers import ABI_VERSION

from .machine import BusyError, Machine, MachineState

__all__ = ["VERSION", "BusyError", "SnapshotError", "restore", "take"]

VERSION = 1
"""Of the format, and of what the records in it hold."""
_MOST_HEADER = 4096


class SnapshotError(Exception):
    """A snapshot that cannot be restored here. The text says why."""


class _Header(msgspec.Struct, frozen=True):
    format: Literal["pviommu snapshot"]
    version: int
    abi: int
    bytes: int
    crc32: int


_state_of = msgspec.json.Decoder(MachineState).decode


def take(machine: Machine) -> bytes:
    """A machine as the contents of a file, after a drain. Raises :class:`BusyError`: ask again after some turns of the
    loop. Called in the loop's thread, as :meth:`.machine.Machine.save` is.
    """
    machine.drain()
    body = msgspec.json.encode(machine.save())
    return msgspec.json.encode(_Header("pviommu snapshot", VERSION, ABI_VERSION, len(body), crc32(body))) + b"\n" + body


def restore(machine: Machine, file: bytes) -> None:
    """Let ``machine`` go on from what a file holds; see :meth:`.machine.Machine.load`. Raises :class:`SnapshotError`,
    and :class:`BusyError`.
    """
    state = _read(file)
    try:
        machine.load(state)
    except ValueError as error:
        raise SnapshotError(f"a snapshot that cannot be restored here: {error}") from error


def _read(file: bytes) -> MachineState:
    first, _, body = file.partition(b"\n")
    try:
        header = msgspec.json.decode(first[:_MOST_HEADER], type=_Header)
    except msgspec.MsgspecError as error:
        raise SnapshotError("not a snapshot of pviommu") from error
    for what, found, known in (("format", header.version, VERSION), ("ABI", header.abi, ABI_VERSION)):
        if found != known:
            raise SnapshotError(f"a snapshot of {what} version {found}, and this is pviommu of version {known}")
    if len(body) != header.bytes:
        raise SnapshotError(f"a snapshot of {header.bytes} bytes, of which there are {len(body)}")
    if crc32(body) != header.crc32:
        raise SnapshotError("a snapshot that was damaged: its checksum is another")
    try:
        return _state_of(body)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"a snapshot that was written by something else: {error}") from error
