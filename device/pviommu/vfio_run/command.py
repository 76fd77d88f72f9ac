"""``pviommu vfio run``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from ..exit_status import ExitStatus
from ..interfaces.iommufd import DeviceConfig, System
from ..interfaces.iommufd.models import PLAIN
from ..interfaces.iommufd.nesting import NESTING
from ..native.build import BuildError
from ..topology import TopologyError, load
from .fail_nth import FailNth
from .machine import DeviceMachine, build, native_if_built
from .running import MAPS_REGISTERS, By, chosen, run_program
from .sweep import RUN_S, swept

__all__ = ["add_arguments", "main"]

_PASID_BITS = 20
_LONGEST_NAME = 45
"""Of a device, in bytes: with the folder and the end it is a path of 64, the most that the preloaded library takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu vfio run``."""
    parser.description = (
        "Run a program whose /dev/iommu and /dev/vfio are the model's: no kernel support and no privileges are needed. "
        "The endpoints of a topology are its VFIO devices, with registers, interrupts and DMA into its memory; other "
        "devices can be bound, attached and mapped for, and have nothing else. Exit status: that of the program, 128 "
        "and the number of the signal that ended it, or 3 if it cannot be started."
    )
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--topology",
        metavar="FILE",
        type=Path,
        help="a topology, or a shipped one by its name: its endpoints are the devices (default: none, but --device)",
    )
    devices.add_argument(
        "--device",
        metavar="NAME",
        action="append",
        help="a device without registers, each time this is given (default: one, dev0)",
    )
    parser.add_argument(
        "--list", action="store_true", help="print name, address and files of each device, one a line, and run nothing"
    )
    parser.add_argument(
        "--proposed", action="store_true", help="/dev/iommu as it was first proposed, in 2021, instead of Linux 7.3's"
    )
    parser.add_argument(
        "--nesting",
        action="store_true",
        help="let the IOMMU before the devices take page tables of a guest, virtual IOMMUs and PASIDs of 20 bits "
        "(not with --topology)",
    )
    parser.add_argument(
        "--mock",
        action="store_true",
        help="let programs make mock devices, as with a kernel that was built with IOMMUFD_TEST (not with --topology)",
    )
    parser.add_argument(
        "--fail-nth",
        action="store_true",
        help="let programs have a request fail at the n-th place that they pass from then on, by writing n to "
        "/proc/self/task/N/fail-nth, as with a kernel that was built with FAULT_INJECTION (not with --by seccomp)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="run the program once for each place at which a request of it can fail, and let it fail there; then say "
        "on standard error, as KTAP, whether requests that failed have changed anything. Exit status: 0 they have not, "
        "1 they have, 5 the program fails by itself, or passes more than 1000 places (not with --by seccomp)",
    )
    parser.add_argument(
        "--registers",
        choices=("mapped", "unmapped"),
        default="mapped",
        help="whether BARs can be mapped as a whole: touching a register is then caught and carried out, if it is by a "
        "MOV instruction as compilers make for volatile accesses (x86-64 only), or only what is shared memory "
        "(default: mapped)",
    )
    parser.add_argument(
        "--by",
        choices=[by.value for by in By],
        help="how the program reaches them: by a library that is preloaded, or by seccomp user notification of its "
        "system calls, for programs that are linked statically or without glibc, in which BARs cannot be mapped "
        "(default: seccomp if PROGRAM is linked statically, else preload)",
    )
    parser.add_argument(
        "program", metavar="PROGRAM", nargs="?", help="put -- before a program whose arguments begin with -"
    )
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="what the program is given")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu vfio run``; returns its exit status."""
    try:
        _check(args)
        if args.list:
            with _devices(args) as (system, _):
                _list(system)
            return ExitStatus.PASSED
        if args.sweep:
            return swept(partial(_run, args, RUN_S))
        status = _run(args, None, FailNth() if args.fail_nth else None)
    except (TopologyError, ValueError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.USAGE
    except (BuildError, _DevicesError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    except OSError as error:
        print(f"pviommu: {error.filename or args.program}: {error.strerror}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    return 128 - status if status < 0 else status


class _DevicesError(Exception):
    """The devices of a topology cannot be made on this machine."""


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    if args.proposed and args.topology:
        raise ValueError("--proposed: that interface knows no devices of a topology")
    for option in ("--nesting", "--mock"):
        if getattr(args, option[2:]) and (args.proposed or args.topology):
            raise ValueError(f"{option}: not with {'--proposed' if args.proposed else '--topology'}")
    if args.program is None:
        if not args.list:
            raise ValueError("no program is named; --list shows what it would find")
        return
    for option in ("--fail-nth", "--sweep"):
        if getattr(args, option[2:].replace("-", "_")) and _by(args) is By.SECCOMP:
            raise ValueError(f"{option}: not with --by seccomp, which programs that are linked statically need")


def _by(args: argparse.Namespace) -> By:
    return By(args.by) if args.by else chosen(args.program)


@contextmanager
def _devices(args: argparse.Namespace) -> Iterator[tuple[System, DeviceMachine | None]]:
    """What the program finds. Raises ValueError, TopologyError and :class:`_DevicesError`."""
    if not args.topology:
        names: list[str] = args.device or ["dev0"]
        for name in names:
            _check_name(name)
        model, bits = (NESTING, _PASID_BITS) if args.nesting else (PLAIN, 0)
        configs = [DeviceConfig(name, model=model, pasid_bits=bits) for name in names]
        yield System(configs, rfc=args.proposed, mock=args.mock, core=native_if_built()), None
        return
    try:
        system, machine = build(load(args.topology), native_if_built())
    except OSError as error:
        raise _DevicesError(f"the devices of the topology cannot be made: {error.strerror}") from error
    with closing(machine):
        yield system, machine


def _run(args: argparse.Namespace, limit_s: float | None, fail_nth: FailNth | None) -> int:
    """The program, once; as run_program() returns, and raises."""
    with _devices(args) as (system, machine):
        return run_program(
            [args.program, *args.arguments],
            system,
            machine=machine,
            maps_registers=MAPS_REGISTERS and args.registers == "mapped",
            by=_by(args),
            fail_nth=fail_nth,
            limit_s=limit_s,
        )


def _list(system: System) -> None:
    for device in system.devices.values():
        name = device.pci.function.name if device.pci else device.config.name
        group = "" if system.is_rfc else f" {device.group.node}"
        print(f"{name} {device.config.name}{group} {device.node}")


def _check_name(name: str) -> None:
    """Raises ValueError for what cannot be the name of a device's file."""
    if not name:
        raise ValueError("--device: the name is empty")
    if "/" in name or name in (".", ".."):
        raise ValueError(f"--device {name}: a name has no slash, and is neither . nor ..")
    size = len(os.fsencode(name))
    if size > _LONGEST_NAME:
        raise ValueError(f"--device {name}: a name has at most {_LONGEST_NAME} bytes, and this one has {size}")
