"""The ``pviommu`` command."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from .exit_status import ExitStatus
from .host_errors import is_host_error, named
from .streams import Streams

__all__ = ["COMMANDS", "main", "whole_parser"]

COMMANDS = {
    "serve": ("pviommu.process.serve", "serve a topology to QEMU"),
    "ctl": ("pviommu.control.command", "look at a running server, and steer it"),
    "topology check": ("pviommu.topologies.check", "say what is wrong with topology files"),
    "topology list": ("pviommu.topologies.listing", "list the topologies that come with pviommu"),
    "topology show": ("pviommu.topologies.show", "print one of them"),
    "schema": ("pviommu.schemas.command", "print the JSON Schema of a file or of an output"),
    "lab run": ("pviommu.lab.run", "boot a guest on it, run its tests and give a verdict"),
    "lab matrix": ("pviommu.lab.matrix", "run every combination of kernel, profile, mode and vCPUs, for one table"),
    "doctor": ("pviommu.lab.doctor", "say what this machine can run and what is missing"),
    "bench engine": ("pviommu.bench.engine", "measure engine, rings and DMA in one process"),
    "bench smmu": ("pviommu.bench.smmu", "measure registers, commands and walks of a virtual SMMUv3"),
    "bench ring": ("pviommu.bench.ring", "measure round trips to a server, and its cost while idle"),
    "bench maps": ("pviommu.bench.maps", "measure the cost of up to 65535 ranges of guest memory"),
    "bench delays": ("pviommu.bench.delays", "measure how long others wait while a client or guest abuses the server"),
    "bench transports": ("pviommu.bench.transports", "compare the transport with the C library libvfio-user"),
    "bench vfio": ("pviommu.bench.vfio", "measure what programs under vfio run pay for requests and DMA"),
    "bench peers": ("pviommu.bench.peers", "compare it with QEMU's own IOMMUs"),
    "bench net": ("pviommu.bench.net", "compare its network card with QEMU's own"),
    "bench report": ("pviommu.bench.report", "put measured figures into a document"),
    "faults list": ("pviommu.scenarios.listing", "list the places where rules can be, and what they can do there"),
    "faults check": ("pviommu.scenarios.check", "say what is wrong with scenario files"),
    "faults scenarios": ("pviommu.scenarios.shipped", "list the scenarios that come with pviommu"),
    "faults show": ("pviommu.scenarios.show", "print one of them"),
    "faults run": ("pviommu.scenarios.run", "play a scenario on a guest without a virtual machine"),
    "faults sweep": ("pviommu.scenarios.sweep", "try every failure at each place that a workload passes"),
    "vfio run": ("pviommu.vfio_run.command", "run a program whose /dev/iommu and /dev/vfio are a model's"),
    "build-core": ("pviommu.native.build", "compile the native core, which makes the device fast"),
    "build-libvfio-user": ("pviommu.lab.libvfio_user", "build the C library libvfio-user, for the Python bindings"),
    "completion": ("pviommu.completion", "print what completes these commands in a shell"),
    "differential": ("pviommu.differential.command", "compare the virtual SMMUv3 with QEMU's, stimulus by stimulus"),
    "selfcheck": ("pviommu.selfcheck.command", "check engine, ring and wire against a model"),
}
"""Command words, the module with ``add_arguments`` and ``main``, and the help line."""


class _Help(argparse.HelpFormatter):
    """Adds the default of every option that takes a value, unless its text has it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        takes_value = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS)
        if takes_value and action.help and "default" not in action.help.lower():
            return f"{action.help} (default: %(default)s)"
        return action.help


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` and run the command; returns the exit status. Bad arguments exit with 2.

    Output that cannot be written ends no command: that is reported at the end, with status 3 instead of 0.
    """
    with Streams() as streams:
        try:
            status = _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as ended:
            raise SystemExit(streams.status(ended.code) if isinstance(ended.code, int) else ended.code) from None
        except KeyboardInterrupt:
            print("pviommu: interrupted", file=sys.stderr)
            status = ExitStatus.INTERRUPTED
        except OSError as error:
            if not is_host_error(error):
                raise
            print(f"pviommu: {named(error)}", file=sys.stderr)
            status = ExitStatus.ENVIRONMENT
        return streams.status(status)


def _run(words: list[str]) -> int:
    gc.disable()  # modules stay: there is no garbage among them, neither while they are imported nor at the end
    try:
        parser = _parser(words)
        args, unknown = parser.parse_known_args(words)
    finally:
        gc.freeze()
        gc.enable()
    if not hasattr(args, "run"):  # newer versions of argparse find a command behind "--", where it is not looked for
        parser.error(f"{' '.join(words)}: the command must come first")
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def whole_parser() -> argparse.ArgumentParser:
    """What reads all commands, with the options of each."""
    return _parser([], list(COMMANDS))


def _parser(words_given: list[str], asked_for: list[str] | None = None) -> argparse.ArgumentParser:
    """What reads ``words_given``, or the commands ``asked_for``; without any, of all commands the names."""
    parser = argparse.ArgumentParser(
        prog="pviommu",
        description="A paravirtual IOMMU for virtual machines, made to be looked into and to be broken on purpose.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print version, ABI, profiles and core")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    asked_for = asked_for or [words for words in COMMANDS if words_given[: len(words.split())] == words.split()]
    for words in asked_for or COMMANDS:  # what is not asked for costs no start-up time
        module_name, text = COMMANDS[words]
        group, _, verb = words.partition(" ")
        if verb and group not in groups:
            outer = commands.add_parser(group, help=text)
            groups[group] = outer.add_subparsers(dest=group, required=True, metavar="COMMAND")
        inner = (groups[group] if verb else commands).add_parser(verb or group, help=text, formatter_class=_Help)
        if words in asked_for:
            module = importlib.import_module(module_name)
            module.add_arguments(inner)
            inner.set_defaults(run=module.main, parser=inner)
    return parser


def _columns() -> int:
    """Columns of the terminal, as shutil tells them: argparse would import that, and ask it for each option."""
    with contextlib.suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


class _Version(argparse.Action):
    """``--version``: what a guest's driver must match, and the core that would be used."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from .version import describe

        print(describe())
        parser.exit()
