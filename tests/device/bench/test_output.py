"""Documents, where they are written, and places in other documents."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import pytest

from pviommu.bench.output import Document, add_targets, check_targets, fill, give, machine, siblings
from pviommu.lab.problems import UsageError

DOCUMENT = Document("pviommu bench x", "text", {"time": "now"}, {"x-bars": "| a |"}, {"x.svg": "<svg/>"})


def test_json_holds_data_tables_and_plots() -> None:
    assert json.loads(DOCUMENT.json()) == {
        "command": "pviommu bench x",
        "time": "now",
        "blocks": {"x-bars": "| a |"},
        "plots": {"x.svg": "<svg/>"},
    }


def targets(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_targets(parser)
    return parser.parse_args(options)


def test_tables_go_where_they_are_wanted(tmp_path: Path) -> None:
    give(DOCUMENT, targets("--markdown", str(tmp_path / "x.md")), io.StringIO())
    assert (tmp_path / "x.md").read_text() == "| a |\n"


def test_json_goes_where_it_is_wanted(tmp_path: Path) -> None:
    out = io.StringIO()
    give(DOCUMENT, targets(), out)
    assert out.getvalue() == ""
    give(DOCUMENT, targets("--json", str(tmp_path / "x.json")), out)
    give(DOCUMENT, targets("--json", "-"), out)
    assert out.getvalue() == (tmp_path / "x.json").read_text() == DOCUMENT.json()


def test_a_target_that_cannot_be_written_is_named_with_its_option(tmp_path: Path) -> None:
    check_targets(targets())
    check_targets(targets("--json", "-"))
    for option in ("--json", "--markdown"):
        with pytest.raises(UsageError, match=f"{option} {tmp_path}: Is a directory"):
            check_targets(targets(option, str(tmp_path)))


def test_a_place_gets_its_block_and_others_stay() -> None:
    text = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n<!-- begin two -->\nkept\n<!-- end two -->\n"
    filled, missing = fill(text, {"one": "new\nlines", "three": "unused"})
    assert filled == text.replace("old\n", "new\nlines\n")
    assert missing == ["two"]
    assert fill(filled, {"one": "new\nlines"})[0] == filled


def test_a_place_without_an_end_is_none() -> None:
    assert fill("<!-- begin one -->\nx\n", {"one": "new"}) == ("<!-- begin one -->\nx\n", [])


def test_the_machine_says_versions_and_cores() -> None:
    found = machine()
    assert int(found["cores"]) >= 1
    assert {"pviommu", "python", "host", "processor", "siblings", "pinning"} <= set(found)


@pytest.mark.parametrize(
    ("lists", "said"),
    [(["0", "1"], "none"), (["0-1", "0-1"], "0-1"), (["0,2", "1,3", "0,2", "1,3"], "0,2 1,3"), ([], "none")],
)
def test_the_machine_says_which_processors_share_a_core(tmp_path: Path, lists: list[str], said: str) -> None:
    for number, text in enumerate(lists):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    assert siblings(tmp_path) == said


def test_the_machine_says_to_what_processors_it_is_pinned() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine()["pinning"] == ("none" if os.cpu_count() == 1 else f"to {min(allowed)}")
    finally:
        os.sched_setaffinity(0, allowed)
