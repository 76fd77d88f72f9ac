"""The live inputs read the real world."""

from __future__ import annotations

import operator
import os
import select
import socket
import time

from pviommu.inputs import InputKind, Inputs, LiveInputs, Source
from vfio_user import transport


def test_live_inputs_are_inputs() -> None:
    inputs: Inputs = LiveInputs()

    assert inputs.now_ns() <= inputs.now_ns()


def test_a_name_costs_nothing_while_nothing_is_recorded() -> None:
    inputs, source = LiveInputs(), Source(InputKind.RING_INDEX, 2)

    assert inputs.of(source, os.close) is os.close
    assert inputs.words(source) is operator.getitem
    assert inputs.copies(source) is bytes
    assert inputs.files(source) is os.pread
    assert inputs.received(source) is transport.receive


def test_a_source_says_what_it_is() -> None:
    assert str(Source(InputKind.RING_INDEX, 2)) == "index of ring 2"
    assert str(Source(InputKind.CLOCK)) == "clock"


def test_a_word_is_read_by_its_index() -> None:
    shared = memoryview(bytearray(b"\1\0\0\0\2\0\0\0")).cast("I")

    assert LiveInputs.word(shared, 1) == 2


def test_a_copy_does_not_follow_later_changes() -> None:
    shared = bytearray(b"before")

    copy = LiveInputs.copy(memoryview(shared))
    shared[:] = b"after!"

    assert copy == b"before"


def test_a_file_is_read_up_to_its_end() -> None:
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.write(fd, b"0123456789")

    assert LiveInputs.pread(fd, 100, 4) == b"456789"
    os.close(fd)


def test_a_socket_gives_bytes_and_descriptors_and_then_its_end() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours:
        with theirs:
            socket.send_fds(theirs, [b"hello"], [writing])
        received = LiveInputs.receive(ours)
        end = LiveInputs.receive(ours)

    assert received is not None
    assert (received[0], len(received[1])) == (b"hello", 1)
    assert end is None
    for fd in (reading, writing, *received[1]):
        os.close(fd)


def test_waiting_names_the_descriptors_that_are_ready() -> None:
    reading, writing = os.pipe()
    poller = select.epoll()
    poller.register(reading, select.EPOLLIN)
    assert list(LiveInputs.wait(poller, 0)) == []

    os.write(writing, b"x")

    assert list(LiveInputs.wait(poller, -1)) == [(reading, select.EPOLLIN)]
    assert list(LiveInputs.wait(poller, 0.1)) == [(reading, select.EPOLLIN)]
    os.close(reading)
    os.close(writing)
    poller.close()


def test_a_wait_of_less_than_a_millisecond_is_one() -> None:
    poller = select.epoll()
    taken = []
    for _ in range(20):
        start = time.monotonic_ns()
        assert list(LiveInputs.wait(poller, 0.1)) == []
        taken.append(time.monotonic_ns() - start)
    assert min(taken) >= 100_000
    assert min(taken) < 900_000  # a busy machine may make any one of them long
    poller.close()
