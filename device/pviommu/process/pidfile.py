"""The pidfile: it exists while the server serves, is always complete, and never replaces that of a running server.

A running server holds a lock (flock) on its pidfile, which the kernel drops however the process ends. So a pidfile
that can be locked is stale, whether its process is gone or its number is another program's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PidFile", "PidFileError"]

log = logging.getLogger(__name__)

_MOST_DIGITS = 20
_Identity = tuple[int, int]
"""Device and inode."""


class PidFileError(Exception):
    """The file cannot be made, or must not be replaced; the text names it and says why."""


class PidFile:
    """The pidfile at ``path`` of this process, from :meth:`make` to :meth:`remove`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def make(self) -> None:
        """Put it in its place, at once with all that it holds. Raises :class:`PidFileError`."""
        try:
            with self._written() as written:
                while not self._takes_place(written):  # another process was faster: look again
                    pass
        except OSError as error:
            raise PidFileError(f"--pidfile {self._path}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove what was made, unless another file has its name by now."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if _identity(os.lstat(self._path)) == _identity(os.fstat(self._fd)):
                os.unlink(self._path)
        os.close(self._fd)
        self._fd = -1

    @contextlib.contextmanager
    def _written(self) -> Iterator[Path]:
        """A locked file of another name that holds what the pidfile is to hold."""
        path = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, f"{os.getpid()}\n".encode())
            yield path
        except BaseException:
            os.close(fd)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):  # it was renamed
                os.unlink(path)
        self._fd = fd

    def _takes_place(self, written: Path) -> bool:
        """Give ``written`` the name of the pidfile. False if what has that name changed meanwhile."""
        try:
            os.link(written, self._path)
        except FileExistsError:
            return self._replace(written)
        return True

    def _replace(self, written: Path) -> bool:
        try:
            if not stat.S_ISREG(os.lstat(self._path).st_mode):
                raise PidFileError(f"--pidfile {self._path}: must be a regular file")
            old = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            said = os.read(old, _MOST_DIGITS + 1).strip()
            try:
                fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"belongs to a running server, process {said.decode(errors='replace') or '?'}"
                raise PidFileError(f"--pidfile {self._path}: {text}") from None
            if said and not (said.isdigit() and len(said) <= _MOST_DIGITS):
                raise PidFileError(f"--pidfile {self._path}: holds something other than a process number")
            if not self._is_at_path(old):
                return False
            os.rename(written, self._path)
        finally:
            os.close(old)
        number = said.decode() or "none"
        log.info(
            "pidfile %s was stale and is replaced: process %s does not hold it",
            *(self._path, number),
            extra={"event": "pidfile-stale", "fields": {"process": number}},
        )
        return True

    def _is_at_path(self, fd: int) -> bool:
        try:
            return _identity(os.lstat(self._path)) == _identity(os.fstat(fd))
        except FileNotFoundError:
            return False


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino
