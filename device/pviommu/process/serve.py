"""``pviommu serve``: the server to which QEMU attaches."""

from __future__ import annotations

import argparse
import contextlib
import grp
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pviommu_abi.registers import ABI_VERSION, Feature
from pviommu_abi.shared import GLOBAL_STREAM, RegionKind, TableFormat

from .. import __version__
from ..endpoints import ENDPOINTS
from ..exit_status import ExitStatus
from ..host.pacing import DEFAULT_SPIN_NS, Pace
from ..interfaces.pv.capability_area import iova_ranges, reserved_regions
from ..interfaces.pv.config import PAGE_SIZES, DefaultPolicy
from ..topology import MsiSection, Topology, TopologyError, load
from ..transports import LIBRARY, TRANSPORTS
from .activation import given_sockets

if TYPE_CHECKING:
    from ..faults.scenario import Scenario

__all__ = ["add_arguments", "main"]

PROFILES = ("xen-2024", "xen-v7")
CORES = ("auto", "native", "python")
MOST_HISTORY = 1 << 24
"""Operations: 1.4 GiB."""
_NO_GROUP = (1 << 32) - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu serve``."""
    parser.description = (
        "Serve the functions of a topology over vfio-user. Each function NAME has its own socket, to which one "
        'QEMU attaches with -device \'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"DIR/NAME.sock"}}\'. '
        "The process stays in the foreground and ends at SIGTERM. "
        "Exit status: 0 stopped, 1 a fault of the server, 2 bad arguments or topology, "
        "3 the environment does not allow it, 5 the rules of a scenario did not do what was expected of them."
    )
    parser.add_argument(
        "topology",
        type=Path,
        nargs="?",
        help="topology file (TOML), or a name of `pviommu topology list`; default: a PV-IOMMU without endpoints",
    )
    parser.add_argument("--socket-dir", type=Path, default=Path("."), metavar="DIR", help="folder of the sockets")
    parser.add_argument(
        "--fd",
        action="append",
        default=[],
        metavar="NAME=N",
        help="serve function NAME on inherited descriptor N, a Unix stream socket that listens or is connected; may be "
        "repeated. Sockets from systemd (LISTEN_FDS) need no option. Default: sockets in DIR",
    )
    parser.add_argument(
        "--socket-mode", type=_mode, default="600", metavar="MODE", help="permissions of the sockets in DIR, octal"
    )
    parser.add_argument(
        "--socket-group",
        type=_group,
        metavar="GROUP",
        help="group of the sockets in DIR, by name or number; default: that of the process",
    )
    parser.add_argument(
        "--contexts", type=int, metavar="N", help="contexts besides the default one; default: as in the topology"
    )
    parser.add_argument(
        "--pool-pages", type=int, metavar="N", help="page-table pages of all contexts; default: as in the topology"
    )
    parser.add_argument(
        "--msi",
        type=_window,
        action="append",
        default=[],
        metavar="START+SIZE",
        help="guest physical addresses to which writes are interrupts, which depend on the machine that QEMU emulates, "
        "as 0x08080000+0x20000; may be repeated; default: as in the topology",
    )
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print what this server offers with the topology, as JSON"
    )
    parser.add_argument(
        "--scenario",
        type=Path,
        metavar="FILE",
        help="break what the rules of FILE say, or of a name of `pviommu faults scenarios`; at the end a verdict on "
        "standard output, and status 5 if a rule did not do what was expected of it. Default: nothing is broken",
    )
    parser.add_argument(
        "--events",
        type=Path,
        metavar="FILE",
        help="of a scenario, or of rules that --ctl brings: write their events to FILE, JSON lines; default: the log",
    )
    parser.add_argument(
        "--pidfile",
        type=Path,
        metavar="FILE",
        help="a file that exists while all sockets listen; that of a running server is not replaced. Default: none",
    )
    parser.add_argument(
        "--ctl",
        type=Path,
        metavar="PATH",
        help="control socket, for `pviommu ctl` and other programs that speak QMP; default: none",
    )
    parser.add_argument(
        "--ctl-mode", type=_mode, default="600", metavar="MODE", help="permissions of the control socket, octal"
    )
    parser.add_argument(
        "--history",
        type=int,
        default=0,
        metavar="N",
        help="keep the last N operations, 88 bytes each, by which it is told why DMA was refused; 0: none",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the lowest level that is logged; debug has every vfio-user message, and no limit of repeated lines",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="json: one object per line")
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="append the log to FILE, which SIGHUP reopens; default: standard error, and SIGHUP ends the server",
    )
    parser.add_argument(
        "--core",
        choices=CORES,
        default=CORES[0],
        help="what carries out maps, unmaps and translations: the native core, Python, or (auto) the native one if it "
        "was built, by `pviommu build-core` or the lab",
    )
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default=TRANSPORTS[0],
        help="what speaks with clients; libvfio-user: that C library (docs/libvfio-user.md), for trusted clients only, "
        "without --fd and --scenario",
    )
    parser.add_argument(
        "--unshare-net",
        action="store_true",
        help="first leave the host's network for one of the server's own, in which it may make taps and bridges "
        "without privileges",
    )
    parser.add_argument(
        "--spin-us",
        type=int,
        default=DEFAULT_SPIN_NS // 1000,
        metavar="N",
        help="poll the rings for N microseconds after a wait of the guest, if its waits come that close together; "
        "0: never poll",
    )


def capabilities(topology: Topology) -> dict[str, Any]:
    """What ``--print-capabilities`` prints. ``driver_capabilities`` are the lines of the guest driver's debugfs
    file.
    """
    return {
        "type": "pviommu",
        "version": __version__,
        "abi": ABI_VERSION,
        "features": [
            feature.name.lower()
            for feature in Feature
            if topology.iommu.guest_tables or feature is not Feature.GUEST_TABLES
        ],
        "profiles": list(PROFILES),
        "endpoint_kinds": sorted(ENDPOINTS),
        "transports": list(TRANSPORTS),
        "functions": [
            {"name": topology.iommu.name, "kind": "iommu", "socket": f"{topology.iommu.name}.sock"},
            *({"name": entry.name, "kind": "smmuv3", "socket": f"{entry.name}.sock"} for entry in topology.smmu),
            *(
                {"name": entry.name, "kind": entry.kind, "stream": entry.stream, "socket": f"{entry.name}.sock"}
                for entry in topology.endpoint
            ),
        ],
        "driver_capabilities": driver_capabilities(topology),
    }


def driver_capabilities(topology: Topology) -> list[str]:
    """What a guest must find, as its driver prints it."""
    config = topology.iommu_config()
    lines = [
        f"instance {config.instance}",
        " ".join(("profiles", *PROFILES, "batch-2014")),
        f"page_sizes {PAGE_SIZES:#x}",
        f"max_nr_pages {config.max_nr_pages}",
        f"max_contexts {config.max_contexts}",
        f"pool_pages {config.engine.pool_pages}",
        f"rings {config.rings}",
        f"aperture_bits {config.engine.aperture_bits}",
        f"default_policy {'identity' if config.default_policy is DefaultPolicy.IDENTITY else 'blocked'}",
    ]
    if config.guest_tables:
        lines.append(" ".join(("table_formats", *(entry.name.lower().replace("_", "-") for entry in TableFormat))))
    lines += [f"iova_range {entry.start:#x} {entry.last:#x}" for entry in iova_ranges(config.engine)]
    for region in reserved_regions(config.engine, config.reserved):
        whose = "global" if region.stream == GLOBAL_STREAM else f"stream {region.stream}"
        lines.append(f"reserved {region.start:#x} {region.last:#x} {RegionKind(region.kind).name.lower()} {whose}")
    return lines + [f"endpoint {stream}" for stream in config.streams]


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text}: must be permissions in octal, 0 to 777")
    return mode


def _window(text: str) -> MsiSection:
    try:
        return MsiSection.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        if text.isascii() and text.isdecimal() and int(text) < _NO_GROUP:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text}: no such group") from None


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu serve``; returns its exit status."""
    try:
        topology = load(args.topology) if args.topology else Topology()
        topology = topology.changed(args.contexts, args.pool_pages, args.msi)
        behind_library = args.transport == LIBRARY
        for option, is_given in (("--fd", args.fd), ("--scenario", args.scenario)):
            if behind_library and is_given:
                raise ValueError(
                    f"--transport libvfio-user: not with {option}, since the library reads its own sockets"
                )
        given = given_sockets(args.fd, topology.names())
        if behind_library and given:
            raise ValueError(
                "--transport libvfio-user: not with sockets of LISTEN_FDS, since the library makes its own"
            )
        for option, value, most in (("--spin-us", args.spin_us, None), ("--history", args.history, MOST_HISTORY)):
            if value < 0:
                raise ValueError(f"{option} {value}: must not be negative")
            if most is not None and value > most:
                raise ValueError(f"{option} {value}: must be {most} at most")
        if args.events and not (args.scenario or args.ctl):
            raise ValueError("--events: only with --scenario, or with --ctl, by which rules may be loaded")
        if args.unshare_net and args.socket_group is not None:
            raise ValueError("--unshare-net: not with --socket-group, since other groups have no numbers there")
        if args.unshare_net and (notify := os.environ.get("NOTIFY_SOCKET", "")).startswith("@"):
            raise ValueError(
                f"--unshare-net: not with NOTIFY_SOCKET={notify}, a name in the host's network: give a path"
            )
        scenario = _scenario(args.scenario)
    except (TopologyError, ValueError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.USAGE
    if args.print_capabilities:
        print(msgspec.json.format(msgspec.json.encode(capabilities(topology)), indent=2).decode())
        return 0
    import platform  # it and the modules below are slow to import, and not needed to print capabilities

    if platform.machine() not in ("x86_64", "AMD64"):
        print(
            f"pviommu: host architecture {platform.machine()}: the rings need x86's memory order, run this on x86-64",
            file=sys.stderr,
        )
        return ExitStatus.ENVIRONMENT
    if args.unshare_net:
        from .own_network import own_network  # only what is asked for costs start-up time

        try:
            own_network()  # before there are threads
        except OSError as error:
            print(f"pviommu: --unshare-net: {error.strerror}", file=sys.stderr)
            return ExitStatus.ENVIRONMENT
    from . import logs
    from .backend import BackendError, Settings, run

    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(logs.writing(args.log_level, args.log_format, args.log_file))
        except OSError as error:
            print(f"pviommu: --log-file {args.log_file}: {error.strerror}", file=sys.stderr)
            return ExitStatus.ENVIRONMENT
        settings = Settings(
            socket_dir=args.socket_dir,
            given=given,
            core=args.core,
            pace=Pace(args.spin_us * 1000),
            pidfile=args.pidfile,
            socket_mode=args.socket_mode,
            socket_group=args.socket_group,
            on_hangup=log.reopen if args.log_file else None,
            control=args.ctl,
            control_mode=args.ctl_mode,
            history=args.history,
            profiles=PROFILES,
            scenario=scenario,
            events=args.events,
            ends_process=True,
            behind_library=behind_library,
        )
        try:
            verdict = run(topology, settings)
        except BackendError as error:
            log.fail(str(error))
            return ExitStatus.ENVIRONMENT
    if verdict is None:
        return 0
    print("\n".join(verdict.lines()))
    return 0 if verdict.ok else ExitStatus.UNEXPECTED


def _scenario(path: Path | None) -> Scenario | None:
    """Raises ValueError."""
    if path is None:
        return None
    from ..faults.scenario import ScenarioError, load  # only what is asked for costs start-up time

    try:
        return load(path)
    except ScenarioError as error:
        raise ValueError(str(error)) from error
