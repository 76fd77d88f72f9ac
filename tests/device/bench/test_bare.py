"""Bare exchanges with another process: they answer, and leave no process behind."""

from __future__ import annotations

import pytest

from pviommu.bench.bare import bare_echo, bare_words
from pviommu.bench.mechanisms import PythonMechanism
from pviommu.lab.problems import RunError
from pviommu.lab.processes import Child


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Every child that is made."""
    made: list[Child] = []
    plain = Child.__init__

    def note(child: Child) -> None:
        plain(child)
        made.append(child)

    monkeypatch.setattr(Child, "__init__", note)
    return made


def test_words_are_returned(children: list[Child]) -> None:
    with bare_words(PythonMechanism()) as words:
        assert words.rounds(10) > 0
        assert words.rounds(1) > 0
    assert children[0].poll() is not None


def test_messages_are_returned(children: list[Child]) -> None:
    with bare_echo() as echo:
        assert echo.rounds(2) > 0
    assert children[0].poll() is not None


def test_a_failure_meanwhile_ends_the_other_process_too(children: list[Child]) -> None:
    with pytest.raises(RunError, match="enough"):
        with bare_words(PythonMechanism()):
            raise RunError("enough")
    assert children[0].poll() is not None
