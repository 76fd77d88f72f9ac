"""Lines of a guest's report, shown as they come."""

from __future__ import annotations

import io

from pviommu.lab.listener import Listener


def shown(*lines: str, verbose: bool = False) -> tuple[Listener, str]:
    stream = io.StringIO()
    listener = Listener(stream, verbose=verbose)
    for line in lines:
        listener.line(line)
    return listener, stream.getvalue()


def test_results_are_shown_with_their_depth_and_reason() -> None:
    _, text = shown("KTAP version 1", "1..2", "  ok 1 copies", "not ok 1 DMA", "ok 2 huge # SKIP no pages")

    assert text == "  ok   copies\nFAIL DMA\nskip huge (no pages)\n"


def test_diagnostics_belong_to_failures_unless_all_are_wanted() -> None:
    report = ("# got 3", "not ok 1 a", "# slot 7", "ok 2 b")

    assert shown(*report)[1] == "FAIL a\n     # got 3\nok   b\n"
    assert shown(*report, verbose=True)[1] == "# got 3\nFAIL a\n# slot 7\nok   b\n"


def test_exit_line_is_kept_and_not_shown() -> None:
    listener, text = shown("# lab: exit 3")

    assert (listener.exit_status, text) == (3, "")


def test_report_that_a_second_kernel_goes_on_with_is_one_report() -> None:
    first = ("KTAP version 1", "1..3", "ok 1 binds", "# starting a second kernel")
    second = ("[    0.0] noise of its boot", "ok 2 binds again", "ok 3 works", "# lab: exit 0")
    listener, _ = shown(*first, *second)

    run = listener.parser.finish()
    assert [test.name for test in run.tests] == ["binds", "binds again", "works"]
    assert (run.problems, listener.exit_status) == ([], 0)


def test_second_kernel_that_begins_a_report_of_its_own_is_a_problem() -> None:
    listener, _ = shown("KTAP version 1", "1..2", "ok 1 binds", "KTAP version 1", "1..2", "ok 2 works")

    assert listener.parser.finish().problems == ["second plan at level 0: 1..2"]


def test_status_of_the_users_program_is_kept_and_not_shown() -> None:
    listener, text = shown("# lab: program 7", "# lab: program 1000", "# lab: exit 1")

    assert (listener.program_status, listener.exit_status, text) == (7, 1, "")


def test_time_of_a_result_is_that_since_the_result_before_it() -> None:
    clock = iter((10.0, 12.0, 12.5, 20.0))
    listener = Listener(io.StringIO(), verbose=False, now=lambda: next(clock))
    for line in ("KTAP version 1", "1..2", "  1..1", "  ok 1 copies", "# a note", "ok 1 DMA", "ok 2 storm"):
        listener.line(line)

    tests = listener.parser.finish().tests
    assert [(test.name, test.seconds) for test in (*tests[0].children, *tests)] == [
        ("copies", 2.0),
        ("DMA", 0.5),
        ("storm", 7.5),
    ]
