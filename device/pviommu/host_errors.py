"""Errors of the host, which are reported in one line, because the program is not at fault."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

__all__ = ["is_host_error", "is_lack_of_room", "named", "write_whole"]

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
    """Write a file so that a reader sees all of it or what was there before. Raises OSError that names ``path``."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
