"""Which libvfio-user is taken, and what of the cache is looked at for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvfio_user import LibraryError
from pviommu import c_library
from pviommu.cache import CacheError

NONE = "libvfio-user-no-such.so"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Its cache can be written by everybody."""
    folder = tmp_path / "pviommu"
    folder.mkdir()
    folder.chmod(0o777)
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_a_cache_that_is_not_asked_is_not_judged(environment: dict[str, str]) -> None:
    with pytest.raises(LibraryError, match=r"libc\.so\.6: it is of another interface"):
        c_library.find(environment | {"LIBVFIO_USER": ""}, soname="libc.so.6")
    with pytest.raises(LibraryError, match="LIBVFIO_USER names no file"):
        c_library.find(environment | {"LIBVFIO_USER": "/no/such.so"})


def test_a_cache_that_is_asked_is_judged(environment: dict[str, str]) -> None:
    with pytest.raises(CacheError, match="can be written by everybody"):
        c_library.find(environment, soname=NONE)


def test_no_older_library_is_read_when_the_last_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("libvfio-user-1", "libvfio-user-2"):
        (tmp_path / "pviommu" / name).mkdir(parents=True)
    read: list[Path] = []

    def whole(folder: Path) -> Path:
        read.append(folder)
        return folder / "no.so"

    monkeypatch.setattr(c_library, "whole_library", whole)
    with pytest.raises(LibraryError, match="cannot be loaded"):
        c_library.find({"XDG_CACHE_HOME": str(tmp_path)}, soname=NONE)
    assert len(read) == 1


def test_what_to_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="none is installed, and LIBVFIO_USER names none; build one: pviommu build-"):
        c_library.find({"XDG_CACHE_HOME": str(tmp_path)}, soname=NONE)
