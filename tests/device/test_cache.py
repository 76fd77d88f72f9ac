"""The cache folder: where it is, and whose, and what is said where there is none that can be used."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pviommu import cache
from pviommu.cache import CacheError, cache_folder, check_folder
from pviommu.cli import main
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.provision import cache_folder as cache_of_the_lab
from pviommu.native import build

NOBODY = 65534


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Root may enter every folder: give that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked_home() -> Iterator[Path]:
    """A home folder that may not be entered; pytest's own folders cannot be, by another user."""
    with TemporaryDirectory(prefix="pviommu-") as name:
        os.chmod(name, 0o755)
        home = Path(name) / "home"
        home.mkdir(mode=0)
        yield home
        home.chmod(0o700)


@pytest.fixture
def noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system says that it is mounted noexec."""
    real = os.statvfs

    class Statvfs:
        def __init__(self, path: Path) -> None:
            self.f_flag = real(path).f_flag | os.ST_NOEXEC

    monkeypatch.setattr(cache.os, "statvfs", Statvfs)


def test_it_is_below_xdg_cache_home_else_below_home() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/pviommu")
    assert cache_folder({"XDG_CACHE_HOME": "", "HOME": "/h"}) == Path("/h/.cache/pviommu")
    assert cache_folder({}) == Path(pwd.getpwuid(os.getuid()).pw_dir).resolve() / ".cache/pviommu"


@pytest.mark.row("server", 110)
def test_a_user_without_any_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)

    with pytest.raises(CacheError, match=f"no home folder: HOME is not set, and user {os.getuid()} has no entry"):
        cache_folder({})
    with pytest.raises(EnvironmentProblem, match=f"there is no home folder.*; {cache.HOW}"):
        cache_of_the_lab({})
    with pytest.raises(build.LibraryError, match=f"there is no home folder.*; {cache.HOW}"):
        build.find_library({})


@pytest.mark.row("server", 110)
def test_a_home_that_may_not_be_entered_is_named(locked_home: Path) -> None:
    environment = {"HOME": str(locked_home), "PATH": os.environ["PATH"]}
    words = f"the cache folder {locked_home}/.cache/pviommu cannot be entered: Permission denied"

    with an_ordinary_user():
        with pytest.raises(build.LibraryError, match=words):
            build.find_library(environment)
        with pytest.raises(build.BuildError, match=words):
            build.build(environment)
        with pytest.raises(EnvironmentProblem, match=words):
            cache_of_the_lab(environment)


@pytest.mark.row("server", 110)
@pytest.mark.parametrize("words", [["build-core"], ["lab", "run", "--only-setup"]], ids=" ".join)
def test_what_needs_a_cache_ends_with_status_3_and_one_line(
    words: list[str], locked_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(locked_home))
    import_module("pviommu.lab.run")  # an ordinary user may not be allowed to read root's Python

    with an_ordinary_user():
        assert main(words) == 3

    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be entered: Permission denied" in said
    assert "set XDG_CACHE_HOME to a folder of your own" in said


@pytest.mark.row("server", 110)
def test_the_doctor_says_it_and_goes_on(
    locked_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(locked_home))

    with an_ordinary_user():
        assert main(["doctor"]) == 3

    said = capsys.readouterr().out
    assert f"cache             the cache folder {locked_home}/.cache/pviommu cannot be entered" in said
    assert "memory" in said


@pytest.mark.row("server", 111)
def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pviommu"
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242424)
    if os.stat(folder).st_uid == 0:
        check_folder(folder)  # root's is as good as one's own
        os.chown(folder, NOBODY, NOBODY)

    with pytest.raises(CacheError, match=r"belongs to user \w+, and this is user 4242424"):
        check_folder(folder)


@pytest.mark.row("server", 111)
def test_a_folder_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pviommu"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(CacheError, match="can be written by everybody"):
        check_folder(folder)


@pytest.mark.row("server", 112)
def test_a_cache_on_noexec_is_named_before_anything_is_made(tmp_path: Path, noexec: None) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "deep/cache"), "PATH": os.environ["PATH"]}

    for find in (build.find_library, build.build, cache_of_the_lab):
        with pytest.raises(
            (build.LibraryError, build.BuildError, EnvironmentProblem),
            match="is on a file system that is mounted noexec: nothing runs from it",
        ):
            find(environment)
    assert list(tmp_path.iterdir()) == []
