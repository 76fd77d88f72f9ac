"""The log: one JSON object a line, or text."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pviommu.process import logs
from pviommu.process.log_limits import MOST


def test_json_lines_carry_event_message_and_fields(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("info", "json"):
        logging.getLogger("x").warning("stream %d", 3, extra={"event": "fault", "fields": {"iova": 4096}})

    entry = json.loads(capfd.readouterr().err)
    assert datetime.fromisoformat(entry.pop("time")).utcoffset() is not None
    assert entry == {"level": "warning", "event": "fault", "message": "stream 3", "iova": 4096}


def test_a_record_without_event_is_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("info", "json"):
        logging.getLogger("x").info("two\nlines")

    [line] = capfd.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "message"


def test_an_exception_stays_on_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("info", "json"):
        try:
            raise KeyError("lost")
        except KeyError:
            logging.getLogger("x").exception("failed")

    [line] = capfd.readouterr().err.splitlines()
    assert "KeyError: 'lost'" in json.loads(line)["traceback"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_records_below_the_level_are_left_out(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("warning", form):
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").warning("loud")

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "loud" in lines[0]


def test_text_names_level_and_logger(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("debug", "text"):
        logging.getLogger("pviommu.x").debug("hello")

    assert capfd.readouterr().err.endswith(" DEBUG pviommu.x: hello\n")


@pytest.mark.row("server", 81)
@pytest.mark.parametrize(("level", "written"), [("info", MOST + 1), ("debug", 3 * MOST)])
def test_repeated_records_are_summed_up_at_the_end_but_not_at_level_debug(
    capfd: pytest.CaptureFixture[str], level: str, written: int
) -> None:
    with logs.writing(level, "json"):
        for _ in range(3 * MOST):
            logging.getLogger("x").warning("client refused", extra={"event": "client-refused"})

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert len(lines) == written
    if level == "info":
        assert (lines[-1]["event"], lines[-1]["of"], lines[-1]["count"]) == ("repeated", "client-refused", 2 * MOST)


def test_records_of_level_debug_that_somebody_asked_for_are_all_written(capfd: pytest.CaptureFixture[str]) -> None:
    traced = logging.getLogger("traced")
    with logs.writing("info", "json"):
        traced.setLevel(logging.DEBUG)
        for _ in range(3 * MOST):
            traced.debug("request")
        traced.setLevel(logging.NOTSET)
        traced.debug("request")

    assert len(capfd.readouterr().err.splitlines()) == 3 * MOST


def test_a_record_that_cannot_be_formatted_is_named_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.writing("info", "json"):
        logging.getLogger("x").info("%d", "no number")
        logging.getLogger("x").info("next", extra={"fields": {"odd": object()}})

    lines = [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()]
    assert ["cannot be formatted" in line for line in lines] == [True, True]


def test_logging_is_as_it_was_afterwards() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level, sys.unraisablehook
    with logs.writing("debug", "json"):
        pass
    assert (list(root.handlers), root.level, sys.unraisablehook) == before


CRASHES = {
    "exception": "raise KeyError('lost')",
    "thread": "t = threading.Thread(target=lambda: [][1]); t.start(); t.join()",
    "warning": "warnings.warn('take care')",
    "unraisable": "type('Bad', (), {'__del__': lambda self: [][1]})()",
}


def run(form: str, body: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import logging, sys, threading, warnings; from pathlib import Path; from pviommu.process import logs\n"
        f"with logs.writing('info', {form!r}, *map(Path, sys.argv[1:])) as log: {body}"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.row("server", 83)
@pytest.mark.parametrize("kind", CRASHES)
def test_what_nobody_caught_is_a_json_record_too(kind: str) -> None:
    done = run("json", CRASHES[kind])

    [line] = done.stderr.splitlines()
    entry = json.loads(line)
    if kind == "warning":
        assert "take care" in entry["message"]
    else:
        assert "Error" in entry["traceback"]
        assert entry["event"] == ("unraisable" if kind == "unraisable" else "crash")
    assert done.returncode == (1 if kind == "exception" else 0)


@pytest.mark.row("server", 83)
def test_as_text_an_exception_is_a_traceback_once() -> None:
    done = run("text", CRASHES["exception"])

    assert done.returncode == 1
    assert done.stderr.count("Traceback") == done.stderr.count("KeyError: 'lost'") == 1


@pytest.mark.row("server", 82)
def test_a_full_pipe_does_not_keep_a_failing_process_from_ending() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    program = (
        "from pviommu.process import logs\nwith logs.writing('info', 'text') as log: log.fail('why'); raise KeyError"
    )
    status = subprocess.run([sys.executable, "-c", program], stderr=writer, check=False, timeout=30).returncode
    os.close(writer)
    os.close(reader)
    assert status == 1


@pytest.mark.parametrize(("form", "in_file"), [("json", False), ("text", False), ("json", True), ("text", True)])
def test_why_a_process_ends_is_said_on_standard_error_and_in_the_log(form: str, in_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    done = run(form, "log.fail('no room')", *([path] if in_file else []))

    [line] = done.stderr.splitlines()
    if form == "json" and not in_file:
        assert json.loads(line)["message"] == "no room"
    else:
        assert line == "pviommu: no room"
    assert ("no room" in path.read_text()) if in_file else not path.exists()


def test_a_closed_standard_error_is_no_place_for_another_file(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pviommu.process import logs\n"
        "with logs.writing('info', 'text') as log:\n"
        f"    fd = os.open({str(tmp_path / 'precious')!r}, os.O_RDWR | os.O_CREAT)\n"
        "    log.fail('lost')\n"
        "sys.exit(fd == 2)"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program], check=False, timeout=30)
    assert done.returncode == 0
    assert (tmp_path / "precious").read_bytes() == b""


@pytest.mark.row("server", 82)
def test_the_end_of_the_interpreter_waits_for_no_reader_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logging library closes all handlers then; a server has to end within a second of a stop."""
    closed: list[logs.LogWriter] = []
    close = logs.LogWriter.close
    monkeypatch.setattr(logs.LogWriter, "close", lambda writer: closed.append(writer) or close(writer))
    with logs.writing("info", "text") as log:
        pass
    log.close()
    assert len(closed) == 1
