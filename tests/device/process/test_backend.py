import json
import logging
import os
import socket
from pathlib import Path

import pytest

from pviommu.host.pacing import TIMER_SLACK_NS, Pace
from pviommu.host.server import Server
from pviommu.hosted import NAP_MS
from pviommu.native.build import build
from pviommu.process.backend import BackendError, Settings, run
from pviommu.topology import Topology

SLACK = Path("/proc/self/timerslack_ns")
"""that of another process may be read by root only"""


@pytest.fixture
def serves_briefly(monkeypatch):
    """What there was while the server ran, which it does only for a moment."""
    seen = {}

    def look(server):
        seen["pidfile"] = seen["path"].read_text() if seen["path"].exists() else None
        seen["slack"] = SLACK.read_text(encoding="ascii")
        seen["sockets"] = sorted(path.name for path in seen["path"].parent.glob("*.sock"))

    monkeypatch.setattr(Server, "run", look)
    slack = SLACK.read_text(encoding="ascii")
    yield seen
    SLACK.write_text(slack, encoding="ascii")


def settings(folder, **changes):
    fields = {"socket_dir": folder, "given": {}, "core": "python", "pace": Pace(), "pidfile": folder / "pid"}
    return Settings(**fields | changes)


def test_sockets_and_pidfile_are_there_while_it_serves_and_no_longer(serves_briefly, tmp_path):
    serves_briefly["path"] = tmp_path / "pid"
    run(Topology(), settings(tmp_path))
    assert serves_briefly["pidfile"] == f"{os.getpid()}\n"
    assert serves_briefly["sockets"] == ["iommu.sock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row("driver", 71)
def test_naps_of_a_process_that_serves_end_in_time(serves_briefly, tmp_path):
    serves_briefly["path"] = tmp_path / "pid"
    SLACK.write_text("50000", encoding="ascii")
    run(Topology(), settings(tmp_path))
    assert int(serves_briefly["slack"]) == TIMER_SLACK_NS < NAP_MS * 1e6 / 10


def test_the_log_says_what_listens_with_which_core_and_sums_up(serves_briefly, tmp_path, caplog):
    serves_briefly["path"] = tmp_path / "pid"
    with caplog.at_level(logging.INFO):
        run(Topology(), settings(tmp_path))
    first, last = (record for record in caplog.records if record.event in ("listening", "summary"))
    assert first.fields == {"core": "python"}
    assert last.fields["contexts"] == last.fields["pool_pages_used"] == last.fields["doorbells"] == 0
    json.dumps(last.fields)


def test_a_path_that_cannot_be_listened_on_is_named(tmp_path):
    with pytest.raises(BackendError, match=f"cannot listen on {tmp_path}/none/iommu.sock: No such file"):
        run(Topology(), settings(tmp_path / "none", pidfile=None))


def test_a_pidfile_that_cannot_be_written_ends_it_and_leaves_no_socket(tmp_path):
    with pytest.raises(BackendError, match="No such file"):
        run(Topology(), settings(tmp_path, pidfile=tmp_path / "none" / "pid"))
    assert list(tmp_path.iterdir()) == []


def test_a_given_socket_needs_no_file(serves_briefly, tmp_path):
    serves_briefly["path"] = tmp_path / "pid"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mine"))
        listener.listen()
        run(Topology(), settings(tmp_path, given={"iommu": os.dup(listener.fileno())}))
    assert serves_briefly["sockets"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("core", "refused"), [("native", True), ("auto", False)])
def test_only_who_insists_on_the_native_core_is_refused_without_it(
    serves_briefly, tmp_path, monkeypatch, caplog, core, refused
):
    serves_briefly["path"] = tmp_path / "pid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if refused:
        with pytest.raises(BackendError, match="pviommu build-core"):
            run(Topology(), settings(tmp_path, core=core))
    else:
        with caplog.at_level(logging.INFO):
            run(Topology(), settings(tmp_path, core=core))
        assert "python core" in caplog.text


@pytest.mark.row("server", 110)
@pytest.mark.row("server", 113)
@pytest.mark.parametrize("trouble", ["damaged", "unusable"])
def test_a_core_that_cannot_be_used_is_one_warning_and_pythons_serves(
    serves_briefly, tmp_path, monkeypatch, caplog, trouble
):
    serves_briefly["path"] = tmp_path / "pid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if trouble == "damaged":
        build().write_bytes(b"")
    else:
        (tmp_path / "cache").write_text("a file")

    run(Topology(), settings(tmp_path, core="auto"))

    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.event == "slower-core"
    assert warning.getMessage().startswith("the slower Python core is used: ")
