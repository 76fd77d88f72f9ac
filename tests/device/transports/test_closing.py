"""What clients have sent is being closed: how that is going is asked, which is an input, only while it may go on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pviommu.inputs import LiveInputs
from pviommu.transports.closing import Closing


class Counting(LiveInputs):
    """Inputs that count how often each is taken."""

    def __init__(self) -> None:
        self.taken = 0

    def of(self, _source: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.taken += 1
            return call(*arguments)

        return counted


@pytest.fixture
def inputs() -> Counting:
    return Counting()


@pytest.fixture
def closing(inputs: Counting) -> Closing:
    return Closing(inputs, "dma0", lambda: None)


def state(closing: Closing) -> tuple[bool, bool, bool]:
    return closing.busy, closing.is_stuck, closing.full


def test_nothing_is_asked_of_one_that_was_given_nothing(closing: Closing, inputs: Counting) -> None:
    assert state(closing) == (False, False, False)
    assert inputs.taken == 0


def test_it_is_asked_until_nothing_is_left(closing: Closing, inputs: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(writer)

    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", no_more)
        closing.close([reader])
        assert state(closing) == (True, True, False)
        assert state(closing) == (True, True, False)
    assert inputs.taken == 7
    assert not closing.is_stuck  # asking is what tries again
    closing.wait(10.0)
    assert not closing.busy
    taken = inputs.taken
    assert state(closing) == (False, False, False)
    assert inputs.taken == taken


def test_the_end_of_a_connection_may_have_to_wait_too(closing: Closing) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"unread")
    closing.close_socket(ours)
    closing.wait(10.0)
    assert not closing.busy
    assert ours.fileno() == -1
    theirs.close()
