"""``pviommu ctl``: the commands of a running server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..exit_status import ExitStatus
from .client import Client, ConnectionLostError
from .commands import COMMANDS
from .description import LIMIT, Argument, Command, CommandError, Form, number
from .render import rendered

__all__ = ["VARIABLE", "add_arguments", "main"]

_DAY = 24 * 60 * 60
VARIABLE = "PVIOMMU_CTL"
"""Names the socket where no option does."""
DESCRIPTION = (
    "Ask a running server, or steer it, by its control socket (`pviommu serve --ctl PATH`). Exit status: 0 done, "
    "1 the server refused it, 2 bad arguments, 3 no server is reached."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu ctl``, and its commands with theirs."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help=f"the server's control socket; default: what {VARIABLE} names"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, a line each")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for each reply, a day at most",
    )
    commands = parser.add_subparsers(dest="ctl_command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        inner = commands.add_parser(
            command.name, help=command.help, description=f"{command.help}.", formatter_class=parser.formatter_class
        )
        for argument in command.arguments:
            _add(inner, argument)
        inner.set_defaults(ctl=command)


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    name = argument.name if argument.required else f"--{argument.name}"
    text = argument.help + (f", in {argument.unit}" if argument.unit else "")
    default = argument.default
    if argument.name == LIMIT:  # only what was asked for ends a list
        text, default = f"{text}, and only that one; default: all of them, {default} a reply", None
    elif default is None and not argument.required:
        text += "; default: none"
    if argument.form is Form.PATH:
        parser.add_argument(name, type=os.path.abspath, default=default, metavar=argument.name.upper(), help=text)
    elif argument.form is Form.OBJECT:
        parser.add_argument(name, type=_document, default=default, metavar="FILE", help=text)
    elif argument.choices:
        parser.add_argument(name, choices=argument.choices, default=default, help=text)
    elif argument.form is Form.TEXT:
        parser.add_argument(name, default=default, metavar=argument.name.upper(), help=text)
    else:
        parser.add_argument(name, type=_number, default=default, metavar=argument.name.upper(), help=text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _DAY:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds above 0, at most {_DAY}")
    return seconds


def _number(text: str) -> int:
    try:
        return number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, such as 4096 or 0x1000") from None


def _document(name: str) -> Any:
    """What a scenario's file has: JSON if its name ends so, otherwise TOML."""
    from ..faults.scenario import ScenarioError, load  # only what is asked for costs start-up time

    try:
        return msgspec.to_builtins(load(Path(name)))
    except ScenarioError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu ctl``; returns its exit status."""
    command: Command = args.ctl
    path = args.socket or os.environ.get(VARIABLE)
    if not path:
        print(f"pviommu ctl: no socket: give --socket PATH, or set {VARIABLE}", file=sys.stderr)
        return ExitStatus.USAGE
    given = {each.name: getattr(args, each.name) for each in command.arguments}
    arguments = {name: value for name, value in given.items() if value is not None}
    try:
        with Client(path, args.timeout) as client:
            for result in _pages(client, command, arguments):
                sys.stdout.write(json.dumps(result) + "\n" if args.json else rendered(command, result))
    except CommandError as error:
        print(f"pviommu ctl: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    except ConnectionLostError as error:
        print(f"pviommu ctl: {error}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    return ExitStatus.PASSED


def _pages(client: Client, command: Command, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The result; of a long one all replies, if nobody asked for a certain number of entries."""
    is_one = not command.pages or LIMIT in arguments
    while True:
        result: dict[str, Any] = client.call(command.name, arguments)
        yield result
        if is_one or result.get("next") is None:
            return
        arguments = arguments | {"first": result["next"]}
