"""The server as a child: started, refused, stopped, and its last words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pviommu.lab.problems import RunError, UsageError
from pviommu.lab.server import ServerProcess, capabilities, summary
from pviommu.resources import qemu_configs

PRELUDE = """
import json, os, signal, socket, sys, time
def sleep_for_ever():
    while True:
        time.sleep(0.05)  # not for longer: a signal that comes just before a pause would not end it
folder = sys.argv[sys.argv.index("--socket-dir") + 1]
pidfile = sys.argv[sys.argv.index("--pidfile") + 1]
def listen(*names):
    kept = []
    for name in names:
        kept.append(socket.socket(socket.AF_UNIX))
        kept[-1].bind(os.path.join(folder, name))
    open(pidfile, "w").write(str(os.getpid()))
    return kept
"""


def program(tmp_path: Path, body: str, *, prelude: str = PRELUDE) -> tuple[str, ...]:
    script = tmp_path / "fake_server.py"
    script.write_text(prelude + body)
    return (sys.executable, str(script))


def server(tmp_path: Path, body: str) -> ServerProcess:
    return ServerProcess(tmp_path / "lab.toml", tmp_path, tmp_path / "server.jsonl", program(tmp_path, body))


def test_sockets_exist_once_start_returns(tmp_path: Path) -> None:
    body = 'signal.signal(15, lambda *a: sys.exit(0)); kept = listen("iommu.sock"); sleep_for_ever()'
    with server(tmp_path, body) as child:
        child.start()
        assert (tmp_path / "iommu.sock").is_socket()
        assert child.stop() == []


def test_refused_topology_is_a_usage_error_with_the_servers_words(tmp_path: Path) -> None:
    said = '{"level": "error", "message": "lab.toml: no such key: rnigs"}'
    body = f"print({said!r}, file=sys.stderr); sys.exit(2)"
    with server(tmp_path, body) as child, pytest.raises(UsageError, match="no such key: rnigs"):
        child.start()


def test_early_failure_is_an_error_with_status_and_last_line(tmp_path: Path) -> None:
    body = 'print("starting"); sys.exit("iommu.sock: address already in use")'
    with (
        server(tmp_path, body) as child,
        pytest.raises(RunError, match=r"status 1: iommu\.sock: address already in use"),
    ):
        child.start()


def test_server_that_died_during_the_run_is_reported_when_stopped(tmp_path: Path) -> None:
    with server(tmp_path, 'kept = listen("a.sock"); sys.exit(9)') as child:
        child.start()
        child._child.wait(30)
        assert child.stop() == ["the server ended unexpectedly with status 9: it printed nothing"]


def test_server_that_was_killed_on_purpose_has_nothing_wrong_with_its_end(tmp_path: Path) -> None:
    with server(tmp_path, 'kept = listen("a.sock"); sleep_for_ever()') as child:
        child.start()
        child.kill()
        assert child.stop() == []
        with pytest.raises(ProcessLookupError):
            child.kill()


def test_server_that_is_stopped_is_continued_so_that_it_can_end(tmp_path: Path) -> None:
    body = 'signal.signal(15, lambda *a: sys.exit(0)); kept = listen("a.sock"); sleep_for_ever()'
    with server(tmp_path, body) as child:
        child.start()
        child.pause()
        assert child.stop() == []


def test_rules_that_did_something_else_are_no_problem_of_the_servers_end(tmp_path: Path) -> None:
    body = 'signal.signal(15, lambda *a: (print("FAIL it"), sys.exit(5))); kept = listen("a.sock"); sleep_for_ever()'
    with server(tmp_path, body) as child:
        child.start()
        assert child.stop() == []
    assert (tmp_path / "server.jsonl").read_text() == ""  # in which a text for people has no place


def test_server_that_ends_badly_when_told_to_stop_is_reported(tmp_path: Path) -> None:
    body = 'kept = listen("a.sock"); sleep_for_ever()'
    with server(tmp_path, body) as child:
        child.start()
        assert child.stop() == ["the server ended with status -15 when told to stop: it printed nothing"]


def test_capabilities_come_from_the_standard_output_alone(tmp_path: Path) -> None:
    said = {"driver_capabilities": ["rings 4"], "functions": [{"socket": "iommu.sock"}, {"socket": "dma0.sock"}]}
    body = f"import sys; print('a warning', file=sys.stderr); print({json.dumps(said)!r})"
    offered = capabilities(tmp_path / "lab.toml", program(tmp_path, body, prelude=""))
    assert json.loads(offered.printed) == said
    assert offered.driver_lines == ["rings 4"]
    assert offered.sockets == ["iommu.sock", "dma0.sock"]


def test_capabilities_that_lack_a_part_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lack what the lab needs: KeyError"):
        capabilities(tmp_path / "lab.toml", program(tmp_path, "print('{}')", prelude=""))


def test_the_real_server_offers_what_the_lab_needs() -> None:
    offered = capabilities(qemu_configs() / "lab.toml")
    assert offered.sockets[0] == "iommu.sock"
    assert any(line.startswith("iova_range ") for line in offered.driver_lines)


def test_capabilities_of_a_bad_topology_are_a_usage_error(tmp_path: Path) -> None:
    body = 'import sys; print("lab.toml: line 3: expected =", file=sys.stderr); sys.exit(2)'
    with pytest.raises(UsageError, match="line 3"):
        capabilities(tmp_path / "lab.toml", program(tmp_path, body, prelude=""))


def test_summary_is_the_last_one_and_survives_lines_that_are_not_json(tmp_path: Path) -> None:
    log = tmp_path / "server.jsonl"
    records = [{"event": "summary", "faults": 1}, {"event": "fault"}, {"event": "summary", "time": "", "faults": 2}]
    log.write_text("Traceback summary\n" + "".join(json.dumps(record) + "\n" for record in records) + '{"summary"')
    assert summary(log) == {"faults": 2}


def test_summary_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert summary(tmp_path / "none") == {}
