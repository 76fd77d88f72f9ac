"""The user's cache folder: where it is, and whether files in it may be executed."""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "HOW",
    "CacheError",
    "cache_folder",
    "check_folder",
    "content_digest",
    "library_problem",
    "owner_problem",
]

HOW = "set XDG_CACHE_HOME to a folder of your own"


class CacheError(Exception):
    """No usable cache folder; the text says why, and :data:`HOW` what to do."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/pviommu``, else ``~/.cache/pviommu``, which need not exist. Raises :class:`CacheError`."""
    base = environment.get("XDG_CACHE_HOME") or os.path.join(_home(environment), ".cache")
    return Path(os.path.realpath(base)) / "pviommu"


def _home(environment: Mapping[str, str]) -> str:
    if home := environment.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError as error:
        raise CacheError(f"there is no home folder: HOME is not set, and user {os.getuid()} has no entry") from error


def check_folder(folder: Path) -> None:
    """Raise :class:`CacheError` for a cache folder from which nothing may be executed. It need not exist."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CacheError(f"the cache folder {folder} cannot be entered: {error.strerror}") from error
    else:
        if problem := _folder_problem(folder, found):
            raise CacheError(f"the cache folder {folder} {problem}")
    if _is_noexec(folder):
        raise CacheError(f"the cache folder {folder} is on a file system that is mounted noexec: nothing runs from it")


def _folder_problem(folder: Path, found: os.stat_result) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if problem := owner_problem(found):
        return problem
    return "" if os.access(folder, os.R_OK | os.X_OK, effective_ids=True) else "cannot be entered: Permission denied"


def owner_problem(found: os.stat_result) -> str:
    """Why this user must not execute a file, as the end of a sentence; empty if it may."""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {_user(found.st_uid)}, and this is user {_user(os.geteuid())}"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    return ""


def library_problem(path: Path) -> str:
    """Why a library whose name ends with the digest of its content must not be loaded, as the end of a sentence.

    Empty if it may be. Raises OSError.
    """
    with path.open("rb") as file:
        if problem := owner_problem(os.fstat(file.fileno())):
            return problem
        whole = path.stem.endswith(content_digest(file.read()))
        return "" if whole else "is damaged: its content is not what was built"


def content_digest(data: bytes) -> str:
    """What the name of a built library ends with."""
    return hashlib.sha256(data).hexdigest()[:32]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_noexec(folder: Path) -> bool:
    """Of the file system on which ``folder`` is or will be."""
    for place in (folder, *folder.parents):
        try:
            return bool(os.statvfs(place).f_flag & os.ST_NOEXEC)
        except OSError:
            continue
    return False
