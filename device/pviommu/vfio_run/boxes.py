"""The server's end of boxes: a message that is put into one while the server watches it needs no system call.

Box and file are those of src/boxes.h, and src/boxes.c is what takes and answers.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

__all__ = ["BOXES", "NOTHING", "OTHERS", "ROOM", "Boxes", "Taken", "shared_file"]

BOXES = 1024
_SIZE, _IS_WATCHED = 640, 48
ROOM = 256
"""Bytes that go with a message or a reply."""
_TAKEN = struct.Struct("<IIQQQII")
_REPLY = struct.Struct("<IiQ")
_WORD = struct.Struct("<I")
_MOST_WATCHED = 16

NOTHING = -1
"""There was no message for so long."""
OTHERS = -2
"""A descriptor had something meanwhile."""


class Taken(NamedTuple):
    """A message from a box."""

    box: int
    kind: int
    request: int
    argument: int
    sequence: int
    token: int
    connection: int
    rest: bytes


def shared_file(socket: Path) -> Path:
    """What programs and the server share, beside the socket."""
    return socket.with_name(f"{socket.name}.shared")


class Boxes:
    """Those of one server."""

    def __init__(self, library: Path, socket: Path) -> None:
        """``library``: the one that programs are given. Raises OSError."""
        loaded = ctypes.CDLL(str(library))
        self._take = loaded.pviommu_take
        self._take.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 2, ctypes.c_uint64, ctypes.c_void_p)
        self._answer = loaded.pviommu_answer
        self._answer.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
        size = loaded.pviommu_shared_size
        size.restype = ctypes.c_size_t
        with shared_file(socket).open("r+b") as file:
            file.truncate(size())
            self._map = mmap.mmap(file.fileno(), size())
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._taken = ctypes.create_string_buffer(_TAKEN.size + ROOM)
        self._taken_view = memoryview(self._taken)
        self._taken_at = ctypes.addressof(self._taken)
        self._reply = ctypes.create_string_buffer(_REPLY.size)
        self._reply_at = ctypes.addressof(self._reply)
        self.watched: dict[int, None] = {}
        """Where messages are found by themselves, the one that has been watched for longest first."""
        self._some = array("H")
        self._some_at = self._some.buffer_info()

    def watch(self, box: int) -> Taken | None:
        """Let messages come there from now on. Another one may be watched no more for it: what was put there before,
        by somebody who thinks that it is, is the result.
        """
        if box in self.watched:
            return None
        last = None
        if len(self.watched) == _MOST_WATCHED:
            left = next(iter(self.watched))
            self._set(left, is_watched=False)
            last = self.look(left)
        self._set(box, is_watched=True)
        return last

    def rest(self) -> list[Taken]:
        """Watch none any more. The messages that are there are the last that come by themselves: who has put one
        there, and sees that nobody watches, says so by the socket. One of each: a program that puts more there without
        waiting for replies is not to be heard for ever.
        """
        boxes = list(self.watched)
        for box in boxes:
            self._set(box, is_watched=False)
        return [taken for box in boxes if (taken := self.look(box))]

    def _set(self, box: int, *, is_watched: bool) -> None:
        if is_watched:
            self.watched[box] = None
        else:
            del self.watched[box]
        _WORD.pack_into(self._map, box * _SIZE + _IS_WATCHED, is_watched)
        self._some = array("H", self.watched)
        self._some_at = self._some.buffer_info()

    def take(self, others: int, limit_ns: int) -> Taken | int:
        """The next message of a watched box, waiting for one so long; :data:`NOTHING`, or :data:`OTHERS` if ``others``,
        a descriptor of epoll, has something.
        """
        return self._take_from(self._some_at, others, limit_ns)

    def look(self, box: int) -> Taken | None:
        """The message of one box, if it was not taken yet."""
        only = array("H", [box])
        taken = self._take_from(only.buffer_info(), -1, 0)
        return None if isinstance(taken, int) else taken

    def _take_from(self, some: tuple[int, int], others: int, limit_ns: int) -> Taken | int:
        box: int = self._take(self._at, *some, others, limit_ns, self._taken_at)
        if box < 0:
            return box
        view = self._taken_view
        kind, request, argument, sequence, token, connection, size = _TAKEN.unpack_from(view)
        rest = view[_TAKEN.size : _TAKEN.size + size].tobytes()
        return Taken(box, kind, request, argument, sequence, token, connection, rest)

    def answer(self, box: int, answer: int, value: int, sequence: int, behind: bytes) -> bool:
        """Reply in a box, with at most :data:`ROOM` bytes. Whether who waits for it sleeps, and is to have it by the
        socket instead.
        """
        _REPLY.pack_into(self._reply, 0, answer, value, sequence)
        return bool(self._answer(self._at + box * _SIZE, self._reply_at, behind, len(behind)))

    def close(self) -> None:
        """Watch none, and forget them."""
        for box in list(self.watched):
            self._set(box, is_watched=False)
