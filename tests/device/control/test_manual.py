"""Manual page, tables and parser are made from the descriptions, and those in docs are of now."""

import argparse
import re
from pathlib import Path

import pytest

from pviommu.control import command, manual
from pviommu.control.commands import COMMANDS
from pviommu.control.description import Form
from pviommu.history.explanation import Cause

DOCS = Path(__file__).parents[3] / "docs"
GIVEN = {Form.INTEGER: "0x10", Form.HEX: "0x10", Form.TEXT: "x", Form.PATH: "/x"}
TAKEN = {Form.TEXT: "x", Form.PATH: "/x", Form.OBJECT: {"rule": ({"id": "a", "on": "reset.pre"},)}}
AGAIN = "python -m pviommu.control.manual ."


def test_the_manual_page_is_of_now():
    assert (DOCS / "pviommu-ctl.1").read_text() == manual.manual_page(), AGAIN


def test_the_tables_are_of_now():
    page = (DOCS / "ctl.md").read_text()

    assert page.partition(manual.BEGIN)[2].partition(manual.END)[0] == manual.tables(), AGAIN


def test_writing_them_again_changes_nothing_else(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ctl.md").write_text(f"before\n{manual.BEGIN}old\n{manual.END}after\n")
    manual.write(tmp_path)

    text = (tmp_path / "docs" / "ctl.md").read_text()
    assert text == f"before\n{manual.BEGIN}{manual.tables()}{manual.END}after\n"
    assert (tmp_path / "docs" / "pviommu-ctl.1").read_text() == manual.manual_page()


def test_a_document_without_marks_is_refused(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ctl.md").write_text("text\n")

    with pytest.raises(ValueError, match=r"ctl\.md: has no <!-- commands: generated -->"):
        manual.write(tmp_path)


def test_every_cause_is_in_the_document():
    page = (DOCS / "ctl.md").read_text()
    assert [cause.value for cause in Cause if f"`{cause.value}`" not in page] == []


@pytest.fixture
def parser():
    made = argparse.ArgumentParser("pviommu ctl")
    command.add_arguments(made)
    return made


@pytest.mark.parametrize("described", COMMANDS, ids=lambda each: each.name)
def test_the_parser_takes_what_is_described(parser, described, tmp_path):
    (tmp_path / "x.toml").write_text('[[rule]]\nid = "a"\non = "reset.pre"\n')
    given = GIVEN | {Form.OBJECT: f"{tmp_path}/x.toml"}
    words = [described.name]
    for argument in described.arguments:
        value = argument.choices[-1] if argument.choices else given[argument.form]
        words += [value] if argument.required else [f"--{argument.name}", value]
    args = parser.parse_args(words)

    assert args.ctl is described
    for argument in described.arguments:
        value = getattr(args, argument.name)
        assert value == (argument.choices[-1] if argument.choices else TAKEN.get(argument.form, 16))


@pytest.mark.parametrize("described", COMMANDS, ids=lambda each: each.name)
def test_help_says_what_is_described(parser, described, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args([described.name, "--help"])

    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"{described.help}." in said
    for argument in described.arguments:
        assert argument.help in said


def test_all_commands_are_in_the_help(parser):
    said = re.sub(r"\s+", " ", parser.format_help())

    assert all(f" {each.name} {each.help}" in said for each in COMMANDS)
