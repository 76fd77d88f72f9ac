"""The pidfile: whole when it is there, never taken from somebody else, and told apart from a stale one by its lock."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pviommu.process import pidfile
from pviommu.process.pidfile import PidFile, PidFileError

pytestmark = pytest.mark.row("server", 84)

HOLD = """
import sys; from pathlib import Path; from pviommu.process.pidfile import PidFile, PidFileError
file = PidFile(Path(sys.argv[1]))
try: file.make()
except PidFileError as error: sys.exit(str(error))
print('made', flush=True); sys.stdin.read(); file.remove()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the pidfile until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "made\n"
    return process


def test_it_names_the_process_and_is_removed_without_leaving_anything(path: Path) -> None:
    file = PidFile(path)
    file.make()
    assert path.read_text() == f"{os.getpid()}\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["pid"]
    file.remove()
    assert list(path.parent.iterdir()) == []


def test_it_is_whole_at_the_moment_in_which_it_appears(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def link(source: Path, target: Path) -> None:
        seen.append((source.read_text(), target.exists()))

    monkeypatch.setattr(os, "link", link)
    file = PidFile(path)
    file.make()
    assert seen == [(f"{os.getpid()}\n", False)]
    file.remove()


def test_that_of_a_running_server_is_refused_with_its_process_and_stays(path: Path) -> None:
    with holder(path) as process:
        file = PidFile(path)
        with pytest.raises(PidFileError, match=f"pid: belongs to a running server, process {process.pid}$"):
            file.make()
        file.remove()
        assert path.read_text() == f"{process.pid}\n"
        assert [entry.name for entry in path.parent.iterdir()] == ["pid"]
    assert not path.exists()


def test_that_of_a_server_that_was_killed_is_replaced_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with holder(path) as process:
        process.kill()
    assert path.read_text() == f"{process.pid}\n"
    file = PidFile(path)
    with caplog.at_level(logging.INFO):
        file.make()
    assert path.read_text() == f"{os.getpid()}\n"
    assert f"process {process.pid} does not hold it" in caplog.text
    file.remove()


@pytest.mark.parametrize("content", [b"", b"1\n", str(os.getppid()).encode()])
def test_a_number_that_is_another_programs_by_now_is_stale(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    file = PidFile(path)
    file.make()
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()


@pytest.mark.parametrize("content", [b"precious\n", b"12 13\n", b"1" * 21])
def test_a_file_that_is_no_pidfile_is_not_lost(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PidFileError, match="holds something other than a process number"):
        PidFile(path).make()
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling"])
def test_what_is_no_regular_file_is_refused_and_stays(path: Path, kind: str) -> None:
    target = path.with_name("target")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "link":
            target.write_text("1\n")
        path.symlink_to(target)
    with pytest.raises(PidFileError, match="pid: must be a regular file"):
        PidFile(path).make()
    assert os.path.lexists(path)
    assert not target.exists() or target.read_text() == "1\n"


def test_another_file_in_its_place_is_not_removed(path: Path) -> None:
    file = PidFile(path)
    file.make()
    path.unlink()
    path.write_text("1\n")
    file.remove()
    assert path.read_text() == "1\n"


def test_one_that_is_gone_already_is_no_problem_at_the_end(path: Path) -> None:
    file = PidFile(path)
    file.make()
    path.unlink()
    file.remove()


def test_a_folder_that_is_missing_is_said_with_the_path(path: Path) -> None:
    path = path / "none" / "pid"
    with pytest.raises(PidFileError, match=f"--pidfile {path}: No such file or directory"):
        PidFile(path).make()


def test_of_two_that_find_the_same_stale_file_only_one_replaces_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("1\n")
    first, second = PidFile(path), PidFile(path)
    real = fcntl.flock
    made = []

    def flock(fd: int, operation: int) -> None:
        if not made and os.fstat(fd).st_ino == path.stat().st_ino:  # the stale file was opened, and is not locked yet
            made.append(True)
            first.make()
        real(fd, operation)

    monkeypatch.setattr(pidfile.fcntl, "flock", flock)
    with pytest.raises(PidFileError, match="belongs to a running server"):
        second.make()
    assert made
    first.remove()
    assert not path.exists()
