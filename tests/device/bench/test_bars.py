"""Bars, their verdicts, and tables."""

from __future__ import annotations

import pytest

from pviommu.bench.bars import Bar, as_json, markdown_table, shown, text_table, verdict_table

SLOW = Bar("waiting", 5, "us")
FAST = Bar("rate", 1e6, "ops/s", at_most=False)


@pytest.mark.parametrize(
    ("bar", "value", "word"),
    [
        (SLOW, 5, "met"),
        (SLOW, 5.1, "NOT MET"),
        (FAST, 1e6, "met"),
        (FAST, 999_999, "NOT MET"),
        (SLOW, None, "not measured"),
    ],
)
def test_a_value_at_its_bar_meets_it(bar: Bar, value: float | None, word: str) -> None:
    assert bar.judge(value).word == word


def test_what_is_only_reported_has_no_verdict_but_a_reason() -> None:
    one = SLOW.unjudged(1, "too few cores")
    assert (one.word, one.met, one.note) == ("reported", None, "too few cores")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (3000000, "3 000 000"),
        (1234.56, "1 235"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.0156, "0.0156"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_the_table_says_limit_and_verdict() -> None:
    found = verdict_table([SLOW.judge(2.5, "note"), FAST.judge(5e5)])
    assert [" ".join(line.split()) for line in found.splitlines()[1:]] == [
        "waiting 2.50 us at most 5 us met note",
        "rate 500 000 ops/s at least 1 000 000 ops/s NOT MET",
    ]
    marked = verdict_table([SLOW.judge(2.5, "note")], markdown=True).splitlines()
    assert marked[-1] == "| waiting | 2.50 us | at most 5 us | met | note |"


def test_columns_are_aligned() -> None:
    assert text_table([("", "n"), ("a", "10"), ("bcd", "9")]) == "      n\na    10\nbcd   9"
    assert text_table([]) == ""


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")]).splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]


def test_json_keeps_value_limit_and_verdict() -> None:
    [found] = as_json([SLOW.judge(6)])
    assert (found["value"], found["limit"], found["met"], found["verdict"]) == (6, 5, False, "NOT MET")
