"""What a command is, as data: parser, help, completion, manual page, documentation and checks come from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["LIMIT", "Argument", "Command", "CommandError", "Field", "Form", "checked", "number", "paged"]

LIMIT = "limit"
"""The argument that says how long a reply may be."""
_WORD = (1 << 64) - 1
_LONGEST = 80
"""Characters of a number: more than any that fits has, in any base."""


class CommandError(Exception):
    """A command cannot be carried out; the text says why. ``kind`` is the class of the reply's error."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind


class Form(Enum):
    """What a value is, and how people see it."""

    INTEGER = "integer"
    HEX = "address"
    """an integer, shown in hexadecimal"""
    TIME = "time"
    """an integer of nanoseconds"""
    TEXT = "text"
    PATH = "path"
    """text: a file of the server's host, from its root on"""
    BOOLEAN = "boolean"
    OBJECT = "object"
    """as an argument on the command line: a file of TOML or JSON that has it"""
    LIST = "list"


@dataclass(frozen=True)
class Argument:
    """One argument of a command; those that are required are given by position on the command line."""

    name: str
    help: str
    form: Form = Form.INTEGER
    unit: str = ""
    required: bool = False
    default: int | str | None = None
    least: int = 0
    most: int = _WORD
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """One member of a command's result. Of lists and objects ``fields`` are the members of each."""

    name: str
    help: str
    form: Form = Form.INTEGER
    unit: str = ""
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Command:
    """One command."""

    name: str
    help: str
    arguments: tuple[Argument, ...] = ()
    result: tuple[Field, ...] = ()
    pages: str = ""
    """the list in the result that may be longer than one reply: the result's ``next`` is ``first`` of the next one"""


def paged(default: int, most: int, first: str, unit: str = "", form: Form = Form.INTEGER) -> tuple[Argument, ...]:
    """The arguments of a command with :attr:`Command.pages`."""
    return (
        Argument("first", f"{first} to begin with", form, unit),
        Argument(LIMIT, "most entries of one reply", default=default, least=1, most=most),
    )


def number(text: str) -> int:
    """An integer as people write it: decimal, or with 0x, 0o or 0b. Raises ValueError."""
    return int(text, 0)


def checked(command: Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` arguments, complete and of the right types. Integers may be texts, as JSON has no hexadecimal ones.

    Raises :class:`CommandError`, which names the argument and what it may be.
    """
    known = {argument.name: argument for argument in command.arguments}
    for name in given:
        if name not in known:
            raise CommandError(f"{command.name} has no argument {_short(name)}; {_listed('its arguments are', known)}")
    return {name: _checked(command, argument, given) for name, argument in known.items()}


def _checked(command: Command, argument: Argument, given: Mapping[str, Any]) -> Any:
    value = given.get(argument.name)
    what = f"{command.name}: {argument.name}"
    if value is None:
        if argument.required:
            raise CommandError(f"{what} is missing: {argument.help}")
        return argument.default
    if argument.form is Form.PATH:
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
            raise CommandError(f"{what} {_short(value)}: must be a path from the root on")
        return value
    if argument.form is Form.OBJECT:
        if not isinstance(value, dict):
            raise CommandError(f"{what} {_short(value)}: must be an object")
        return value
    if argument.form is Form.TEXT:
        if not isinstance(value, str) or (argument.choices and value not in argument.choices):
            raise CommandError(
                f"{what} {_short(value)}: {_listed('must be one of', argument.choices) or 'must be text'}"
            )
        return value
    if isinstance(value, str):
        try:
            value = number(value if len(value) <= _LONGEST else "")
        except ValueError:
            raise CommandError(f"{what} {_short(value)}: must be a number, such as 4096 or 0x1000") from None
    if isinstance(value, bool) or not isinstance(value, int) or not argument.least <= value <= argument.most:
        raise CommandError(f"{what} {_short(value)}: must be an integer from {argument.least} to {argument.most}")
    return value


def _short(value: object) -> str:
    text = hex(value) if isinstance(value, int) and value > _WORD else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _listed(before: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"{before} {', '.join(names)}" if names else "it takes none" if before.startswith("its") else ""
