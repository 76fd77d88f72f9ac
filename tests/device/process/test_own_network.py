"""``serve --unshare-net``: a network of the server's own."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pviommu.exit_status import ExitStatus
from pviommu.process import own_network, serve

PVIOMMU = Path(sys.executable).with_name("pviommu")
CARD = 'name = "net0"\nkind = "virtio-net"\nstream = 1\n'
BRIDGED = f'[[endpoint]]\n{CARD}link = "tap"\ntap = "tap0"\nbridge = "br0"\nqueue-pairs = 2\n'


@pytest.fixture
def allowed() -> None:
    """Skips where the host forbids it."""
    probe = [sys.executable, "-c", "from pviommu.process.own_network import own_network; own_network()"]
    ended = subprocess.run(probe, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"this host allows no user namespaces: {ended.stderr.splitlines()[-1]}")


@contextmanager
def served(folder: Path, topology: str) -> Iterator[int]:
    """A server with a network of its own: its process, once it listens."""
    (folder / "machine.toml").write_text(topology)
    command = [PVIOMMU, "serve", folder / "machine.toml", "--socket-dir", folder, "--unshare-net", "--core", "python"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = []
        for line in server.stderr:
            said.append(line)
            if "listening" in line:
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
    assert server.returncode == 0


def interfaces(process: int) -> set[str]:
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def test_the_server_has_another_network_and_its_own_user(allowed: None, tmp_path: Path) -> None:
    with served(tmp_path, f"[[endpoint]]\n{CARD}") as process:
        assert os.readlink(f"/proc/{process}/ns/net") != os.readlink("/proc/self/ns/net")
        assert Path(f"/proc/{process}/uid_map").read_text().split()[2] == "1"
        assert "lo" in interfaces(process)
        assert "127.0.0.1" in Path(f"/proc/{process}/net/fib_trie").read_text()
        assert (tmp_path / "net0.sock").stat().st_uid == os.geteuid()


@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="this user may not open /dev/net/tun")
def test_taps_and_bridges_are_made_there(allowed: None, tmp_path: Path) -> None:
    before = interfaces(os.getpid())
    with served(tmp_path, BRIDGED) as process:
        assert {"tap0", "br0", "lo"} <= interfaces(process)
        assert interfaces(os.getpid()) == before


def parsed(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(["--unshare-net", *given])


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSPC])
def test_where_the_host_forbids_it_one_line_says_so_with_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(_flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(own_network, "_unshare", refuse)
    assert serve.main(parsed()) == ExitStatus.ENVIRONMENT
    [line] = capsys.readouterr().err.splitlines()
    start = (
        f"pviommu: --unshare-net: {os.strerror(number)} (this host, or a sandbox, does not let it: look at the sysctls "
    )
    assert line.startswith(start)


def test_it_does_not_go_with_a_group_of_the_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(parsed("--socket-group", str(os.getegid()))) == ExitStatus.USAGE
    assert "--unshare-net: not with --socket-group" in capsys.readouterr().err


def test_it_does_not_go_with_an_abstract_socket_of_the_service_manager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Abstract names belong to a network namespace: the manager would never hear that the server is ready."""
    monkeypatch.setenv("NOTIFY_SOCKET", "@manager")
    assert serve.main(parsed()) == ExitStatus.USAGE
    assert "--unshare-net: not with NOTIFY_SOCKET=@manager" in capsys.readouterr().err
