"""Boots one machine with a network card and measures its traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import resources
from ..lab.boot import TAKEOVER
from ..lab.image import guest_image
from ..lab.report import exit_line
from ..lab.run import Setup, short_folder
from ..lab.server import PROGRAM, ServerProcess, capabilities
from ..lab.vm import VirtualMachine
from .boots import INITRD, vm_config
from .configurations import ACCESS_EVENTS, CONFIGURATIONS, DEVICE_SLOT, Configuration
from .guest import MeasurementError
from .host_network import GUEST_ADDRESS, PREFIX, TAP, set_up_tap
from .net_loads import Load, Pings, Tools
from .traces import Traces
from .wire_guest import processor_time_ns

__all__ = [
    "NET_CONFIGURATIONS",
    "VHOST",
    "VHOST_DEVICE",
    "Counted",
    "NetBench",
    "NetBoot",
    "NetPlan",
    "Sample",
    "boot_net",
]

VHOST, VHOST_DEVICE = "vhost", "/dev/vhost-net"
"""QEMU's kernel path, which is reported and not judged, and what it needs"""
_MAC = "52:54:00:00:00:01"
_MODULES = ("virtio_net",)
_TOPOLOGY = "bench/net.toml"


def _card(name: str, title: str, netdev: str = "") -> Configuration:
    """The machine of that name with QEMU's card in the place of its device."""
    whole = next(one for one in CONFIGURATIONS if one.name == name)
    if whole.served:
        return replace(whole, title=title)
    device = f"virtio-net-pci,netdev=net,mac={_MAC},iommu_platform=on,disable-legacy=on,romfile=,addr={DEVICE_SLOT:#x}"
    card = ("-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no{netdev}", "-device", device)
    return replace(whole, title=title, arguments=(*whole.arguments[:-2], *card))


NET_CONFIGURATIONS = (
    _card("none", "QEMU's card, no IOMMU"),
    _card("virtio-iommu", "QEMU's card behind its virtio-iommu"),
    _card("intel-iommu", "QEMU's card behind its intel-iommu in caching mode"),
    _card("pviommu", "this server's card behind the PV-IOMMU"),
    replace(_card("none", "QEMU's card, carried out by the host's kernel, no IOMMU", ",vhost=on"), name=VHOST),
)
"""Machines alike except for IOMMU and card, each of which is virtio-net on a tap, of QEMU's own process or the
server's."""


@dataclass(frozen=True, slots=True)
class NetPlan:
    """How much one boot measures: each load for ``seconds``, the counted ones once more for ``count_seconds`` (0: not),
    and ``pings``, a hundredth of a second apart."""

    loads: Sequence[Load]
    seconds: int
    count_seconds: int
    pings: int


@dataclass(frozen=True, slots=True)
class NetBench:
    """What all boots share. ``memory`` is in bytes, ``timeout`` in seconds for each boot; ``programs`` are files for
    the guest, ``set_up`` gives the tap its address, ``program`` starts the server."""

    setup: Setup
    tools: Tools
    programs: dict[str, bytes]
    memory: int
    vcpus: int
    timeout: float
    set_up: Callable[[], None] = set_up_tap
    program: Sequence[str] = PROGRAM


@dataclass(frozen=True, slots=True)
class Sample:
    """One load: bits or packets per second, and processors that QEMU and the server kept busy meanwhile."""

    load: str
    rate: float
    qemu: float
    server: float


@dataclass(frozen=True, slots=True)
class Counted:
    """One load that was counted: packets that the guest's driver sent and received, and what each of them took."""

    load: str
    packets: int
    traps: float
    interrupts: float
    maps: float


@dataclass(slots=True)
class NetBoot:
    """All figures of a boot."""

    facts: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    pings: Pings | None = None

    def rate(self, load: str) -> float | None:
        """The rate of the load of that name, if it was measured."""
        return next((one.rate for one in self.samples if one.load == load), None)


def boot_net(bench: NetBench, configuration: Configuration, plan: NetPlan, folder: Path) -> NetBoot:
    """Boot ``configuration`` and measure. Logs go to ``folder``.

    Raises MeasurementError, GuestTimeoutError, RunError, EnvironmentProblem.
    """
    folder.mkdir(parents=True)
    with short_folder() as short:
        if not configuration.served:
            return _boot(bench, configuration, plan, folder, short, (), None)
        topology = resources.guest_tools() / _TOPOLOGY
        sockets = [short / name for name in capabilities(topology, bench.program).sockets]
        log = folder / "server.jsonl"
        with ServerProcess(topology, short, log, bench.program, configuration.server_options) as server:
            server.start()
            measured = _boot(bench, configuration, plan, folder, short, sockets, server.pid)
            problems = server.stop()
    if problems:
        raise MeasurementError("; ".join(problems))
    return measured


def _boot(
    bench: NetBench,
    configuration: Configuration,
    plan: NetPlan,
    folder: Path,
    short: Path,
    sockets: Sequence[Path],
    server: int | None,
) -> NetBoot:
    deadline = time.monotonic() + bench.timeout
    (short / INITRD).write_bytes(_image(bench, configuration))
    trace_log = folder / "trace.log"
    config = vm_config(
        *(bench.setup, configuration, sockets, folder, short),
        memory=bench.memory,
        vcpus=bench.vcpus,
        trace_log=trace_log,
    )
    traces = Traces(short / "qmp", trace_log, ACCESS_EVENTS)
    with VirtualMachine(bench.setup.toolbox, config) as machine:
        (folder / "qemu-command.txt").write_text(machine.command_line + "\n")
        machine.start()
        guest = _Guest(machine, deadline)
        guest.wait()
        bench.set_up()
        processes = (machine.pid, server)
        for load in plan.loads:
            guest.boot.samples.append(_measure(bench.tools, load, plan.seconds, processes))
        if plan.pings:
            guest.boot.pings = bench.tools.pings(plan.pings, 0.01)
        for load in plan.loads:
            if load.is_counted and plan.count_seconds:
                guest.boot.counted.append(_count(bench.tools, load, plan.count_seconds, guest, traces))
        return guest.end()


def _image(bench: NetBench, configuration: Configuration) -> bytes:
    tools = resources.guest_tools()
    takeover = tools / TAKEOVER
    settings = {
        "modules": " ".join(configuration.modules),
        "takeover": int(configuration.served),
        "mac": _MAC,
        "address": f"{GUEST_ADDRESS}/{PREFIX}",
    }
    return guest_image(
        bench.setup.toolbox,
        tools,
        bench.setup.modules,
        programs=bench.setup.programs,
        extra_modules=(*configuration.early_modules, *_MODULES),
        files={
            "/tests/main.sh": (tools / "bench/net.sh").read_bytes(),
            "/lab/bench": "".join(f"{name}='{value}'\n" for name, value in settings.items()).encode(),
            "/lab/early-modules": "".join(f"{name}\n" for name in configuration.early_modules).encode(),
        },
        executables={f"/bin/{takeover.name}": takeover.read_bytes(), **bench.programs},
    )


class _Guest:
    """The conversation with the guest's script. Any method raises MeasurementError if it gives up."""

    def __init__(self, machine: VirtualMachine, deadline: float) -> None:
        self.boot = NetBoot()
        self._machine = machine
        self._lines: Iterator[str] = machine.lines(deadline)
        self._sample: dict[str, int] = {}
        self._status: int | None = None

    def wait(self) -> None:
        """Until it asks what to do."""
        for line in self._lines:
            match line.split():
                case ["bench", "ready"]:
                    return
                case ["bench", "fact", name, *words]:
                    self.boot.facts[name] = " ".join(words)
                case ["bench", "sample", *words]:
                    pairs = (word.partition("=") for word in words)
                    self._sample = {name: int(value) for name, _, value in pairs}
                case ["bench", "failed", *words]:
                    raise MeasurementError(" ".join(words))
                case _:
                    self._status = exit_line(line) if exit_line(line) is not None else self._status
        if self._status != 0:
            raise MeasurementError(f"the guest ended with status {self._status}")

    def ask(self, word: str) -> dict[str, int]:
        """Have it do something; what it counted last."""
        self._machine.send(word)
        self.wait()
        return self._sample

    def end(self) -> NetBoot:
        """The figures, once QEMU has ended."""
        self.ask("end")
        return self.boot


def _measure(tools: Tools, load: Load, seconds: int, processes: Sequence[int | None]) -> Sample:
    used, begun = [_used(pid) for pid in processes], time.monotonic_ns()
    rate = tools.rate(load, seconds)
    taken = time.monotonic_ns() - begun
    qemu, server = ((_used(pid) - before) / taken for pid, before in zip(processes, used, strict=True))
    return Sample(load.name, rate, qemu, server)


def _used(pid: int | None) -> int:
    return 0 if pid is None else processor_time_ns(pid)


def _count(tools: Tools, load: Load, seconds: int, guest: _Guest, traces: Traces) -> Counted:
    guest.ask("count-on")
    before = guest.ask("sample")
    traces.switch(True)
    traps = traces.counts().total()
    tools.rate(load, seconds)
    traps = traces.counts().total() - traps
    traces.switch(False)
    after = guest.ask("sample")
    guest.ask("count-off")
    packets = after["packets"] - before["packets"]
    if packets <= 0:
        raise MeasurementError(f"{load.title}: no packets were counted")
    maps, interrupts = ((after[name] - before[name]) / packets for name in ("maps", "interrupts"))
    return Counted(load.name, packets, traps / packets, interrupts, maps)
