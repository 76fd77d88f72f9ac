"""The other process of a bare exchange."""

from __future__ import annotations

import os
import socket
import threading

from pviommu.bench import partner
from pviommu.bench.mechanisms import STOP_WORD


def test_a_message_comes_back_until_the_socket_ends() -> None:
    near, far = socket.socketpair()
    thread = threading.Thread(target=partner.main, args=(["echo", str(far.detach())],))
    thread.start()
    near.send(b"wake")
    assert near.recv(64) == b"wake"
    near.close()
    thread.join()


def test_words_end_when_they_are_told_to() -> None:
    fd = os.memfd_create("words")
    os.truncate(fd, 4096)
    os.pwrite(fd, b"\1", 4 * STOP_WORD)
    assert partner.main(["words", str(fd)]) == 0
    os.close(fd)
