"""What a service manager is told."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from pviommu.process.service_manager import notify

pytestmark = pytest.mark.row("server", 89)


@pytest.mark.parametrize("abstract", [False, True])
def test_assignments_are_lines_of_one_datagram(tmp_path: Path, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        notify("READY=1", "STATUS=here", environment={"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert manager.recv(4096, socket.MSG_DONTWAIT) == b"READY=1\nSTATUS=here"


def test_without_a_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    notify("READY=1", environment={})
    assert caplog.records == []


@pytest.mark.parametrize("address", ["relative", "vsock:2:1234", "/nonexistent/notify", "@nobody", "/" * 200])
def test_one_that_cannot_be_reached_is_a_line_in_the_log(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        notify("READY=1", environment={"NOTIFY_SOCKET": address})
    [record] = caplog.records
    assert record.getMessage().startswith(f"NOTIFY_SOCKET {address}: ")


def test_one_that_does_not_read_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, caplog.at_level(logging.WARNING):
        manager.bind(name)
        while not caplog.records:  # until its queue is full
            notify("READY=1", environment={"NOTIFY_SOCKET": name})
    assert "timed out" in caplog.text
