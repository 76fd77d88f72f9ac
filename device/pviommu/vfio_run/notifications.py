"""System calls of a program that wait for this process: seccomp user notification, of x86-64 and Linux 5.19 or later.

A filter says which calls wait. It is inherited by all that the program starts, whether linked statically or not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

__all__ = ["FIRST_DESCRIPTOR", "IS_KNOWN", "Call", "Listener", "Syscall", "begin_to_notify", "received_listener"]

IS_KNOWN = platform.machine() == "x86_64"
"""Whether the numbers of system calls here are those of this machine."""
FIRST_DESCRIPTOR = 512
"""Calls with a descriptor below do not wait, but for requests: most of what programs read and write is none of ours."""
_TYPE = ord(";")


class Syscall(IntEnum):
    """Numbers of those that may wait, as arch/x86/entry/syscalls/syscall_64.tbl of Linux has them."""

    READ = 0
    WRITE = 1
    OPEN = 2
    STAT = 4
    FSTAT = 5
    LSTAT = 6
    MMAP = 9
    IOCTL = 16
    PREAD64 = 17
    PWRITE64 = 18
    ACCESS = 21
    DUP = 32
    FCNTL = 72
    CREAT = 85
    READLINK = 89
    OPENAT = 257
    NEWFSTATAT = 262
    READLINKAT = 267
    FACCESSAT = 269
    STATX = 332
    OPENAT2 = 437
    FACCESSAT2 = 439


_WITH_PATH = (
    *(Syscall.OPEN, Syscall.STAT, Syscall.LSTAT, Syscall.ACCESS, Syscall.CREAT, Syscall.READLINK, Syscall.OPENAT),
    *(Syscall.NEWFSTATAT, Syscall.READLINKAT, Syscall.FACCESSAT, Syscall.STATX, Syscall.OPENAT2, Syscall.FACCESSAT2),
)
_WITH_DESCRIPTOR = (
    *(Syscall.READ, Syscall.WRITE, Syscall.PREAD64, Syscall.PWRITE64, Syscall.DUP, Syscall.FCNTL, Syscall.FSTAT),
)

_libc = ctypes.CDLL(None, use_errno=True)
_SECCOMP = 317
_SET_MODE_FILTER = 1
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
"""With the second no handler of a signal runs once a call was received, after which it would begin anew."""
_PR_SET_NO_NEW_PRIVS = 38
_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _NOTIFY, _NO_SUCH_CALL = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
_X32 = 0x40000000
_LOAD, _EQUAL, _NOT_LESS, _AND, _SHIFT, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x74, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_INSTRUCTION = struct.Struct("=HBBI")

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_DESCRIPTOR = struct.Struct("=QIIII")
_RECEIVE, _SEND, _IS_VALID, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_CONTINUE = 1
_SET_NUMBER, _AND_SEND = 1, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter() -> bytes:
    """Which calls wait, as a program for the kernel: see linux/seccomp.h."""
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _NO_SUCH_CALL),
        (_LOAD, 0, 0, _NUMBER),
        (_NOT_LESS, 0, 1, _X32),
        (_RETURN, 0, 0, _NO_SUCH_CALL),
    ]
    for number in _WITH_PATH:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    for number, argument in (*((number, 0) for number in _WITH_DESCRIPTOR), (Syscall.MMAP, 4)):
        code += [
            (_EQUAL, 0, 5, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_NOT_LESS, 0, 2, FIRST_DESCRIPTOR),
            (_NOT_LESS, 1, 0, 1 << 31),
            (_RETURN, 0, 0, _NOTIFY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code += [
        (_EQUAL, 0, 5, Syscall.IOCTL),
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        (_SHIFT, 0, 0, 8),
        (_AND, 0, 0, 0xFF),
        (_EQUAL, 0, 1, _TYPE),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(_INSTRUCTION.pack(*each) for each in code)


_FILTER = _filter()


def begin_to_notify(channel: socket.socket) -> None:
    """Let calls of this process, and of all that it becomes and starts, wait for whoever :func:`received_listener`
    gives the listener to at the other end. Between fork and exec. Raises OSError.
    """
    program = _Program(len(_FILTER) // _INSTRUCTION.size, _FILTER)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    listener = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification")
    socket.send_fds(channel, [b"!"], [listener])
    os.close(listener)


def received_listener(channel: socket.socket) -> int:
    """The descriptor from the other end. Raises OSError (ENOSYS) if the program could not be given a filter."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    if not fds:
        raise OSError(errno.ENOSYS, "this kernel has no seccomp user notification")
    return fds[0]


class Call(NamedTuple):
    """A system call that waits."""

    id: int
    thread: int
    number: int
    arguments: Sequence[int]


class Listener:
    """Calls that wait, and answers to them. An answer to one whose thread was killed is lost."""

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor."""
        self.fd = fd

    def receive(self) -> Call | None:
        """The next one; None if its thread was killed before. Raises OSError."""
        data = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, data)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number, thread, _, call, _, _, *arguments = _NOTIFICATION.unpack(data)
        return Call(number, thread, call, arguments)

    def check(self, call: Call) -> None:
        """What was found by the number of its thread before is of that one, not of another one that has got the number
        since. Raises OSError (ENOENT) if the thread was killed.
        """
        fcntl.ioctl(self.fd, _IS_VALID, struct.pack("=Q", call.id))

    def answer(self, call: Call, value: int) -> None:
        """It returns that, or fails with minus an errno."""
        self._send(_RESPONSE.pack(call.id, max(value, 0), min(value, 0), 0))

    def go_on(self, call: Call) -> None:
        """The kernel carries it out."""
        self._send(_RESPONSE.pack(call.id, 0, 0, _CONTINUE))

    def give(self, call: Call, fd: int, *, closes_on_exec: bool, number: int | None = None) -> None:
        """It returns a descriptor of what ``fd`` is, this one or the lowest that is free."""
        flags = _AND_SEND | (0 if number is None else _SET_NUMBER)
        cloexec = os.O_CLOEXEC if closes_on_exec else 0
        try:
            fcntl.ioctl(self.fd, _ADD_DESCRIPTOR, _DESCRIPTOR.pack(call.id, flags, fd, number or 0, cloexec))
        except OSError as error:
            self.answer(call, -(error.errno or errno.EMFILE))

    def add(self, call: Call, fd: int, number: int) -> None:
        """Its process gets that descriptor, closed on exec, while the call waits on. Raises OSError."""
        fcntl.ioctl(self.fd, _ADD_DESCRIPTOR, _DESCRIPTOR.pack(call.id, _SET_NUMBER, fd, number, os.O_CLOEXEC))

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def close(self) -> None:
        """Calls that still wait fail with ENOSYS."""
        os.close(self.fd)
