"""Which library is used: the one that ``LIBVFIO_USER`` names, else an installed one, else the first of others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .raw import SONAME, Library, LibraryError

__all__ = ["VARIABLE", "find_library"]

VARIABLE = "LIBVFIO_USER"


def find_library(
    environment: Mapping[str, str] = os.environ, others: Iterable[Path] = (), soname: str = SONAME
) -> Library:
    """Load the library. Raises :class:`LibraryError`: a library that is named or installed is never passed over."""
    if named := environment.get(VARIABLE):
        if not os.path.isfile(named):
            raise LibraryError(named, f"{VARIABLE} names no file")
        return Library(os.path.abspath(named))
    try:
        return Library(soname)
    except LibraryError as error:
        if not error.is_missing:
            raise
    for path in others:
        return Library(path)
    raise LibraryError(soname, f"none is installed, and {VARIABLE} names none")
