"""The package offers what it says, and its documented server loop serves its documented client."""

from __future__ import annotations

import select
import threading
from pathlib import Path
from typing import Any

import vfio_user
from vfio_user import Client, RegionIndex, Session, State, transport


def test_every_name_in_all_exists_and_is_sorted() -> None:
    assert [name for name in vfio_user.__all__ if not hasattr(vfio_user, name)] == []
    assert len(set(vfio_user.__all__)) == len(vfio_user.__all__)


def test_documented_server_loop_serves_one_client_after_another(device: Any, tmp_path: Path, no_fd_leak: None) -> None:
    listener = transport.listen(tmp_path / "dev.sock")

    def serve() -> None:
        for _ in range(2):
            select.select([listener], [], [], 20)
            sock, session = transport.accept(listener), Session(device)
            while session.state is not State.CLOSED and select.select([sock], [], [], 20)[0]:
                chunk = transport.receive(sock)
                if chunk is None:
                    session.eof()
                else:
                    session.receive(*chunk)
                if transport.flush(sock, session.outgoing) is transport.Flush.CLOSED:
                    session.eof()
            sock.close()

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        for value in (1, 2):
            with Client.connect(tmp_path / "dev.sock") as client:
                client.region_write(RegionIndex.BAR0, 0x10, bytes([value]), posted=True)
                assert client.region_read(RegionIndex.BAR0, 0x10, 1) == bytes([value])
        thread.join()
    assert device.calls.count("disconnected") == 2
