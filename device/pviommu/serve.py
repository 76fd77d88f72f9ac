"""``pviommu serve``: the back end beside a QEMU."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from pviommu_abi.registers import ABI_VERSION, Feature
from pviommu_abi.shared import GLOBAL_STREAM, RegionKind

from . import __version__, logs
from .counters import Counters
from .engine import DefaultPolicy
from .inputs import LiveInputs
from .iommu.capability_area import iova_ranges, reserved_regions
from .iommu.function import PAGE_SIZES
from .iommu.ring_core import DeviceCore
from .pci.function import Environment
from .server import DEFAULT_SPIN_NS, Server, close_all, listen_all
from .topology import ENDPOINTS, Machine, Topology, TopologyError, load

__all__ = ["add_arguments", "main"]

log = logging.getLogger(__name__)

PROFILES = ("xen-2024", "xen-v7")
CORES = ("auto", "native", "python")
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu serve``."""
    parser.description = (
        "Serve the functions of a topology over vfio-user. Each function NAME has a socket of its own, to which one "
        "QEMU "
        'attaches with -device \'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"DIR/NAME.sock"}}\'. '
        "The process stays in the foreground and ends at SIGTERM. "
        "Exit status: 0 stopped, 2 bad arguments or topology, 3 the environment does not allow it."
    )
    parser.add_argument("topology", type=Path, nargs="?", help="topology file (TOML); the default has no endpoints")
    parser.add_argument("--socket-dir", type=Path, default=Path("."), metavar="DIR", help="folder of the sockets")
    parser.add_argument(
        "--fd",
        action="append",
        default=[],
        metavar="NAME=N",
        help="serve function NAME on inherited descriptor N, a listening or a connected socket; may be repeated",
    )
    parser.add_argument(
        "--contexts", type=int, metavar="N", help="contexts besides the default one, whatever the topology says"
    )
    parser.add_argument(
        "--pool-pages", type=int, metavar="N", help="page-table pages of all contexts, whatever the topology says"
    )
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print what this back end and the topology offer, as JSON"
    )
    parser.add_argument("--pidfile", type=Path, metavar="FILE", help="written once all sockets listen")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="json: one object a line")
    parser.add_argument(
        "--core",
        choices=CORES,
        default=CORES[0],
        help="what carries out maps, unmaps and translations: the native core, Python, or (auto) the native one if it "
        "was built, by `pviommu build-core` or the lab",
    )
    parser.add_argument(
        "--spin-us",
        type=int,
        default=DEFAULT_SPIN_NS // 1000,
        metavar="N",
        help="poll the rings for N microseconds after the last work before sleeping (%(default)s)",
    )


def capabilities(topology: Topology) -> dict[str, Any]:
    """What ``--print-capabilities`` prints. ``driver_capabilities`` are the lines of the guest driver's debugfs
    file.
    """
    return {
        "type": "pviommu",
        "version": __version__,
        "abi": ABI_VERSION,
        "features": [feature.name.lower() for feature in Feature if feature.name],
        "profiles": list(PROFILES),
        "endpoint_kinds": sorted(ENDPOINTS),
        "functions": [
            {"name": topology.iommu.name, "kind": "iommu", "socket": f"{topology.iommu.name}.sock"},
            *(
                {"name": entry.name, "kind": entry.kind, "stream": entry.stream, "socket": f"{entry.name}.sock"}
                for entry in topology.endpoint
            ),
        ],
        "driver_capabilities": driver_capabilities(topology),
    }


def driver_capabilities(topology: Topology) -> list[str]:
    """What a guest must find, in the words of its driver."""
    config = topology.iommu_config()
    lines = [
        f"instance {config.instance}",
        " ".join(("profiles", *PROFILES, "batch-2014")),
        f"page_sizes {PAGE_SIZES:#x}",
        f"max_nr_pages {config.max_nr_pages}",
        f"max_contexts {config.engine.max_contexts}",
        f"pool_pages {config.engine.pool_pages}",
        f"rings {config.rings}",
        f"aperture_bits {config.engine.aperture_bits}",
        f"default_policy {'identity' if config.engine.default_policy is DefaultPolicy.IDENTITY else 'blocked'}",
    ]
    lines += [f"iova_range {entry.start:#x} {entry.last:#x}" for entry in iova_ranges(config.engine)]
    for region in reserved_regions(config.engine, config.reserved):
        whose = "global" if region.stream == GLOBAL_STREAM else f"stream {region.stream}"
        lines.append(f"reserved {region.start:#x} {region.last:#x} {RegionKind(region.kind).name.lower()} {whose}")
    return lines + [f"endpoint {stream}" for stream in config.streams]


def _given_descriptors(options: list[str], names: set[str]) -> dict[str, int]:
    given: dict[str, int] = {}
    for option in options:
        name, _, number = option.partition("=")
        if name not in names or not number.isdecimal():
            raise ValueError(f"--fd {option}: must be NAME=N with NAME one of {', '.join(sorted(names))}")
        try:
            os.fstat(int(number))
        except OSError as error:
            raise ValueError(f"--fd {option}: {error.strerror}") from error
        given[name] = int(number)
    return given


def _native_core() -> DeviceCore | None:
    from .native.core import native_core  # only what is asked for costs start-up time

    return native_core()


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu serve``; returns its exit status."""
    try:
        topology = load(args.topology) if args.topology else Topology()
        topology = topology.limited(args.contexts, args.pool_pages)
        names = {topology.iommu.name, *(entry.name for entry in topology.endpoint)}
        given = _given_descriptors(args.fd, names)
        if args.spin_us < 0:
            raise ValueError(f"--spin-us {args.spin_us}: must not be negative")
    except (TopologyError, ValueError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return EXIT_USAGE
    if args.print_capabilities:
        print(json.dumps(capabilities(topology), indent=2))
        return 0
    if platform.machine() not in ("x86_64", "AMD64"):
        print(
            f"pviommu: host architecture {platform.machine()}: the rings need x86's memory order, run this on x86-64",
            file=sys.stderr,
        )
        return EXIT_ENVIRONMENT
    logs.set_up(args.log_level, args.log_format)
    counters = Counters()
    inputs = LiveInputs()
    core = None if args.core == "python" else _native_core()
    if core is None and args.core == "native":
        print("pviommu: --core native: the native core is not built, run: pviommu build-core", file=sys.stderr)
        return EXIT_ENVIRONMENT
    machine = Machine.build(topology, Environment(inputs, counters), core)
    try:
        sockets = listen_all(machine, args.socket_dir, given)
    except OSError as error:
        print(f"pviommu: cannot listen on {error.filename or 'a socket'}: {error.strerror}", file=sys.stderr)
        machine.close()
        return EXIT_ENVIRONMENT
    server = Server(machine, sockets, inputs, args.spin_us * 1000)
    try:
        with server.stopped_by_signals():
            if args.pidfile:
                args.pidfile.write_text(f"{os.getpid()}\n")
            name = machine.iommu.engine.core_name
            log.info(
                "listening on %s, %s core",
                *(", ".join(sorted(sockets)), name),
                extra={"event": "listening", "fields": {"core": name}},
            )
            server.run()
    except OSError as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    finally:
        server.close()
        usage = machine.iommu.engine.usage()  # of a machine without clients: anything left is a leak
        close_all(sockets, given)
        machine.close()
        if args.pidfile:
            args.pidfile.unlink(missing_ok=True)
    fields = counters.report() | {
        "contexts": usage.contexts,
        "pool_pages_used": usage.pool_pages_used,
        "descriptors_open": len(os.listdir("/proc/self/fd")),
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    log.info(
        "summary: %d slots, %d pages mapped, %d bytes of DMA, %d faults, %d traps",
        *(counters.slots, counters.pages_mapped, counters.dma_bytes, counters.faults, counters.traps),
        extra={"event": "summary", "fields": fields},
    )
    return 0
