"""Trace events: recorded logs counted, and switched at a QEMU that is played here."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pviommu.bench.traces import Traces, count_events, trace_arguments
from pviommu.lab.problems import RunError

RECORDED = """\
virtio_queue_notify vdev 0x55d0e5b0a2d0 n 0 vq 0x7f1c5c0ab010
virtio_queue_notify vdev 0x55d0e5b0a2d0 n 5 vq 0x7f1c5c0ab2f8
vtd_reg_write addr 0x88 size 4 value 0x1a0
4711@1700000000.123456:vtd_reg_write addr 0x88 size 4 value 0x1c0
vtd_reg_write_gcmd status 0x0 value 0x4000000
 vtd_reg_read addr 0x0
qemu-system-x86_64: warning: vtd_reg_read in the middle
vfio_region_write  (/run/iommu.sock:region0+0x40, 0x1, 4)
"""
EVENTS = ("virtio_queue_notify", "vtd_reg_read", "vtd_reg_write", "vfio_region_write")


class PlayedQemu:
    """A QMP socket that notes which trace events are switched, and how; ``refuse`` makes it answer with errors."""

    def __init__(self, path: Path, refuse: bool) -> None:
        self.switched: list[tuple[str, bool]] = []
        self._refuse = refuse
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the client may go at any time
            connection, _ = self._listener.accept()
            with connection:
                version = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}
                self._say(connection, {"QMP": {"version": version, "capabilities": []}})
                text = ""
                while data := connection.recv(65536):
                    text += data.decode()
                    with contextlib.suppress(ValueError):  # not whole yet; nothing parts one request from the next
                        request, end = json.JSONDecoder().raw_decode(text)
                        text = text[end:]
                        self._say(connection, self._answer(request))

    def _answer(self, request: dict[str, Any]) -> dict[str, object]:
        number = {"id": request["id"]} if "id" in request else {}
        if request["execute"] == "trace-event-set-state":
            self.switched.append((request["arguments"]["name"], request["arguments"]["enable"]))
            if self._refuse:
                return {"error": {"class": "GenericError", "desc": "unknown event"}, **number}
        return {"return": {}, **number}

    @staticmethod
    def _say(connection: socket.socket, message: object) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends an accept that nobody came to
        self._thread.join()
        self._listener.close()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., PlayedQemu]]:
    played: list[PlayedQemu] = []

    def start(refuse: bool = False) -> PlayedQemu:
        played.append(PlayedQemu(tmp_path / "qmp", refuse))
        return played[-1]

    yield start
    for qemu in played:
        qemu.close()


def test_only_whole_event_names_at_the_start_of_a_line_count() -> None:
    assert count_events(RECORDED.splitlines(), EVENTS) == {
        "virtio_queue_notify": 2,
        "vtd_reg_write": 2,
        "vfio_region_write": 1,
    }


def test_events_that_were_not_asked_for_are_passed_over() -> None:
    assert count_events(RECORDED.splitlines(), ("vfio_region_write",)).total() == 1


def test_counts_grow_with_the_log_and_are_empty_without_one(tmp_path: Path) -> None:
    log = tmp_path / "trace.log"
    traces = Traces(tmp_path / "qmp", log, EVENTS)
    assert traces.counts().total() == 0
    log.write_text(RECORDED)
    assert traces.counts().total() == 5


def test_a_log_name_with_a_percent_sign_is_not_a_pattern_to_qemu() -> None:
    assert "/a%%b/trace.log" in trace_arguments(Path("/a%b/trace.log"))


def test_switching_reaches_qemu_for_each_event(tmp_path: Path, play: Callable[..., PlayedQemu]) -> None:
    qemu = play()
    Traces(tmp_path / "qmp", tmp_path / "trace.log", EVENTS).switch(True)
    assert qemu.switched == [(name, True) for name in EVENTS]


def test_a_qemu_that_refuses_an_event_is_a_run_error(tmp_path: Path, play: Callable[..., PlayedQemu]) -> None:
    play(refuse=True)
    with pytest.raises(RunError, match="unknown event"):
        Traces(tmp_path / "qmp", tmp_path / "trace.log", EVENTS).switch(False)


def test_a_qemu_that_is_gone_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be switched"):
        Traces(tmp_path / "nobody", tmp_path / "trace.log", EVENTS).switch(True)
