"""The systemd units are valid, and fit the command line and the topology that they name."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePath

import pytest

from pviommu.exit_status import ExitStatus
from pviommu.process import serve
from pviommu.topology import load

pytestmark = pytest.mark.row("server", 90)

CONFIGS = Path(__file__).resolve().parents[2] / "qemu-configs"
UNITS = CONFIGS / "systemd"


def values(unit: str, key: str) -> list[str]:
    """What a unit says of ``key``, for the virtual machine ``one-engine``."""
    text = (UNITS / unit).read_text().replace("%i", "one-engine")
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_the_command_is_one_that_the_server_takes() -> None:
    [line] = values("pviommu@.service", "ExecStart")
    program, verb, *options = shlex.split(line)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(options)
    assert (program, verb, args.topology) == ("/usr/local/bin/pviommu", "serve", Path("/etc/pviommu/one-engine.toml"))


def test_every_function_of_the_topology_has_a_socket_of_its_name() -> None:
    topology = load(CONFIGS / "one-engine.toml")
    names = [topology.iommu.name, *(entry.name for entry in topology.endpoint)]
    listening = values("pviommu@.socket", "ListenStream")
    assert [PurePath(path).name for path in listening] == [f"{name}.sock" for name in names]


def test_the_manager_is_told_and_mistakes_are_not_repeated() -> None:
    assert values("pviommu@.service", "Type") == ["notify"]
    [statuses] = values("pviommu@.service", "RestartPreventExitStatus")
    assert statuses.split() == [str(ExitStatus.USAGE), str(ExitStatus.ENVIRONMENT)]


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """Both units as they would be installed, with a program that is there."""
    paths = []
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/pviommu", "/bin/true")
        paths.append(tmp_path / unit.name.replace("@", "@one-engine"))
        paths[-1].write_text(text)
    return paths


def test_systemd_finds_nothing_to_say(installed: list[Path]) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed, which only this test needs")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *installed], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
