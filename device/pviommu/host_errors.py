"""Errors of the host, which are reported in one line, because the program is not at fault."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

__all__ = ["is_host_error", "is_lack_of_room", "is_special", "named", "write_whole"]

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
_HOST = _NO_ROOM | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def is_host_error(error: OSError) -> bool:
    """Whether the machine does not allow something, or has no more of it. Other errors are this program's own."""
    return error.errno in _HOST


def is_lack_of_room(error: OSError) -> bool:
    """Whether a file is all right, but there is no more room for it."""
    return error.errno in _NO_ROOM


def named(error: OSError) -> str:
    """The error with the file that it is about, if that is known."""
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or what was there before. A device, a FIFO and the like are written
    into, and stay what they are; so does a symbolic link. Raises OSError that names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if is_special(path):
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_special(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder, as a device or a FIFO."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
