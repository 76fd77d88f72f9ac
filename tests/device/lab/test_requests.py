"""What the guest may ask of the host: done before it is answered, refused with a reason, undone in time."""

from __future__ import annotations

import pytest

from pviommu.lab.requests import HEAD_START, Requests


class Server:
    """A server that writes down what is done to it; ``gone`` makes each attempt fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.gone = False

    def pause(self) -> None:
        self._do("pause")

    def resume(self) -> None:
        self._do("resume")

    def kill(self) -> None:
        self._do("kill")
        self.gone = True

    def _do(self, what: str) -> None:
        if self.gone:
            raise ProcessLookupError
        self.done.append(what)


class Guest:
    """A guest that writes down what is done to it."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def pause(self) -> None:
        self.done.append("pause guest")

    def resume(self) -> None:
        self.done.append("resume guest")


class Host:
    """Requests of one guest, with a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = Server()
        self.events = self.server.done
        self.requests = Requests(
            self.server,
            Guest(self.events),
            lambda line: self.events.append(f"answer {line}"),
            clock=lambda: self.now,
        )

    def take(self, line: str) -> list[str]:
        """What happened, in its order, when the guest wrote ``line``."""
        self.events.clear()
        assert self.requests.take(line)
        return list(self.events)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.mark.parametrize("line", ["ok 1 bind", "# lab: exit 0", "# a note", "", "# lab: requested kill-server"])
def test_other_lines_are_left_to_others(host: Host, line: str) -> None:
    assert not host.requests.take(line)
    assert host.events == []


def test_server_is_stopped_before_the_answer_and_continued_when_its_time_has_come(host: Host) -> None:
    assert host.take("# lab: request stop-server 6") == ["pause", "answer done stop-server"]
    assert host.requests.due == 106.0

    host.now = 105.9
    host.requests.ring()
    assert host.events == ["pause", "answer done stop-server"]
    host.now = 106.0
    host.requests.ring()
    assert host.events[-1] == "resume"
    assert host.requests.due is None


def test_second_stop_begins_its_time_anew(host: Host) -> None:
    host.take("# lab: request stop-server 6")
    host.now = 103.0
    host.take("# lab: request stop-server 6")

    assert host.requests.due == 109.0


def test_server_is_killed_before_the_answer_and_not_continued(host: Host) -> None:
    host.take("# lab: request stop-server 6")

    assert host.take("# lab: request kill-server") == ["kill", "answer done kill-server"]
    assert host.requests.due is None


def test_end_of_the_run_continues_a_stopped_server_once(host: Host) -> None:
    host.take("# lab: request stop-server 6")
    host.requests.finish()
    host.requests.finish()

    assert host.events.count("resume") == 1


def test_server_that_ended_while_stopped_is_left_to_whoever_stops_it(host: Host) -> None:
    host.take("# lab: request stop-server 6")
    host.server.gone = True
    host.requests.finish()

    assert "resume" not in host.events


@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        ("dance", "failed dance no such request: stop-server SECONDS, freeze SECONDS, kill-server"),
        ("", "failed ? no such request: stop-server SECONDS, freeze SECONDS, kill-server"),
        ("stop-server", "failed stop-server seconds missing: give a number above 0, at most 60"),
        ("stop-server 0", "failed stop-server seconds 0: give a number above 0, at most 60"),
        ("stop-server 61", "failed stop-server seconds 61: give a number above 0, at most 60"),
        ("stop-server -1", "failed stop-server seconds -1: give a number above 0, at most 60"),
        ("stop-server soon", "failed stop-server seconds soon: give a number above 0, at most 60"),
        ("kill-server now", "failed kill-server it takes no argument, not now"),
    ],
)
def test_wrong_request_is_answered_with_its_rule_and_does_nothing(host: Host, request_text: str, answer: str) -> None:
    assert host.take(f"# lab: request {request_text}") == [f"answer {answer}"]


def test_a_frozen_guest_goes_on_a_little_before_its_server(host: Host) -> None:
    assert host.take("# lab: request freeze 3") == ["pause", "pause guest", "answer done freeze"]
    host.events.clear()

    host.now += 3
    host.requests.ring()
    assert host.events == ["resume guest"]
    assert host.requests.due == pytest.approx(host.now + HEAD_START)

    host.now += HEAD_START
    host.requests.ring()
    assert host.events == ["resume guest", "resume"]
    assert host.requests.due is None


def test_who_is_frozen_at_the_end_goes_on_at_once(host: Host) -> None:
    host.take("# lab: request freeze 3")
    host.events.clear()

    host.requests.finish()

    assert host.events == ["resume guest", "resume"]


@pytest.mark.parametrize("request_text", ["stop-server 1", "kill-server"])
def test_request_after_the_servers_end_is_answered(host: Host, request_text: str) -> None:
    host.server.gone = True

    name = request_text.split()[0]
    assert host.take(f"# lab: request {request_text}") == [f"answer failed {name} the server is not running"]


def test_long_request_is_quoted_short(host: Host) -> None:
    answer = host.take(f"# lab: request {'x' * 4000}")[0]

    assert len(answer) < 200


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("output-end 10", "done output-end"),
        ("output-end 11", "failed output-end not all of 11 bytes came"),
        ("output-end", "failed output-end bytes missing: give a number"),
        ("output-end -1", "failed output-end bytes -1: give a number"),
        (f"output-end {10**18}", f"failed output-end bytes {10**18}: give a number"),
    ],
)
def test_end_of_the_programs_output_is_answered_when_all_of_it_came(line: str, answer: str) -> None:
    answers: list[str] = []
    requests = Requests(Server(), Guest([]), answers.append, output_came=lambda count: count <= 10)

    assert requests.take(f"# lab: request {line}")
    assert answers == [answer]


def test_without_a_program_there_is_no_output_to_wait_for(host: Host) -> None:
    assert host.take("# lab: request output-end 0") == [
        "answer failed output-end no such request: stop-server SECONDS, freeze SECONDS, kill-server"
    ]


def test_rules_are_loaded_before_the_answer_and_a_refusal_says_why(host: Host) -> None:
    assert host.take("# lab: request rules-load") == [
        "answer failed rules-load no such request: stop-server SECONDS, freeze SECONDS, kill-server"
    ]
    rules = {"rules-load": lambda: host.events.append("load"), "rules-unload": lambda: "no rules were loaded"}
    host.requests = Requests(host.server, Guest(host.events), lambda line: host.events.append(line), rules=rules)

    assert host.take("# lab: request rules-load") == ["load", "done rules-load"]
    assert host.take("# lab: request rules-unload") == ["failed rules-unload no rules were loaded"]


def test_a_request_that_there_is_not_is_answered_with_all_that_this_run_has() -> None:
    said: list[str] = []
    server, rules = Server(), {"rules-load": lambda: None, "rules-unload": lambda: None}
    requests = Requests(server, Guest(server.done), said.append, output_came=lambda _: True, rules=rules)
    requests.take("# lab: request rules-lod")
    requests.take("# lab: request rules-load now")

    assert said == [
        "failed rules-lod no such request: stop-server SECONDS, freeze SECONDS, kill-server, rules-load, rules-unload, "
        "output-end BYTES",
        "failed rules-load it takes no argument, not now",
    ]
