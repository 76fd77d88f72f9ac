"""A client's messages and what they are answered."""

import json

import pytest

from pviommu.control.answers import Pause
from pviommu.control.description import CommandError
from pviommu.control.framing import MOST_MESSAGE
from pviommu.control.session import MOST_EVENT_BYTES, Session


class Commands:
    """Commands of a test: those of one step, of several, and those that fail."""

    def __init__(self):
        self.calls = []
        self.pause = Pause()

    def begin(self, name, arguments):
        self.calls.append((name, arguments))
        if name == "refuse":
            raise CommandError("not now", "DeviceNotFound")
        if name == "break":
            raise RuntimeError("a fault of ours")
        if name == "wait":
            return self.waits()
        return self.steps(name) if name in ("long", "late") else {"did": name}

    def waits(self):
        while not self.pause.is_over:
            yield self.pause
        return {"did": "wait"}

    @staticmethod
    def steps(name):
        yield
        yield
        if name == "late":
            raise CommandError("too late")
        return {"did": name}


@pytest.fixture
def commands():
    return Commands()


@pytest.fixture
def session(commands):
    fresh = Session(commands)
    taken(fresh)
    return fresh


@pytest.fixture
def negotiated(session):
    assert said(session, {"execute": "qmp_capabilities"}) == [{"return": {}}]
    return session


def taken(session):
    """What is to be sent, as if it were."""
    lines = bytes(session.outgoing).decode().split("\r\n")
    session.outgoing.clear()
    return [json.loads(line) for line in lines if line]


def said(session, *messages):
    """All answers to messages, given as objects or bytes, each after the last one was sent."""
    for message in messages:
        session.receive(message if isinstance(message, bytes) else json.dumps(message).encode())
    answers = []
    while session.has_work:
        session.step()
        answers += taken(session)
    return answers


def test_it_begins_with_the_greeting():
    (greeting,) = taken(Session(Commands()))

    assert set(greeting) == {"QMP"}
    assert greeting["QMP"]["capabilities"] == []
    assert set(greeting["QMP"]["version"]) == {"qemu", "package"}


def test_nothing_is_executed_before_the_capabilities(session, commands):
    (answer,) = said(session, {"execute": "version", "id": 4})

    assert (answer["error"]["class"], answer["id"]) == ("CommandNotFound", 4)
    assert commands.calls == []


def test_an_answer_has_the_id_of_its_command(negotiated):
    assert said(negotiated, {"execute": "go", "id": {"a": [1]}}, {"execute": "go"}) == [
        {"return": {"did": "go"}, "id": {"a": [1]}},
        {"return": {"did": "go"}},
    ]


def test_a_long_command_is_done_in_steps_and_nothing_behind_it_begins(negotiated, commands):
    negotiated.receive(b'{"execute": "long"}{"execute": "go"}')
    for _ in range(3):
        negotiated.step()
        assert not negotiated.outgoing
    negotiated.step()

    assert taken(negotiated) == [{"return": {"did": "long"}}]
    assert [name for name, _ in commands.calls] == ["long"]
    assert said(negotiated) == [{"return": {"did": "go"}}]


def test_nothing_is_read_or_done_while_a_reply_waits(negotiated):
    negotiated.receive(b'{"execute": "go"}{"execute": "go"}')
    negotiated.step()

    assert (negotiated.has_work, negotiated.is_read) == (False, False)
    taken(negotiated)
    assert (negotiated.has_work, negotiated.is_read) == (True, False)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"hello\n", "not JSON: "),
        (b"[1, 2]", "a message must be an object"),
        (b"{}", "a message must have a text 'execute', the name of a command"),
        (b'{"execute": 3}', "a message must have a text 'execute'"),
        (b'{"execute": "go", "arguments": [1]}', "'arguments' must be an object"),
        (b'{"execute": "go", "argument": {}}', "a message has no member 'argument'; it has execute, arguments and id"),
        (b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}', "there are no capabilities to enable"),
        (b'{"execute": "\xff', "not JSON: "),
        (b"[" * 30_000 + b"]" * 30_000, "not JSON: "),
        (b"x" * (MOST_MESSAGE + 1), "a message has more than 65536 bytes"),
    ],
)
def test_what_is_no_command_is_an_error_and_the_session_goes_on(negotiated, message, text):
    first, *rest = said(negotiated, message, b"\n", {"execute": "go"})

    assert (first["error"]["class"], first["error"]["desc"][: len(text)]) == ("GenericError", text)
    assert rest[-1] == {"return": {"did": "go"}}


def test_a_command_that_is_refused_has_the_class_of_its_refusal(negotiated):
    assert said(negotiated, {"execute": "refuse"}, {"execute": "late", "id": 2}) == [
        {"error": {"class": "DeviceNotFound", "desc": "not now"}},
        {"error": {"class": "GenericError", "desc": "too late"}, "id": 2},
    ]


def test_a_fault_of_ours_is_an_error_and_in_the_log(negotiated, caplog):
    (answer,) = said(negotiated, {"execute": "break"})

    assert answer["error"]["desc"] == "the command failed, and the server's log says how"
    assert "a fault of ours" in caplog.text


def test_events_are_not_kept_without_end_for_one_that_does_not_read(negotiated):
    line = b'{"event": "A"}\r\n'
    told = sum(negotiated.event(line) for _ in range(MOST_EVENT_BYTES // len(line) + 5))

    assert told == MOST_EVENT_BYTES // len(line)
    assert len(negotiated.outgoing) <= MOST_EVENT_BYTES
    taken(negotiated)
    assert negotiated.event(line)


def test_a_command_that_waits_has_nothing_to_do_until_that_is_over(negotiated, commands):
    negotiated.receive(b'{"execute": "wait"}{"execute": "next"}')
    while negotiated.has_work:
        negotiated.step()
    assert negotiated.pause is commands.pause
    assert not negotiated.is_read

    told = []
    negotiated.pause.then(lambda: told.append(negotiated.has_work))
    commands.pause.end()
    assert told == [True]
    negotiated.step()
    assert taken(negotiated) == [{"return": {"did": "wait"}}]
    negotiated.step()
    assert taken(negotiated) == [{"return": {"did": "next"}}]
