"""Forked processes are what new interpreters would be: they get what they are told, and who asked waits for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from . import forking

TOPOLOGY = Path(__file__).parents[1] / "qemu-configs" / "lab.toml"
PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def _forker() -> None:
    forking.forker()  # its descriptor is none of what a test leaves open


@pytest.mark.parametrize("words", [["topology", "list"], ["topology", "check", "/nowhere"], ["topology", "--help"]])
def test_output_and_status_are_those_of_the_command(words: list[str], pviommu_command: list[str]) -> None:
    done = forking.run(words, os.environ, PATIENCE_S)

    whole = subprocess.run([*pviommu_command, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (whole.returncode, whole.stdout, whole.stderr)


def test_environment_and_folder_are_those_of_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(TOPOLOGY.read_text())

    by_folder = forking.run(["topology", "check", "own.toml"], os.environ, PATIENCE_S)
    by_environment = forking.run(["ctl", "status"], {"PVIOMMU_CTL": "/nowhere/else"}, PATIENCE_S)

    assert by_folder.returncode == 0, by_folder.stderr
    assert "/nowhere/else" in by_environment.stderr


def kinds(pid: int) -> list[str]:
    """What the open descriptors of a process are, by number: sockets and pipes without saying which."""
    folder = f"/proc/{pid}/fd"
    targets = []
    for name in sorted(os.listdir(folder), key=int):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(f"{folder}/{name}"))
    return [target.partition(":[")[0] if target[0] != "/" else target for target in targets]


def test_a_process_has_the_descriptors_that_it_is_given_and_no_others(
    tmp_path: Path, pviommu_command: list[str]
) -> None:
    folders = [tmp_path / "forked", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
    forked, whole = (["serve", str(TOPOLOGY), "--socket-dir", str(folder)] for folder in folders)
    event = os.eventfd(0)
    processes = [
        forking.fork(forked, os.environ, stderr=True, fds=[event]),
        subprocess.Popen(
            [*pviommu_command, *whole],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[event],
            text=True,
        ),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, event)
        for process in processes:
            assert process.stderr is not None
            stack.enter_context(process.stderr)
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.kill)
            assert "listening" in process.stderr.readline()
            assert os.readlink(f"/proc/{process.pid}/fd/{event}") == "anon_inode:[eventfd]"
        deadline = time.monotonic() + PATIENCE_S
        while (found := [sorted(kinds(process.pid)) for process in processes]) and found[0] != found[1]:
            assert time.monotonic() < deadline, found  # they still open files after they have said that they listen


def test_it_is_a_child_whose_end_is_waited_for(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    process = forking.fork(["serve", str(TOPOLOGY), "--socket-dir", str(tmp_path)], os.environ)

    assert f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{process.pid}/status").read_text()
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()

    assert process.wait(PATIENCE_S) == process.poll() == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == before


def test_only_forked_processes_become_children() -> None:
    forking.run(["topology", "list"], os.environ, PATIENCE_S)
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        orphan = int(shell.stdout.readline())
    try:
        assert f"PPid:\t{os.getpid()}\n" not in Path(f"/proc/{orphan}/status").read_text()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_command_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forking.run(["serve", str(TOPOLOGY), "--socket-dir", str(tmp_path)], os.environ, 0.3)


def test_a_forker_ends_with_who_made_it() -> None:
    own = forking.Forker()
    own.close()

    assert not Path(f"/proc/{own.pid}").exists()


def test_in_the_place_of_popen_it_forks_the_command_and_starts_what_is_another(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        forked = forking.popen([*forking.PROGRAM, "topology", "list"], stdin=subprocess.DEVNULL, stdout=file)
        other = forking.popen(["echo", "started"], stdin=subprocess.DEVNULL, stdout=file)
        assert (type(forked), type(other)) == (forking.Forked, subprocess.Popen)
        assert (forked.wait(PATIENCE_S), other.wait(PATIENCE_S)) == (0, 0)
    lines = output.read_text().splitlines()
    assert any(line.startswith("one-engine") for line in lines)
    assert "started" in lines


@pytest.mark.parametrize("own", [True, False])
def test_a_process_leads_a_session_of_its_own_if_it_is_to(tmp_path: Path, own: bool) -> None:
    command = [*forking.PROGRAM, "serve", str(TOPOLOGY), "--socket-dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = forking.popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=own, env=os.environ
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while "listening" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert (os.getsid(process.pid) == process.pid) is own
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
