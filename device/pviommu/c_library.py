"""Which libvfio-user this process uses, that of the cache included, where :mod:`pviommu.lab.libvfio_user` puts it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from libvfio_user import Library, LibraryError, find_library
from libvfio_user.raw import SONAME

from .cache import CacheError, cache_folder, check_folder, library_problem

__all__ = ["HOW", "find", "whole_library"]

HOW = "build one: pviommu build-libvfio-user"
"""What to do without a library."""


def find(environment: Mapping[str, str] = os.environ, *, soname: str = SONAME) -> Library:
    """The library that LIBVFIO_USER names, an installed one, or the one that was built last.

    Raises :class:`libvfio_user.LibraryError`, and :class:`.cache.CacheError` for a cache that would be looked at.
    """
    try:
        return find_library(environment, _built(environment), soname)
    except LibraryError as error:
        error.how = HOW
        raise


def _built(environment: Mapping[str, str]) -> Iterator[Path]:
    folder = cache_folder(environment)
    check_folder(folder)
    kept = sorted(folder.glob("libvfio-user-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
    yield from (library for library in map(whole_library, kept) if library is not None)


def whole_library(folder: Path) -> Path | None:
    """The library in its folder in the cache, if it is whole and this user may run it. Raises CacheError."""
    for path in sorted(folder.glob("libvfio-user-*.so")):
        try:
            if not library_problem(path):
                return path
        except OSError as problem:
            raise CacheError(f"{path} cannot be read: {problem.strerror}; remove {folder}") from problem
    return None
