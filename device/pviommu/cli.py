"""The ``pviommu`` command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from . import __version__

__all__ = ["main"]

_COMMANDS = {
    "serve": ("pviommu.serve", "serve a topology to QEMU"),
    "lab run": ("pviommu.lab.run", "boot a guest on it and judge the run"),
    "lab matrix": ("pviommu.lab.matrix", "run every kernel, profile, mode and number of vCPUs, one table"),
    "doctor": ("pviommu.lab.doctor", "say what this machine can run and what is missing"),
    "bench engine": ("pviommu.bench.engine", "measure engine, rings and DMA in one process"),
    "bench ring": ("pviommu.bench.ring", "measure round trips to a server, and what it costs while idle"),
    "bench delays": ("pviommu.bench.delays", "measure how long others wait while a client or guest abuses the server"),
    "bench peers": ("pviommu.bench.peers", "measure it beside QEMU's own IOMMUs"),
    "bench report": ("pviommu.bench.report", "put measured figures into a document"),
    "build-core": ("pviommu.native.build", "compile the native core, which makes the device fast"),
    "selfcheck": ("pviommu.selfcheck.command", "check engine, ring and wire against a model"),
}
"""Command words, the module with ``add_arguments`` and ``main``, and the help line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` and run the command; returns the exit status. Bad arguments exit with 2."""
    words_given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="pviommu",
        description="A paravirtual IOMMU for virtual machines that one can see inside and break on purpose.",
    )
    parser.add_argument("--version", action="version", version=f"pviommu {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for words, (module_name, text) in _COMMANDS.items():
        group, _, verb = words.partition(" ")
        if verb and group not in groups:
            outer = commands.add_parser(group, help=text)
            groups[group] = outer.add_subparsers(dest=group, required=True, metavar="COMMAND")
        inner = (groups[group] if verb else commands).add_parser(verb or group, help=text)
        if words_given[: len(words.split())] == words.split():  # only what is asked for costs start-up time
            module = importlib.import_module(module_name)
            module.add_arguments(inner)
            inner.set_defaults(run=module.main)
    args = parser.parse_args(words_given)
    if not hasattr(args, "run"):  # newer versions of argparse find a command behind "--", where it is not looked for
        parser.error(f"{' '.join(words_given)}: a command comes first")
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)
