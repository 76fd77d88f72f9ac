"""The log: one JSON object a line, or text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from pviommu import logs


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_event_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")

    logging.getLogger("x").warning("stream %d", 3, extra={"event": "fault", "fields": {"iova": 4096}})

    entry = json.loads(capsys.readouterr().err)
    assert datetime.fromisoformat(entry.pop("time")).utcoffset() is not None
    assert entry == {"level": "warning", "event": "fault", "message": "stream 3", "iova": 4096}


def test_a_record_without_event_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")

    logging.getLogger("x").info("two\nlines")

    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "message"


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")

    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("x").exception("failed")

    [line] = capsys.readouterr().err.splitlines()
    assert "KeyError: 'lost'" in json.loads(line)["traceback"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_records_below_the_level_are_left_out(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("warning", form)

    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "loud" in lines[0]


def test_text_names_level_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("debug", "text")

    logging.getLogger("pviommu.x").debug("hello")

    assert capsys.readouterr().err.endswith(" DEBUG pviommu.x: hello\n")
