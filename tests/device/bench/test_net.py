"""``pviommu bench net``: the command, its boots with scripts in the place of QEMU and iperf3, its tables and bars."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from pviommu.bench import net
from pviommu.bench.guest import MeasurementError
from pviommu.bench.host_network import own_network
from pviommu.bench.net_boots import (
    NET_CONFIGURATIONS,
    VHOST,
    Counted,
    NetBench,
    NetBoot,
    NetPlan,
    Sample,
    boot_net,
)
from pviommu.bench.net_figures import NetMeasurement, judge, plots, tables
from pviommu.bench.net_loads import LOADS, Pings, Tools, find_tools, guest_programs, rate_of
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Setup
from pviommu.lab.vm import GuestTimeoutError

OWN = next(one for one in NET_CONFIGURATIONS if one.name == "pviommu")
PLAIN = next(one for one in NET_CONFIGURATIONS if one.name == "none")
PLAN = NetPlan(LOADS[:3], 1, 0, 2)
ARRIVED = {"bits_per_second": 2e6, "packets": 9, "lost_packets": 1, "seconds": 4}
TCP = json.dumps({"end": {"sum_received": ARRIVED}})
GUEST = r"""#!/bin/bash
for word in "$@"; do case $word in socket,id=lab,fd=*) fd=${word##*=};; esac; done
exec 3<>/proc/self/fd/$fd 4>&$fd
printf 'bench fact group_type DMA-FQ\nbench ready\n' >&4
packets=0
while read -r word <&$fd; do
	case $word in
	sample) packets=$((packets + 100)); printf 'bench sample packets=%d interrupts=30 maps=7\n' $packets >&4 ;;
	end) printf '# lab: exit 0\n' >&4; exit 0 ;;
	esac
	printf 'bench ready\n' >&4
done
"""
SERVER = """
import json, signal, sys, time
if "--print-capabilities" in sys.argv:
    print(json.dumps({"driver_capabilities": [], "functions": [{"socket": "iommu.sock"}, {"socket": "net0.sock"}]}))
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(sys.argv[sys.argv.index("--pidfile") + 1], "w").write("1")
while True:
    time.sleep(0.05)
"""


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetBench:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    busybox = script(tmp_path / "busybox", "#!/bin/sh\necho bin/sh\n")
    qemu = script(tmp_path / "qemu", GUEST.replace("exec 3<>/proc/self/fd/$fd 4>&$fd", "exec 4>&$fd"))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/modules.builtin").write_text("kernel/virtio_net.ko\nkernel/virtio-iommu.ko\n")
    toolbox = Toolbox(tmp_path, (qemu,), {}, "11.1", tmp_path / "vmlinuz", "6.12", Path(busybox))
    toolbox = replace(toolbox, kernel_modules=tmp_path / "modules")
    (tmp_path / "server.py").write_text(SERVER)
    iperf = script(tmp_path / "iperf3", f"#!/bin/sh\necho '{TCP}'\n")
    ping = script(tmp_path / "ping", "#!/bin/sh\necho ' time=0.5 ms'\necho ' time=1.5 ms'\n")
    program = (sys.executable, str(tmp_path / "server.py"))
    return NetBench(
        Setup(toolbox, [], "tcg"), Tools((iperf,), (ping,)), {}, 1 << 30, 1, 30.0, lambda: None, program=program
    )


@pytest.mark.parametrize("configuration", [PLAIN, OWN], ids=lambda one: one.name)
def test_a_boot_measures_each_load_and_the_round_trips(
    bench: NetBench, configuration: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pviommu.bench.net_boots.processor_time_ns", lambda pid: pid and next(times))
    times = count()
    plan = replace(PLAN, loads=LOADS[:2])
    boot = boot_net(bench, configuration, plan, tmp_path / "boot")  # type: ignore[arg-type]
    assert [(one.load, one.rate) for one in boot.samples] == [("tcp-out", 2e6), ("tcp-in", 2e6)]
    assert all(one.qemu > 0 and (one.server > 0) == (configuration is OWN) for one in boot.samples)
    assert boot.pings == Pings(1000.0, 500.0)
    assert boot.facts == {"group_type": "DMA-FQ"}
    command = (tmp_path / "boot/qemu-command.txt").read_text()
    assert ("net0.sock" in command) == (configuration is OWN)
    assert ("iommu_platform=on" in command) == (configuration is PLAIN)


def test_what_a_packet_takes_is_counted_in_a_phase_of_its_own(
    bench: NetBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting:
        def __init__(self, *_: object) -> None:
            self.seen: Counter[str] = Counter()

        def switch(self, on: bool) -> None:
            self.on = on

        def counts(self) -> Counter[str]:
            assert self.on
            self.seen["vfio_region_write"] += 4
            self.seen["virtio_queue_notify"] += 1
            return self.seen.copy()

    monkeypatch.setattr("pviommu.bench.net_boots.Traces", Counting)
    boot = boot_net(bench, OWN, replace(PLAN, count_seconds=1, pings=0), tmp_path / "boot")
    assert boot.counted == [Counted(name, 100, 0.05, 0.0, 0.0) for name in ("tcp-out", "tcp-in", "64-out")]
    assert boot.pings is None


def test_every_peer_has_the_same_card_of_qemu() -> None:
    peers = [one for one in NET_CONFIGURATIONS if not one.served]
    assert len({next(word for word in one.arguments if word.startswith("virtio-net-pci")) for one in peers}) == 1
    assert [one.name for one in peers if "vhost=on" in " ".join(one.arguments)] == [VHOST]
    assert not any("pci-testdev" in word for one in peers for word in one.arguments)
    assert [one.arguments[1] for one in peers if "iommu" in one.name] == [
        "virtio-iommu-pci,addr=0x2",
        "intel-iommu,caching-mode=on",
    ]


@pytest.mark.parametrize(
    ("report", "name", "rate"),
    [
        ({"bits_per_second": 5.0}, "tcp-in", 5.0),
        ({"packets": 110, "lost_packets": 10, "seconds": 2.0}, "64-in", 50.0),
    ],
)
def test_what_arrives_is_the_rate(report: dict[str, float], name: str, rate: float) -> None:
    load = next(one for one in LOADS if one.name == name)
    assert rate_of({"end": {"sum_received": report}}, load) == rate


def test_iperf3_that_is_still_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.bench.net_loads._PAUSE", 0)
    asked = tmp_path / "asked"
    busy = f'touch {asked}; echo \'{{"error": "busy"}}\''
    text = f"#!/bin/sh\nif [ -e {asked} ]; then echo '{TCP}'; else {busy}; fi\n"
    assert Tools((script(tmp_path / "iperf3", text),), ()).rate(LOADS[0], 1) == 2e6


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('{"error": "no route"}', "iperf3: no route"),
        ("boo", "not understood: boo"),
        (
            '{"end": {"sum_received": {"bits_per_second": 0}}}',
            "nothing arrived",
        ),  # no other figure can be a ratio to it
    ],
)
def test_what_iperf3_says_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, words: str) -> None:
    monkeypatch.setattr("pviommu.bench.net_loads._PAUSE", 0)
    tools = Tools((script(tmp_path / "iperf3", f"#!/bin/sh\necho '{said}'\n"),), ())
    with pytest.raises(MeasurementError, match=words):
        tools.rate(LOADS[0], 1)


def test_pings_that_do_not_come_back_are_no_figure(tmp_path: Path) -> None:
    ping = script(tmp_path / "ping", "#!/bin/sh\necho 'seq=0 time=0.5 ms'\n")
    with pytest.raises(MeasurementError, match="1 of 2 pings came back"):
        Tools((), (ping,)).pings(2, 0.01)


def test_the_guest_gets_iperf3_with_its_libraries(tmp_path: Path) -> None:
    for name in ("usr/bin/iperf3", "lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libiperf.so.0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    library = tmp_path / "usr/lib/x86_64-linux-gnu/libiperf.so.0"
    listed = f"\tlibiperf.so.0 => {library} (0x00007f)\n\tlinux-vdso.so.1 (0x1)\n"
    found = guest_programs(tmp_path, lambda _: Outcome(0, listed))
    assert sorted(found) == [
        "/bin/iperf3",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libiperf.so.0",
    ]
    with pytest.raises(MeasurementError, match="libraries of iperf3 are not found: no such file"):
        guest_programs(tmp_path, lambda _: Outcome(127, "no such file"))


def measured(name: str, tcp: float, ping: float, traps: float = 0.01, group: str = "") -> NetMeasurement:
    boot = NetBoot({"group_type": "DMA"}, [Sample("tcp-out", tcp, 1, 0.5), Sample("tcp-in", tcp, 1, 0.5)])
    boot.pings = Pings(ping, 2 * ping)
    boot.counted = [Counted("tcp-out", 1000, traps, 0.1, 1.0)]
    return NetMeasurement(name, name, group, [boot])


def verdicts(own: NetMeasurement) -> dict[str, str]:
    others = [measured("none", 100e6, 100), measured("virtio-iommu", 40e6, 200), measured("intel-iommu", 60e6, 300)]
    return {f"{one.measure}{one.unit}": one.word for one in judge([*others, own])}


def test_bars_are_met_at_their_limits_and_not_beyond() -> None:
    assert set(verdicts(measured("pviommu", 60e6, 200, 0.02)).values()) == {"met"}
    beyond = verdicts(measured("pviommu", 59e6, 201, 0.021))
    assert len(beyond) == 8
    assert set(beyond.values()) == {"NOT MET"}


def test_a_card_that_was_not_translated_as_named_is_not_judged() -> None:
    found = verdicts(measured("pviommu", 60e6, 200, group="DMA-FQ"))
    assert {word for name, word in found.items() if "x " in name} == {"reported"}


def test_tables_and_plots_show_every_configuration() -> None:
    both = [measured("none", 100e6, 100), measured("pviommu", 60e6, 200)]
    for table in tables(both).values():
        assert "none" in table(markdown=True)
        assert "pviommu" in table(markdown=False)
    assert set(plots(both, "tcg")) == {"tcp-out", "tcp-in", "ping"}


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    net.add_arguments(parser)
    return parser.parse_args(options)


def ran(args: argparse.Namespace, bench: NetBench, boots: dict[str, object], out: io.StringIO) -> int:
    def boot_once(_: object, configuration: object, plan: NetPlan, folder: Path) -> NetBoot:
        found = boots[configuration.name]  # type: ignore[attr-defined]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[return-value]

    return net.main(
        args,
        out=out,
        provide=lambda *_, **__: bench.setup,
        tools=lambda *_: (bench.tools, {}),
        network=lambda: None,
        boot_once=boot_once,
    )


def test_the_command_writes_tables_for_the_report(bench: NetBench, tmp_path: Path) -> None:
    boots = {name: measured(name, 60e6, 100).boots[0] for name in ("virtio-iommu", "pviommu")}
    target = tmp_path / "net.json"
    options = ("--only", "pviommu,virtio-iommu", "--repeat", "2", "--json", str(target), "--results", str(tmp_path))
    assert ran(parsed(*options), bench, boots, io.StringIO()) == 0
    document = json.loads(target.read_text())
    assert set(document["blocks"]) == {"net-tcp", "net-udp", "net-counts", "net-bars", "net-setting"}
    assert [len(one["boots"]) for one in document["configurations"]] == [2, 2]
    assert set(document["plots"]) == {"net-tcp-out.svg", "net-tcp-in.svg", "net-ping.svg"}


@pytest.mark.parametrize(
    ("problem", "status", "words"),
    [
        (MeasurementError("the card is gone"), 1, "pviommu: the card is gone"),
        (GuestTimeoutError(), 124, "did not finish within 300 s"),
    ],
)
def test_a_machine_that_fails_is_noted_and_the_others_go_on(
    bench: NetBench, tmp_path: Path, problem: Exception, status: int, words: str
) -> None:
    boots = {"pviommu": problem, "virtio-iommu": measured("virtio-iommu", 60e6, 100).boots[0]}
    out = io.StringIO()
    options = ("--only", "pviommu,virtio-iommu", "--repeat", "1", "--results", str(tmp_path))
    assert ran(parsed(*options), bench, boots, out) == status
    assert words in out.getvalue()
    assert "virtio-iommu" in out.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seconds", "0"), "--seconds 0: give 1 to 600"),
        (("--repeat", "0"), "--repeat 0: give 1 to 100"),
        (("--only", "vtd"), "--only vtd: vtd is not one of none, virtio-iommu"),
        (("--loads", ""), "--loads : nothing is not one of tcp-out"),
        (("--timeout", "0"), "--timeout 0: give a number of seconds above 0"),
    ],
)
def test_wrong_options_are_named(
    bench: NetBench, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert ran(parsed(*options), bench, {}, io.StringIO()) == 2
    assert words in capsys.readouterr().err


def test_without_the_device_of_taps_there_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.bench.host_network._TUN", tmp_path / "tun")
    with pytest.raises(EnvironmentProblem, match="no tap can be made"):
        own_network()


@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="this user may not open /dev/net/tun")
def test_a_tap_is_set_up_in_a_network_that_goes_with_its_process() -> None:
    program = """
import os, sys
from pviommu.bench.host_network import TAP, own_network, set_up_tap
from pviommu.inputs import LiveInputs
from pviommu.lab.problems import EnvironmentProblem
from pviommu.net.tap import Tap
try:
    own_network()
except EnvironmentProblem as problem:
    sys.exit(f"not here: {problem.what}")
try:
    set_up_tap()
except EnvironmentProblem as problem:
    print(problem.what)
tap = Tap("net0", LiveInputs(), TAP)
set_up_tap()
print(sorted(line.split(":")[0].strip() for line in open("/proc/self/net/dev") if ":" in line))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if ended.stderr.startswith("not here"):
        pytest.skip(ended.stderr.strip())
    assert (ended.stdout, ended.stderr) == ("nobody has made the tap bench0\n['bench0', 'lo']\n", "")
    assert not [line for line in Path("/proc/self/net/dev").read_text().splitlines() if "bench0" in line]


def test_tools_are_run_by_the_loader_of_their_root(bench: NetBench, tmp_path: Path) -> None:
    tools = find_tools(tmp_path, bench.setup.toolbox)
    assert tools.iperf[0] == str(tmp_path / "lib64/ld-linux-x86-64.so.2")
    assert tools.ping == (str(bench.setup.toolbox.busybox), "ping")
