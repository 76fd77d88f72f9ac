"""Signalling eventfds of a peer that may do anything with them, without ever blocking.

The peer shares the open file: at any moment, even between a check and a write, it can make the file blocking again and
fill its counter. A write is therefore never safe. Signals that the kernel itself sends are: they add to the counter if
it has room, and return in any case. The completion of an asynchronous read is one (``IOCB_FLAG_RESFD``), so a signal
here is a read of no bytes, which completes at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import platform
import select
from collections.abc import Callable

__all__ = ["AsynchronousSignals", "signal", "signal_context"]

log = logging.getLogger(__name__)

_ONE = (1).to_bytes(8, "little")
_COMPLETIONS = 64
_EVENT_SIZE = 32  # struct io_event
# Numbers of io_setup, io_getevents and io_submit; glibc has no wrappers.
_CALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
# Words of struct iocb of linux/aio_abi.h: the command is 0, a read, of no bytes.
_IOCB_WORDS, _FILE, _FLAGS, _SIGNALLED = 16, 5, 14, 15
_FLAG_RESFD = 1


class AsynchronousSignals:
    """One context of Linux's asynchronous I/O, whose completions signal eventfds. It has no descriptor to close."""

    def __init__(self) -> None:
        """Raises :class:`OSError` if the kernel has no asynchronous I/O, or its completions do not signal."""
        if platform.machine() not in _CALLS:
            raise OSError(errno.ENOSYS, f"no numbers of system calls for {platform.machine()}")
        set_up, get_events, submit = _CALLS[platform.machine()]
        self._context = ctypes.c_ulong()
        self._iocb = (ctypes.c_uint32 * _IOCB_WORDS)()
        self._iocb[_FLAGS] = _FLAG_RESFD
        self._iocbs = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._events = ctypes.create_string_buffer(_COMPLETIONS * _EVENT_SIZE)
        self._no_time = (ctypes.c_long * 2)()
        self._completed = ctypes.c_uint32()
        # With the interpreter's lock held: none of these calls waits for anything.
        call = ctypes.PyDLL(None, use_errno=True).syscall
        call.restype = ctypes.c_long
        if call(ctypes.c_long(set_up), ctypes.c_long(2 * _COMPLETIONS), ctypes.byref(self._context)):
            raise _error("io_setup")
        one, many, none = ctypes.c_long(1), ctypes.c_long(_COMPLETIONS), ctypes.c_long(0)
        events, no_time = ctypes.byref(self._events), ctypes.byref(self._no_time)
        self._submit = functools.partial(call, ctypes.c_long(submit), self._context, one, self._iocbs)
        self._take = functools.partial(call, ctypes.c_long(get_events), self._context, none, many, events, no_time)
        self._try()

    @property
    def context(self) -> tuple[int, int]:
        """For native code that signals in the same way, in this thread: the context, and the address of the number, of
        32 bits, of completions that nobody has taken yet. Who makes it 64 takes them, and makes it 0.
        """
        return self._context.value, ctypes.addressof(self._completed)

    def _try(self) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self.signal(fd)
            os.eventfd_read(fd)
        finally:
            os.close(fd)

    def signal(self, fd: int) -> None:
        """Add 1 to the counter of an eventfd, unless it is full. Raises :class:`OSError` if ``fd`` is not an
        eventfd."""
        self._iocb[_FILE] = self._iocb[_SIGNALLED] = fd
        if self._submit() != 1:
            raise _error("io_submit")
        self._completed.value += 1
        if self._completed.value >= _COMPLETIONS:
            self._take()
            self._completed.value = 0


def signal(fd: int) -> None:
    """Add 1 to the counter of an eventfd. A full one is an interrupt not taken yet: this one merges with it."""
    _signaller()(fd)


def signal_context() -> tuple[int, int] | None:
    """See :attr:`AsynchronousSignals.context`; None if this kernel does not allow asynchronous I/O."""
    made: AsynchronousSignals | None = getattr(_signaller(), "__self__", None)
    return made.context if made is not None else None


@functools.cache
def _signaller() -> Callable[[int], None]:
    try:
        return AsynchronousSignals().signal
    except OSError as error:
        log.warning(
            "eventfds are signalled by writing to them: this kernel, or its limit fs.aio-max-nr, does not allow "
            "asynchronous I/O (%s). A hostile client can block the server by this",
            error,
            extra={"event": "no-asynchronous-io"},
        )
        return _write


def _write(fd: int) -> None:
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if poll.poll(0):
        with contextlib.suppress(BlockingIOError):
            os.write(fd, _ONE)


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
