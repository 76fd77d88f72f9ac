"""Figures put into a document."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import report
from pviommu.bench.output import Document

PLACE = "# T\n\n<!-- begin x -->\n<!-- end x -->\n<!-- begin y -->\n<!-- end y -->\n"


def run(*arguments: object) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    out = io.StringIO()
    return report.main(parser.parse_args([str(word) for word in arguments]), out=out), out.getvalue()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "x.json"
    path.write_text(Document("c", "t", {}, {"x": "| 1 |"}, {"x.svg": "<svg/>", "../y.svg": "<svg/>"}).json())
    return path


def test_tables_and_plots_arrive_and_what_is_missing_is_told(tmp_path: Path, results: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(PLACE)
    status, said = run(document, results, "--plots", tmp_path / "plots")
    assert (status, said) == (0, "left as it is: y\n")
    assert "<!-- begin x -->\n| 1 |\n<!-- end x -->" in document.read_text()
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["x.svg", "y.svg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "x.json: No such file"),
        ("{", "x.json: not JSON"),
        ("[]", "not written by a benchmark"),
        (json.dumps({"blocks": {"x": 1}, "plots": {}}), "not written by a benchmark"),
    ],
)
def test_results_that_are_none_end_with_status_2(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    document = tmp_path / "doc.md"
    document.write_text(PLACE)
    results.unlink()
    if content is not None:
        results.write_text(content)
    assert run(document, results)[0] == 2
    assert words in capsys.readouterr().err
    assert document.read_text() == PLACE


def test_a_document_that_is_missing_ends_with_status_2(tmp_path: Path, results: Path) -> None:
    assert run(tmp_path / "none.md", results)[0] == 2
