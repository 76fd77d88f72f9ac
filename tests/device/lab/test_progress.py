"""Progress lines: few in a log, in place on a terminal."""

from __future__ import annotations

import io

from pviommu.lab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock() -> float:
    return 0.0


def test_log_gets_a_line_at_every_fifth_of_the_way() -> None:
    out = io.StringIO()
    progress = Progress(out, 5, clock=clock)
    progress.skip(1)
    progress.step("downloading 155 packages, 150 MB")
    for percent in range(101):
        progress.update(percent / 100)
    progress.done("ok")
    lines = out.getvalue().splitlines()
    assert lines[0] == "[2/5] downloading 155 packages, 150 MB ..."
    assert [line.rpartition(" ... ")[2] for line in lines[1:-1]] == ["20 %", "40 %", "60 %", "80 %", "100 %"]
    assert lines[-1] == "[2/5] downloading 155 packages, 150 MB ... done in 0.0 s, ok"


def test_terminal_line_is_replaced_in_place_and_ended_once() -> None:
    out = Terminal()
    progress = Progress(out, 1, clock=clock)
    progress.step("unpacking")
    progress.update(0.01)
    progress.update(0.01)
    progress.done()
    assert out.getvalue() == (
        "\r\x1b[K[1/1] unpacking ...\r\x1b[K[1/1] unpacking ... 1 %\r\x1b[K[1/1] unpacking ... done in 0.0 s\n"
    )


def test_fractions_outside_the_range_are_clamped() -> None:
    out = io.StringIO()
    progress = Progress(out, 1, clock=clock)
    progress.step("x")
    progress.update(7.0)
    assert out.getvalue().splitlines()[-1].endswith("100 %")


def test_quiet_writes_nothing() -> None:
    out = io.StringIO()
    progress = Progress(out, 1, quiet=True)
    progress.step("x")
    progress.done()
    assert out.getvalue() == ""


def test_close_ends_the_line_of_an_open_step_only() -> None:
    out = Terminal()
    progress = Progress(out, 2, clock=clock)
    progress.step("unpacking")
    progress.close()
    progress.close()
    assert out.getvalue() == "\r\x1b[K[1/2] unpacking ...\n"


def test_count_tells_how_many_and_how_long_the_others_will_take() -> None:
    out = io.StringIO()
    times = iter((0.0, 6.0, 300.0, 900.0, 1000.0))
    progress = Progress(out, 1, clock=lambda: next(times))
    progress.step("building")
    for done in (1, 200, 900, 1000):
        progress.count(done, 1000, "files")
    lines = [line.partition(" ... ")[2] for line in out.getvalue().splitlines()]
    assert lines[1:] == [
        "20 %, 200 of 1000 files, about 20 min left",
        "90 %, 900 of 1000 files, about 2 min left",
        "100 %, 1000 of 1000 files, about 0 s left",
    ]


def test_count_of_nothing_is_no_division_by_zero() -> None:
    progress = Progress(io.StringIO(), 1, clock=clock)
    progress.step("building")
    progress.count(0, 0, "files")
