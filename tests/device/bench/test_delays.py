"""The command: one abuse against a real server, and bars from figures made up here."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import delays
from pviommu.bench.abuses import ABUSES, NOTHING
from pviommu.bench.delays import DMA, OPERATIONS, REGISTER, RING, Delay, Found, judge
from pviommu.bench.idle import judge_idle, measure_idle

pytestmark = pytest.mark.row("server", 40)
QUICK = ("--rounds", "1", "--engines", "3", "--core", "python")


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    delays.add_arguments(parser)
    out = io.StringIO()
    return delays.main(parser.parse_args([*QUICK, *options]), out=out), out.getvalue()


@pytest.mark.parametrize("abuse", list(ABUSES))
def test_every_abuse_is_measured_against_a_server(tmp_path: Path, abuse: str) -> None:
    target = tmp_path / "delays.json"
    status, shown = run("--json", str(target), "--only", abuse)
    assert status == 0
    document = json.loads(target.read_text())
    [core] = document["cores"]
    [found] = core["abuses"]
    assert found["abuse"] == abuse
    assert set(found["delays"]) == set(OPERATIONS if ABUSES[abuse].leaves_ring_0 else OPERATIONS[1:])
    assert all(delay["wall_ns"] > 0 for delay in found["delays"].values())
    assert found["stop_ns"] > 0
    assert set(document["blocks"]) == {"delays", "delays-python-bars", "delays-setting"}
    assert abuse in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 to 10000"),
        (["--engines", "1"], "--engines 1: give 2 to 256"),
        (["--only", "kindness"], "--only kindness: there are nothing, pipelined"),
        (["--json", "/nowhere/x"], "--json /nowhere/x: No such file"),
    ],
)
def test_wrong_options_end_with_status_2(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    assert run(*options)[0] == 2
    assert words in capsys.readouterr().err


def found(abuse: str, milliseconds: float, stop: float = 1000) -> Found:
    delay = Delay(int(9e9), int(milliseconds * 1e6))
    return Found(abuse, {RING: delay, REGISTER: delay, DMA: delay}, int(stop * 1e6))


def test_bars_judge_the_processor_time_of_the_worst_abuse() -> None:
    judgements = judge([found(NOTHING, 1), found("worst", 10), found("other", 5)])
    assert [one.word for one in judgements] == ["met"] * 4
    assert judgements[0].note == "worst"


def test_figures_past_their_bars_do_not_meet_them() -> None:
    judgements = judge([found(NOTHING, 1), found("worst", 10.1, stop=1001)])
    assert [one.word for one in judgements] == ["NOT MET"] * 4


def test_an_operation_that_no_abuse_leaves_is_not_judged() -> None:
    only = found("x", 1)
    del only.delays[RING]
    assert len(judge([only])) == 3


def test_of_one_client_among_many_only_ring_0_is_judged() -> None:
    many = found("many", 20)
    many.judged = (RING,)
    assert [one.word for one in judge([found(NOTHING, 1), many])] == ["NOT MET", "met", "met", "met"]


def test_an_idle_turn_is_measured_with_few_endpoints_and_with_many() -> None:
    idle = measure_idle("python")
    assert set(idle) == {1, 256}
    assert all(0 < taken < 1e6 for taken in idle.values())


@pytest.mark.parametrize(("many", "word"), [(1250.0, "met"), (1260.0, "NOT MET")])
def test_endpoints_that_have_nothing_to_do_may_cost_next_to_nothing(many: float, word: str) -> None:
    judgement = judge_idle({1: 1000.0, 256: many})
    assert judgement.word == word
    assert judgement.note.startswith("1 and 1.2")
