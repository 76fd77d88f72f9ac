"""KTAP: what each kind of line means, and what a report must not get away with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pviommu.reports.ktap import Counts, Event, EventKind, KtapParser, KtapRun, Outcome


def parse(text: str) -> KtapRun:
    parser = KtapParser()
    for line in text.splitlines():
        parser.feed(line)
    return parser.finish()


NESTED = """\
KTAP version 1
1..2
  KTAP version 1
  # Subtest: isolation
  1..2
    KTAP version 1
    1..1
    # moved 0 bytes
    ok 1 a write through a read-only mapping
  ok 1 read-only
  not ok 2 hole
ok 1 isolation
ok 2 reload # SKIP no second engine
"""


def test_flat_report_counts_each_outcome() -> None:
    run = parse("KTAP version 1\n1..3\nok 1 bind\nnot ok 2 - map\nok 3 vf # SKIP no such device\n")
    assert run.problems == []
    assert run.counts() == Counts(passed=1, failed=1, skipped=1)
    assert [test.name for test in run.tests] == ["bind", "map", "vf"]
    assert run.tests[2].reason == "no such device"


def test_nested_results_become_children_of_the_next_result_line() -> None:
    run = parse(NESTED)
    assert run.problems == []
    assert [(path, result.outcome) for path, result in run.leaves()] == [
        (("isolation", "read-only", "a write through a read-only mapping"), Outcome.PASSED),
        (("isolation", "hole"), Outcome.FAILED),
        (("reload",), Outcome.SKIPPED),
    ]
    assert run.tests[0].children[0].children[0].diagnostics == ["# moved 0 bytes"]


def test_parent_that_failed_by_itself_counts_as_a_failed_test() -> None:
    run = parse("KTAP version 1\n1..1\n  1..1\n  ok 1 child\nnot ok 1 parent\n")
    assert run.counts() == Counts(passed=1, failed=1)


def test_parent_that_says_ok_over_a_failed_child_is_still_failed() -> None:
    run = parse("KTAP version 1\n1..1\n  1..1\n  not ok 1 child\nok 1 parent\n")
    assert run.tests[0].failed
    assert run.counts() == Counts(failed=1)


def test_timeout_and_error_directives_fail_and_xfail_is_skipped() -> None:
    run = parse("KTAP version 1\n1..3\nok 1 a # TIMEOUT 5 s\nok 2 b # ERROR\nnot ok 3 c # XFAIL known\n")
    assert [test.outcome for test in run.tests] == [Outcome.FAILED, Outcome.FAILED, Outcome.SKIPPED]


def test_number_sign_in_a_name_is_not_a_directive() -> None:
    run = parse("KTAP version 1\n1..2\nok 1 slot #3 works\nok 2 odd # WORD tail\n")
    assert [test.name for test in run.tests] == ["slot #3 works", "odd # WORD tail"]
    assert run.counts() == Counts(passed=2)


def test_fewer_results_than_planned_is_a_problem_that_names_the_missing() -> None:
    run = parse("KTAP version 1\n1..4\nok 1 a\nok 2 b\n")
    assert run.problems == ["the run: planned 4 tests, 2 reported, missing 3, 4"]


def test_more_results_than_planned_is_a_problem() -> None:
    assert parse("KTAP version 1\n1..1\nok 1 a\nok 2 b\n").problems == ["the run: planned 1 tests, 2 reported"]


def test_plan_mismatch_inside_a_subtest_names_the_subtest() -> None:
    run = parse("KTAP version 1\n1..1\n  1..2\n  ok 1 a\nok 1 partial results\n")
    assert run.problems == ["partial results: planned 2 tests, 1 reported, missing 2"]


def test_wrong_number_is_a_problem() -> None:
    assert parse("KTAP version 1\n1..2\nok 1 a\nok 1 b\n").problems == ["b: reported as number 1, expected 2"]


def test_bail_out_is_a_problem_with_its_reason() -> None:
    run = parse("KTAP version 1\n1..1\nok 1 a\nBail out! driver is gone\n")
    assert run.problems == ["the tests bailed out: driver is gone"]


def test_subtests_cut_off_before_their_result_line_are_kept_and_reported() -> None:
    run = parse("KTAP version 1\n1..1\n  1..2\n  ok 1 a\n")
    assert run.counts() == Counts(passed=1)
    assert "subtests without the result line of their test: a" in run.problems


def test_empty_report_says_what_it_lacks() -> None:
    assert parse("").problems == ['no "KTAP version 1" line', "no plan line"]


def test_second_plan_does_not_replace_the_first() -> None:
    assert "second plan at level 0: 1..1" in parse("KTAP version 1\n1..2\nok 1 a\n1..1\n").problems


def test_feed_says_what_each_line_meant() -> None:
    parser = KtapParser()
    kinds = [parser.feed(line).kind for line in ("KTAP version 1", "1..1", "hello", "not ok 1 map", "Bail out!")]
    assert kinds == [
        EventKind.VERSION,
        EventKind.PLAN,
        EventKind.DIAGNOSTIC,
        EventKind.RESULT,
        EventKind.BAIL_OUT,
    ]


def test_diagnostics_of_one_result_are_bounded() -> None:
    parser = KtapParser()
    for number in range(1000):
        parser.feed(f"# {number}")
    parser.feed("ok 1 noisy")
    assert len(parser.finish().tests[0].diagnostics) == 200


LINES = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda depth, body: "  " * depth + body,
        st.integers(0, 20),
        st.sampled_from(["KTAP version 1", "1..2", "ok 1 a", "not ok 2 b", "ok 1 # SKIP", "Bail out!", "# x"]),
    ),
)


@given(st.lists(LINES, max_size=40))
def test_any_text_is_taken_and_every_result_line_is_counted_once(lines: list[str]) -> None:
    parser = KtapParser()
    events: list[Event] = [parser.feed(line) for line in lines]
    run = parser.finish()

    def size(tests: list) -> int:
        return sum(1 + size(test.children) for test in tests)

    assert size(run.tests) == sum(event.kind is EventKind.RESULT for event in events)
