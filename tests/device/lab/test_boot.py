"""One run: what the guest is given, how its machine is made, and what it may do to the server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pviommu.lab.boot import short_folder
from pviommu.lab.console import HOW_TO_LEAVE, Terminal

if TYPE_CHECKING:
    from conftest import Lab

KILL = r"""printf 'KTAP version 1\n1..1\n# lab: request kill-server\n' >&3
read -r answer <&3
[ "$answer" = 'done kill-server' ] && printf 'ok 1 bind\n# lab: exit 0\n' >&3"""

STOP = r"""printf 'KTAP version 1\n1..1\n# lab: request stop-server 50\n' >&3
read -r answer <&3
[ "$answer" = 'done stop-server' ] && printf 'ok 1 bind\n# lab: exit 0\n' >&3"""

FOUR_SOCKETS = '[{"socket": "iommu.sock"}, {"socket": "a.sock"}, {"socket": "b.sock"}, {"socket": "c.sock"}]'


def test_guest_gets_the_servers_capabilities(lab: Lab) -> None:
    files = lab.image_files()

    assert files["/lab/capabilities"] == b"rings 4\nx 1\n"
    assert json.loads(files["/lab/expect.json"])["functions"] == [{"socket": "iommu.sock"}]


def test_guest_has_the_takeover_script_in_its_path(lab: Lab) -> None:
    programs = lab.image_options()["programs"]

    assert isinstance(programs, list)
    assert [path.name for path in programs if path.is_file()] == ["pviommu-takeover"]


@pytest.mark.parametrize("options", [(), ("--long",)])
def test_only_a_long_run_gives_the_guest_its_kernel_and_image(lab: Lab, options: tuple[str, ...]) -> None:
    lab.guest = f'cp "$initrd" {lab.folder}/initrd; {lab.guest}'
    lab.main(*options)

    assert (b"/lab/boot/kernel\n" in (lab.folder / "initrd").read_bytes()) == bool(options)


def test_every_second_endpoint_is_behind_a_root_port_and_a_nic_is_beside(lab: Lab) -> None:
    lab.server = lab.server.replace('[{"socket": "iommu.sock"}]', FOUR_SOCKETS)
    lab.main()
    words = shlex.split(lab.result("qemu-command.txt"))

    devices = [json.loads(word) for word in words if word.startswith("{")]
    assert [Path(device["socket"]["path"]).stem for device in devices] == ["iommu", "a", "b", "c"]
    assert ["bus" in device for device in devices] == [False, False, True, False]
    assert "user,id=net,restrict=on" in words


def test_server_that_was_killed_for_the_guest_is_no_problem(lab: Lab) -> None:
    lab.guest = KILL
    status, shown = lab.main()

    assert (status, json.loads(lab.result("results.json"))["problems"]) == (0, []), shown


def test_server_that_is_still_stopped_at_the_end_is_continued_and_ends_well(lab: Lab) -> None:
    lab.guest = STOP
    status, shown = lab.main()

    assert status == 0, shown
    assert '"summary"' in lab.result("server.jsonl")


KEPT = r"""{python} -c "
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind('$console')
listening.listen(1)
os.write($fd, b'KTAP version 1\\n1..1\\nok 1 bind\\n# lab: exit {status}\\n')
guest, _ = listening.accept()
assert os.read($fd, 8) == b'console\\n'
typed = guest.recv(12, socket.MSG_WAITALL)
guest.sendall(b'you typed ' + typed)
"
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal at which ``poweroff -f`` was typed; what it shows is in the file ``shown``."""
    reading, writing = os.pipe()
    os.write(writing, b"poweroff -f\n")
    os.close(writing)
    with (tmp_path / "shown").open("wb") as shown:
        yield Terminal(reading, shown.fileno())
    os.close(reading)


@pytest.mark.parametrize(("guest", "status", "verdict"), [(0, 0, "passed"), (1, 1, "failed")])
def test_kept_guest_gets_a_terminal_after_its_results_were_written(
    lab: Lab, terminal: Terminal, guest: int, status: int, verdict: str
) -> None:
    lab.guest = KEPT.format(python=sys.executable, status=guest)
    lab.terminal = terminal
    ended, shown = lab.main("--keep")

    assert ended == status, shown
    assert (lab.folder / "shown").read_bytes() == b"you typed poweroff -f\n"
    before, _, after = shown.partition(HOW_TO_LEAVE)
    assert f"verdict {verdict}" in before
    assert "ops     map_pages 5" in after  # the server's counts are there once it has ended
    assert json.loads(lab.result("results.json"))["counts"]["pages_mapped"] == 7


def test_kept_guest_that_ended_by_itself_has_no_console(lab: Lab) -> None:
    lab.guest = "true"
    status, shown = lab.main("--keep")

    assert status == 1
    assert HOW_TO_LEAVE not in shown


def test_guest_that_waits_for_a_debugger_has_no_time_limit_and_its_symbols_in_place(lab: Lab) -> None:
    status, shown = lab.main("--gdb", "--timeout", "0.000001")

    assert status == 0, shown
    command = lab.result("qemu-command.txt")
    assert " -S" in command
    assert " nokaslr" in command
    assert "target remote /" in shown


def test_short_folder_is_made_under_tmp_when_the_runtime_folder_is_unusable(tmp_path: Path) -> None:
    with short_folder({"XDG_RUNTIME_DIR": str(tmp_path / "missing")}) as folder:
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


CONTROL = """
import threading
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[sys.argv.index("--ctl") + 1])
listening.listen(1)
assert sys.argv[sys.argv.index("--history") + 1] == "65536"
def serve():
    client, _ = listening.accept()
    stream = client.makefile("rw")
    answers = [{"QMP": {}}, {"return": {}}, {"return": {"faults": [FAULT], "next": None}}]
    for answer in answers:
        print(json.dumps(answer), file=stream, flush=True)
        stream.readline()
threading.Thread(target=serve, daemon=True).start()
"""
FAULT = {
    "number": 1,
    "time_ns": 1,
    "stream": 1,
    "sbdf": "unbound",
    "context": 0,
    "iova": 4096,
    "length": 1,
    "access": "READ",
    "reason": "NOT_MAPPED",
    "operations": 0,
    "explanation": {"cause": "never-mapped", "text": "nobody mapped it"},
}


@pytest.mark.parametrize(
    ("guest", "ended"),
    [
        (r"printf 'KTAP version 1\n1..1\nnot ok 1 bind\n# lab: exit 1\n' >&3", "'bind'"),
        ("exit 0", "no test that ended"),
    ],
    ids=["failed", "cut off"],
)
def test_a_run_that_fails_tells_why_dma_was_refused(lab: Lab, guest: str, ended: str) -> None:
    lab.server = lab.server.replace("signal.signal(", CONTROL.replace("FAULT", repr(FAULT)) + "signal.signal(")
    lab.guest = guest
    status, shown = lab.main()

    assert status == 1
    line = f"during {ended}: READ at 0x1000 by stream 1 in context 0: NOT_MAPPED: nobody mapped it"
    assert f"fault   1, {line}\n" in shown
    assert json.loads(lab.result("results.json"))["faults"][0]["explanation"]["cause"] == "never-mapped"
    assert line in lab.result("faults.txt")


def test_a_run_that_passes_tells_nothing_of_it(lab: Lab) -> None:
    lab.server = lab.server.replace("signal.signal(", CONTROL.replace("FAULT", repr(FAULT)) + "signal.signal(")
    status, shown = lab.main("-v")

    assert status == 0
    assert "never-mapped" not in lab.result("results.json")
    assert "control socket /" in shown
