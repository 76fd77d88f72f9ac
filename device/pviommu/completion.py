"""``pviommu completion``: what a shell needs to complete the command line, made from the parsers themselves."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["SHELLS", "Level", "add_arguments", "levels", "main"]


@dataclass
class Level:
    """What may come after some command words."""

    words: str
    """the command words so far, each after a space"""
    commands: dict[str, str] = field(default_factory=dict)
    """words that may follow, and what they are"""
    options: dict[str, str] = field(default_factory=dict)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """of each option that takes a value: what it may be; empty: anything, a file perhaps"""
    operands: tuple[str, ...] = ()
    """what an operand may be, if that is one of a few words"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu completion``."""
    parser.description = (
        "Print a script that has a shell complete pviommu's commands, options and their values. "
        "bash: source <(pviommu completion bash); zsh: the same, after compinit; "
        "fish: pviommu completion fish | source."
    )
    parser.add_argument("shell", choices=sorted(SHELLS), help="for which shell")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu completion``; returns its exit status."""
    from .cli import whole_parser

    sys.stdout.write(SHELLS[args.shell](levels(whole_parser())))
    return 0


def levels(parser: argparse.ArgumentParser) -> list[Level]:
    """The level of a parser, and those of its commands."""
    return list(_levels(parser, ""))


def _levels(parser: argparse.ArgumentParser, words: str) -> Iterator[Level]:
    level = Level(words)
    yield level
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            level.commands = {name: helps.get(name, "") for name in action.choices}
            for name, inner in action.choices.items():
                yield from _levels(inner, f"{words} {name}")
        elif action.option_strings:
            for option in action.option_strings:
                level.options[option] = (action.help or "").split(";")[0].replace("%(prog)s", "pviommu")
                if action.nargs != 0:
                    level.values[option] = tuple(map(str, action.choices or ()))
        elif action.choices:
            level.operands += tuple(map(str, action.choices))


def _bash(found: list[Level]) -> str:
    commands = "|".join(shlex.quote(level.words) for level in found if level.words)
    lines = [
        "# bash completion of pviommu",
        "_pviommu() {",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} path= i words=",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        case "$path ${COMP_WORDS[i]}" in',
        f'            {commands}) path+=" ${{COMP_WORDS[i]}}" ;;',
        "        esac",
        "    done",
        "    COMPREPLY=()",
        '    case "$path $before" in',
        *(
            f"        {shlex.quote(f'{level.words} {option}')}) "
            + (_compgen(values) if values else 'COMPREPLY=($(compgen -f -- "$current"))')
            + "; return ;;"
            for level in found
            for option, values in level.values.items()
        ),
        "    esac",
        '    case "$path" in',
        *(
            f"        {shlex.quote(level.words)}) words="
            f"{shlex.quote(' '.join((*level.commands, *level.options, *level.operands)))} ;;"
            for level in found
        ),
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -F _pviommu pviommu",
    ]
    return "\n".join(lines) + "\n"


def _compgen(values: tuple[str, ...]) -> str:
    return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(values))} -- "$current"))'


def _zsh(found: list[Level]) -> str:
    commands = "|".join(shlex.quote(level.words) for level in found if level.words)
    lines = [
        "#compdef pviommu",
        "_pviommu() {",
        '    local at="" i',
        "    local -a described",
        "    for ((i = 2; i < CURRENT; i++)); do",
        '        case "$at ${words[i]}" in',
        f'            ({commands}) at="$at ${{words[i]}}" ;;',
        "        esac",
        "    done",
        '    case "$at ${words[CURRENT-1]}" in',
        *(
            f"        ({shlex.quote(f'{level.words} {option}')}) "
            + (f"compadd -- {' '.join(map(shlex.quote, values))}" if values else "_files")
            + "; return ;;"
            for level in found
            for option, values in level.values.items()
        ),
        "    esac",
        '    case "$at" in',
        *(
            f"        ({shlex.quote(level.words)}) described=({' '.join(_described_for_zsh(level))}) ;;"
            for level in found
        ),
        "    esac",
        "    _describe -o pviommu described",
        "    _files",
        "}",
        "compdef _pviommu pviommu",
    ]
    return "\n".join(lines) + "\n"


def _described_for_zsh(level: Level) -> Iterator[str]:
    for name, text in {**level.commands, **level.options, **dict.fromkeys(level.operands, "")}.items():
        yield shlex.quote(f"{name}:{text}" if text else name)


def _fish(found: list[Level]) -> str:
    commands = " ".join(_fish_quoted(level.words) for level in found if level.words)
    lines = [
        "# fish completion of pviommu",
        "function __pviommu_at",
        "    set -l path ''",
        "    for word in (commandline -opc)[2..]",
        f'        contains -- "$path $word" {commands}; and set path "$path $word"',
        "    end",
        '    test "$path" = "$argv[1]"',
        "end",
    ]
    for level in found:
        here = f"complete -c pviommu -n {_fish_quoted(f'__pviommu_at {_fish_quoted(level.words)}')}"
        for name, text in level.commands.items():
            lines.append(f"{here} -f -a {_fish_quoted(name)} -d {_fish_quoted(text)}")
        for option, text in level.options.items():
            kind = "-l" if option.startswith("--") else "-s"
            line = f"{here} {kind} {option.lstrip('-')} -d {_fish_quoted(text)}"
            if option in level.values:
                values = level.values[option]
                line += f" -x -a {_fish_quoted(' '.join(values))}" if values else " -r"
            lines.append(line)
        if level.operands:
            lines.append(f"{here} -f -a {_fish_quoted(' '.join(level.operands))}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[list[Level]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""By name, what makes the script."""
