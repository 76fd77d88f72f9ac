"""What a network card is measured with: iperf3 and ping, on the host's end of its link."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lab.processes import Run, run
from ..lab.provision import Toolbox
from .guest import MeasurementError
from .host_network import GUEST_ADDRESS

__all__ = ["LOADS", "Load", "Pings", "Tools", "find_tools", "guest_programs", "rate_of"]

_IPERF = "usr/bin/iperf3"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_NEEDED = re.compile(r"^\s*\S+ => (/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_PING = re.compile(r" time=([0-9.]+) ms")
_TRIES, _PAUSE = 5, 0.5
"""of a load, with seconds between them: iperf3's server refuses a new client, or drops it, while it still ends the
last one"""
_PATIENCE = 30.0
"""seconds that a load may take besides what it measures"""


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of traffic. The host is iperf3's client, with the options ``options``."""

    name: str
    title: str
    options: Sequence[str]
    is_udp: bool = False
    is_counted: bool = False
    """whether traps, interrupts and maps are counted with it, in a phase of its own"""


def _udp(payload: int) -> tuple[str, ...]:
    return ("--udp", "--bitrate", "0", "--length", str(payload))


_FROM_GUEST = ("--reverse",)
LOADS = (
    Load("tcp-out", "TCP from the guest", _FROM_GUEST, is_counted=True),
    Load("tcp-in", "TCP to the guest", (), is_counted=True),
    Load("64-out", "packets of 64 bytes from the guest", (*_udp(18), *_FROM_GUEST), is_udp=True, is_counted=True),
    Load("64-in", "packets of 64 bytes to the guest", _udp(18), is_udp=True, is_counted=True),
    Load("1500-out", "packets of 1500 bytes from the guest", (*_udp(1472), *_FROM_GUEST), is_udp=True),
    Load("1500-in", "packets of 1500 bytes to the guest", _udp(1472), is_udp=True),
)
"""64 bytes are those of a frame with its checksum on the wire, 18 of them UDP's payload; 1500 are those of an IP
packet."""


@dataclass(frozen=True, slots=True)
class Pings:
    """Round trips in microseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Tools:
    """Commands on the host: iperf3 and ping."""

    iperf: Sequence[str]
    ping: Sequence[str]

    def rate(self, load: Load, seconds: int) -> float:
        """What arrives: bits per second of TCP, packets per second of UDP. Raises MeasurementError."""
        command = [*self.iperf, "--client", GUEST_ADDRESS, "--json", "--time", str(seconds), *load.options]
        for _ in range(_TRIES):
            output = _output(command, seconds)
            try:
                report = json.loads(output)
                if "error" not in report:
                    rate = rate_of(report, load)
                    break
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise MeasurementError(f"{load.title}: iperf3 says what is not understood: {output[-200:]}") from error
            time.sleep(_PAUSE)
        else:
            raise MeasurementError(f"{load.title}: iperf3: {report['error']}")
        if rate <= 0:
            raise MeasurementError(f"{load.title}: nothing arrived")
        return rate

    def pings(self, count: int, interval: float) -> Pings:
        """Send so many, one after ``interval`` seconds. Raises MeasurementError."""
        output = _output([*self.ping, "-c", str(count), "-i", f"{interval:g}", GUEST_ADDRESS], count * interval)
        times = sorted(1000 * float(found) for found in _PING.findall(output))
        if len(times) < count * 0.9:
            raise MeasurementError(f"{len(times)} of {count} pings came back")
        return Pings(statistics.median(times), times[int(0.99 * (len(times) - 1))])


def _output(command: Sequence[str], seconds: float) -> str:
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + _PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{Path(command[0]).name} does not end") from None
    except OSError as problem:
        raise MeasurementError(f"{command[0]}: {problem.strerror}") from problem
    return ended.stdout


def rate_of(report: dict[str, Any], load: Load) -> float:
    """The rate in a report of iperf3. Raises KeyError and others for what is none."""
    arrived = report["end"]["sum_received"]
    if not load.is_udp:
        return float(arrived["bits_per_second"])
    return float((arrived["packets"] - arrived["lost_packets"]) / arrived["seconds"])


def find_tools(layer: Path, toolbox: Toolbox) -> Tools:
    """The commands: iperf3 in the root ``layer``, by its own loader, and ping of busybox."""
    command = (str(layer / _LOADER), "--library-path", str(layer / _LIBRARIES), str(layer / _IPERF))
    return Tools(command, (str(toolbox.busybox), "ping"))


def guest_programs(layer: Path, run: Run = run) -> dict[str, bytes]:
    """iperf3 with its loader and its libraries, by their paths in the guest. Raises MeasurementError."""
    loader = layer / _LOADER
    listed = run([str(loader), "--library-path", str(layer / _LIBRARIES), "--list", str(layer / _IPERF)])
    found = [Path(name) for name in _NEEDED.findall(listed.output)]
    if listed.status or not found:
        raise MeasurementError(f"the libraries of iperf3 are not found: {listed.output.strip()[-200:]}")
    return {
        "/bin/iperf3": (layer / _IPERF).read_bytes(),
        f"/{_LOADER}": loader.read_bytes(),
        **{f"/{_LIBRARIES}/{path.name}": path.read_bytes() for path in found},
    }
