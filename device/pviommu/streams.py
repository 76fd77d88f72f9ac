"""Standard output and error of a command: a full disk or a reader that has ended stops no work, and is reported at the
end."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from types import TracebackType
from typing import Any, Self, TextIO

from .exit_status import ExitStatus

__all__ = ["Streams"]


class Streams:
    """A context in which ``sys.stdout`` and ``sys.stderr`` raise nothing when they cannot be written.

    What cannot be written is dropped, and the work goes on. :meth:`status` says it afterwards. Streams that are no
    descriptors, as tests have, stay as they are.
    """

    def __init__(self) -> None:
        self._before: tuple[TextIO | None, TextIO | None] = None, None
        self._output: _Descriptor | None = None

    def __enter__(self) -> Self:
        self._before = sys.stdout, sys.stderr
        closed = _occupy()
        sys.stdout, self._output = _safe(sys.stdout, 1, closed)
        sys.stderr, _ = _safe(sys.stderr, 2, closed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        sys.stdout, sys.stderr = self._before

    def status(self, status: int) -> int:
        """The exit status of a command that ended with ``status``: 3 instead of 0 if its output was lost."""
        self._flush()
        problem = None if self._output is None else self._output.problem
        if problem is None:
            return status
        print(f"pviommu: standard output cannot be written: {problem.strerror}", file=sys.stderr, flush=True)
        return status or ExitStatus.ENVIRONMENT

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()


class _Descriptor(io.FileIO):
    """A descriptor whose first failure is kept in ``problem``; from then on, writes go nowhere."""

    problem: OSError | None = None
    was_closed = False
    """before it was given to /dev/null"""

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        while self.problem is None:
            try:
                if self.was_closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                written: int | None = super().write(data)
            except OSError as problem:
                self.problem = problem
                break
            if written is not None:
                return written
            self._wait()
        return size

    def _wait(self) -> None:
        """Until somebody reads: others, who share it, may have made the descriptor non-blocking."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        poller.poll()


def _occupy() -> set[int]:
    """Give standard streams that are closed to /dev/null, so that no other file gets their numbers; which were."""
    closed = set()
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
        closed.add(fd)
    os.close(fd)
    return closed


def _safe(stream: TextIO | None, number: int, closed: set[int]) -> tuple[TextIO, _Descriptor | None]:
    """``stream`` over a descriptor that fails silently, and that descriptor; as it is if there is none below it."""
    try:
        number = number if stream is None else stream.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        assert stream is not None
        return stream, None
    if stream is not None:
        stream.flush()
    raw = _Descriptor(number, "w", closefd=False)
    raw.was_closed = number in closed
    encoding = "utf-8" if stream is None else stream.encoding
    by_line = number == 2 or raw.isatty()
    text = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)
    return text, raw
