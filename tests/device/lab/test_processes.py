"""Children end when told to, and a missing program is an answer, not an exception."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from pviommu.lab.processes import Child, run


def test_output_holds_both_streams_and_the_status() -> None:
    outcome = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (outcome.status, outcome.output) == (3, "out\nerr\n")


def test_missing_program_has_the_shells_status() -> None:
    assert run(["/no/such/program"]).status == 127


@pytest.fixture
def output(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "output").open("w+b") as file:
        yield file


def test_stop_ends_a_child_by_sigterm(output: IO[bytes]) -> None:
    child = Child()
    child.start(["sleep", "1000"], output=output)
    assert child.stop() == -15


def test_stop_ends_a_child_that_ignores_sigterm_and_what_it_started() -> None:
    reading, writing = os.pipe()
    child = Child()
    with open(reading) as report, open(writing, "wb") as output:
        child.start(["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"], output=output)
        grandchild = os.pidfd_open(int(report.readline()))
    try:
        assert child.stop(grace=0.05) == -9
        assert select.select([grandchild], [], [], 30)[0] == [grandchild]  # readable once it has ended
    finally:
        os.close(grandchild)


def test_stop_of_an_ended_child_gives_its_status(output: IO[bytes]) -> None:
    child = Child()
    child.start(["sh", "-c", "exit 4"], output=output)
    assert child.wait(30) == 4
    assert child.stop() == 4


def test_child_that_was_never_started_has_nothing_to_stop() -> None:
    child = Child()
    assert not child.started
    assert (child.poll(), child.wait(0), child.stop()) == (None, None, None)


def test_child_does_not_inherit_the_signals_held_back_while_it_starts(output: IO[bytes]) -> None:
    child = Child()
    child.start(["grep", "SigBlk", "/proc/self/status"], output=output)
    child.wait(30)
    assert Path(output.name).read_text() == "SigBlk:\t0000000000000000\n"


def by_another_thread() -> None:
    """The kernel gives a signal to any thread that does not block it."""
    thread = threading.Thread(target=signal.raise_signal, args=[signal.SIGINT])
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "interrupt", [lambda: signal.raise_signal(signal.SIGINT), by_another_thread], ids=["here", "by another thread"]
)
def test_interruption_during_start_leaves_a_child_that_can_be_stopped(
    output: IO[bytes], monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        process = popen(*args, **options)
        interrupt()
        return process

    popen = subprocess.Popen
    monkeypatch.setattr("pviommu.lab.processes.subprocess.Popen", interrupted)
    child = Child()
    with pytest.raises(KeyboardInterrupt):
        child.start(["sleep", "1000"], output=output)
    assert child.started
    assert child.stop() == -15


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_paused_child_does_not_run_until_it_is_resumed() -> None:
    reading, writing = os.pipe()
    child = Child()
    with open(reading) as report, open(writing, "wb") as output:
        child.start(["sh", "-c", "echo $$; exec sleep 1000"], output=output)
        pid = int(report.readline())
    child.pause()
    assert state(pid) == "T"
    child.resume()
    assert state(pid) != "T"
    assert child.stop() == -15


def test_killed_child_is_dead_when_kill_returns(output: IO[bytes]) -> None:
    child = Child()
    child.start(["sh", "-c", "trap '' TERM; sleep 1000"], output=output)
    child.kill()
    assert child.poll() == -9


def test_child_that_has_ended_can_be_neither_paused_nor_resumed_nor_killed(output: IO[bytes]) -> None:
    child = Child()
    child.start(["true"], output=output)
    child.wait(30)
    for act in (child.pause, child.resume, child.kill, Child().pause):
        with pytest.raises(ProcessLookupError):
            act()
