"""The manual page and the tables of docs/ctl.md, made from the descriptions: ``python -m pviommu.control.manual .``"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ..exit_status import ExitStatus
from .command import DESCRIPTION, VARIABLE
from .commands import COMMANDS
from .description import Argument, Field

__all__ = ["BEGIN", "END", "manual_page", "tables", "write"]

BEGIN, END = "<!-- commands: generated -->\n", "<!-- end of commands -->\n"
"""Around the tables in the document."""


def manual_page() -> str:
    """``pviommu-ctl.1``, as man(7) takes it."""
    lines = [
        '.TH PVIOMMU-CTL 1 "" "pviommu" "User Commands"',
        ".SH NAME",
        "pviommu-ctl \\- look at a running pviommu server, and steer it",
        ".SH SYNOPSIS",
        ".B pviommu ctl",
        "[\\fB\\-\\-socket\\fR \\fIPATH\\fR] [\\fB\\-\\-json\\fR]",
        "[\\fB\\-\\-timeout\\fR \\fISECONDS\\fR] \\fICOMMAND\\fR ...",
        ".SH DESCRIPTION",
        _roff(DESCRIPTION),
        ".SH COMMANDS",
    ]
    for command in COMMANDS:
        lines += [".SS " + " ".join((f"\\fB{_roff(command.name)}\\fR", *map(_usage, command.arguments)))]
        lines += [_roff(f"{command.help[0].upper()}{command.help[1:]}.")]
        for argument in command.arguments:
            lines += [".TP", _usage(argument).strip("[]"), _roff(_said(argument))]
        if command.result:
            lines += [".PP", "Result:"]
            for field in command.result:
                lines += [".TP", f"\\fI{_roff(field.name)}\\fR", _roff(_of_field(field))]
    lines += [
        *(".SH ENVIRONMENT", ".TP", f".B {VARIABLE}", "The control socket, where no option names it."),
        *(".SH EXIT STATUS", ".TP", f".B {ExitStatus.PASSED:d}", "done"),
        *(".TP", f".B {ExitStatus.FAILED:d}", "the server refused it"),
        *(".TP", f".B {ExitStatus.USAGE:d}", "bad arguments"),
        *(".TP", f".B {ExitStatus.ENVIRONMENT:d}", "no server is reached"),
    ]
    return "\n".join(lines) + "\n"


def _usage(argument: Argument) -> str:
    value = "|".join(argument.choices) or argument.name.upper()
    if argument.required:
        return f"\\fI{_roff(value)}\\fR"
    return f"[\\fB\\-\\-{_roff(argument.name)}\\fR \\fI{_roff(value)}\\fR]"


def _said(argument: Argument) -> str:
    unit = f", in {argument.unit}" if argument.unit else ""
    default = "" if argument.default is None else f" (default: {argument.default})"
    return f"{argument.help}{unit}{default}"


def _of_field(field: Field) -> str:
    return f"{field.help}{f', in {field.unit}' if field.unit and field.unit not in field.help else ''}"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def tables() -> str:
    """What docs/ctl.md has between its marks."""
    return "\n".join(line.replace("READ|WRITE", "READ\\|WRITE") for line in _tables())


def _tables() -> Iterator[str]:
    yield "| command | arguments | what it does |"
    yield "| --- | --- | --- |"
    for command in COMMANDS:
        given = " ".join(_in_markdown(argument) for argument in command.arguments)
        yield f"| `{command.name}` | {given} | {command.help} |"
    for command in COMMANDS:
        if command.arguments or command.result:
            yield ""
            yield f"### {command.name}"
            yield ""
            yield "| | type | |"
            yield "| --- | --- | --- |"
            for argument in command.arguments:
                yield f"| argument `{argument.name}` | {_type(argument)} | {_said(argument)} |"
            for field in command.result:
                yield f"| `{field.name}` | {field.form.value} | {_of_field(field)} |"
                for inner in field.fields:
                    yield f"| `{field.name}` → `{inner.name}` | {inner.form.value} | {_of_field(inner)} |"
    yield ""


def _in_markdown(argument: Argument) -> str:
    return f"`{argument.name.upper()}`" if argument.required else f"`--{argument.name}`"


def _type(argument: Argument) -> str:
    return ", ".join(f"`{choice}`" for choice in argument.choices) or argument.form.value


def write(folder: Path) -> None:
    """Renew both in a checkout. Raises OSError, ValueError for a document without its marks."""
    (folder / "docs" / "pviommu-ctl.1").write_text(manual_page())
    page = folder / "docs" / "ctl.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: has no {BEGIN.strip()} or no {END.strip()}")
    page.write_text(f"{before}{BEGIN}{tables()}{END}{after}")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
