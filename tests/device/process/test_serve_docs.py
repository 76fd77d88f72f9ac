"""The table of options in the docs is the command line's."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from pviommu.exit_status import ExitStatus
from pviommu.process import serve

pytestmark = pytest.mark.row("server", 92)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serve.md"


@pytest.fixture
def actions() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    serve.add_arguments(parser)
    return {(action.option_strings or [action.dest.upper()])[0]: action for action in parser._actions}


@pytest.fixture
def table() -> dict[str, tuple[str, str, str]]:
    """Option -> what it takes, its default, what it does."""
    section = PAGE.read_text().partition("## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S+?)(?: (\S+))?` \| (.*?) \| (.+) \|$", section, re.MULTILINE)
    return {option: (value, default.strip(), text) for option, value, default, text in rows}


def test_it_has_every_option_and_no_other(
    actions: dict[str, argparse.Action], table: dict[str, tuple[str, str, str]]
) -> None:
    assert set(table) == set(actions)


def test_it_has_their_values_choices_and_defaults(
    actions: dict[str, argparse.Action], table: dict[str, tuple[str, str, str]]
) -> None:
    for option, action in actions.items():
        value, default, text = table[option]
        assert bool(value) == (action.nargs is None), option
        if action.choices:
            assert all(f"`{choice}`" in text for choice in action.choices), option
        elif action.metavar:
            assert value == action.metavar
        if action.default in (None, [], False):
            assert "`" not in default, f"{option} has no default"
            assert default, f"{option}: say what holds without it"
        else:
            assert default == f"`{action.default}`", option


def test_each_exit_status_is_there() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert parser.description is not None
    for status in (0, 1, ExitStatus.USAGE, ExitStatus.ENVIRONMENT):
        assert re.search(rf"Exit status:.*\b{status} ", parser.description)
        assert re.search(rf"Exit status:.*\b{status} ", PAGE.read_text())
