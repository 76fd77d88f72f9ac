"""Children end when told to, and a missing program is an answer, not an exception."""

from __future__ import annotations

import subprocess

from pviommu.lab.processes import run, start, stop


def test_output_holds_both_streams_and_the_status() -> None:
    outcome = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (outcome.status, outcome.output) == (3, "out\nerr\n")


def test_missing_program_has_the_shells_status() -> None:
    assert run(["/no/such/program"]).status == 127


def test_stop_ends_a_child_by_sigterm() -> None:
    child = start(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert stop(child) == -15


def test_stop_ends_a_child_that_ignores_sigterm() -> None:
    command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"]
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert stop(child, grace=0.05) == -9


def test_stop_of_an_ended_child_gives_its_status() -> None:
    child = start(["sh", "-c", "exit 4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child.wait(30)
    assert stop(child) == 4
