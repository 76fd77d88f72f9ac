"""One boot, with a shell script in QEMU's place and one in the server's."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.bench.boots import Bench, boot, image_files, server_counts
from pviommu.bench.configurations import Configuration
from pviommu.bench.guest import MeasurementError, Plan, Round
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Setup
from pviommu.lab.vm import GuestTimeoutError

PLAN = Plan(rounds=1, operations=10, warm_up=1, count_operations=0)
PLAIN = Configuration("plain", "Plain", arguments=("-device", "plain"), kernel_arguments=("iommu.strict=1",))
SERVED = Configuration("served", "Served", modules=("pviommu",), served=True, server_options=("--spin-us", "0"))
QEMU = """#!/bin/bash
for word in "$@"; do case $word in socket,id=lab,fd=*) fd=${{word##*=}};; esac; done
exec 3>&"$fd"
{body}
"""
MEASURES = r"""
round="map_ns_median=1 map_ns_mean=2 unmap_ns_median=3 unmap_ns_mean=4"
round="$round pair_ns_median=5 pair_ns_mean=6 clock_ns_median=7 pages=1 threads=1 rounds=10 elapsed_ns=90"
printf 'bench round 1 %s\n# lab: exit 0\n' "$round" >&3
"""
SERVER = """
import json, signal, sys, time
def sleep_for_ever():
    while True:
        time.sleep(0.05)  # not for longer: a signal that comes just before a pause would not end it
if "--print-capabilities" in sys.argv:
    print(json.dumps({"driver_capabilities": [], "functions": [{"socket": "iommu.sock"}, {"socket": "dma0.sock"}]}))
    sys.exit(0)
def end(number, frame):
    counts = {"traps": 47, "doorbells": 28, "options": sys.argv[-2:]}
    print(json.dumps({"event": "summary"} | counts), file=sys.stderr)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(json.dumps({"event": "listening", "core": "native"}), file=sys.stderr, flush=True)
open(sys.argv[sys.argv.index("--pidfile") + 1], "w").write("1")
sleep_for_ever()
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\necho bin/sh\n")
    busybox.chmod(0o755)
    (tmp_path / "server.py").write_text(SERVER)
    toolbox = Toolbox(tmp_path, (str(tmp_path / "qemu"),), {}, "11.1", tmp_path / "vmlinuz", "6.12", busybox)
    return Bench(Setup(toolbox, [], "tcg"), 1 << 30, 1, 20.0, (sys.executable, str(tmp_path / "server.py")))


def qemu(bench: Bench, body: str) -> None:
    script = Path(bench.setup.toolbox.qemu_command[0])
    script.write_text(QEMU.format(body=body))
    script.chmod(0o755)


def test_a_plain_machine_gives_its_rounds_and_leaves_its_command(bench: Bench, tmp_path: Path) -> None:
    qemu(bench, MEASURES)
    measured, counts = boot(bench, PLAIN, PLAN, tmp_path / "logs")
    assert measured.rounds == [Round(1, 2, 3, 4, 5, 6, 7, 1, 1, 10, 90)]
    assert counts == {}
    command = (tmp_path / "logs/qemu-command.txt").read_text()
    assert "-device plain" in command
    assert "iommu.strict=1" in command
    assert "vfio-user-pci" not in command


def test_a_served_machine_has_the_servers_functions_and_gives_its_counts(bench: Bench, tmp_path: Path) -> None:
    qemu(bench, MEASURES)
    measured, counts = boot(bench, SERVED, PLAN, tmp_path / "logs")
    assert measured.facts["core"] == "native"
    assert counts == {"traps": 47, "doorbells": 28, "options": ["--spin-us", "0"]}
    command = (tmp_path / "logs/qemu-command.txt").read_text()
    assert command.index("iommu.sock") < command.index("dma0.sock")


def test_a_guest_that_reports_a_failure_is_a_measurement_error(bench: Bench, tmp_path: Path) -> None:
    qemu(bench, r"printf 'bench failed there is no device\n# lab: exit 1\n' >&3")
    with pytest.raises(MeasurementError, match="there is no device"):
        boot(bench, PLAIN, PLAN, tmp_path / "logs")


def test_a_guest_that_hangs_is_ended_at_its_limit(bench: Bench, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    qemu(bench, f"echo $$ >{pid}; exec sleep 1000")
    hurried = Bench(bench.setup, bench.memory, bench.vcpus, 0.7, bench.program)
    with pytest.raises(GuestTimeoutError):
        boot(hurried, PLAIN, PLAN, tmp_path / "logs")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_there_are_as_many_processors_as_threads(bench: Bench, tmp_path: Path) -> None:
    qemu(bench, MEASURES)
    boot(bench, PLAIN, replace(PLAN, threads=3), tmp_path / "logs")
    assert "-smp 3" in (tmp_path / "logs/qemu-command.txt").read_text()


def test_the_image_gets_script_settings_and_early_modules() -> None:
    early = Configuration("v", "V", early_modules=("virtio-iommu",), modules=("a",))
    files = image_files(early, PLAN)
    assert files["/tests/main.sh"].startswith(b"#!/bin/sh\n")
    assert b"modules='a'" in files["/lab/bench"]
    assert files["/lab/early-modules"] == b"virtio-iommu\n"


def test_server_counts_are_differences_a_pair_of_what_both_boots_counted() -> None:
    measured = {"traps": 130, "doorbells": 40, "interrupts": 6, "ops": {}}
    assert server_counts(measured, {"traps": 30, "doorbells": 40}, 100) == {"traps": 1.0, "doorbells": 0.0}
