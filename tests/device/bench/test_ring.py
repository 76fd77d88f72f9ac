"""The command: one short run against a real server, and bars from figures made up here."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import ring
from pviommu.bench.ring import (
    ECHO,
    POSTED,
    POSTED_ASLEEP,
    REGISTER,
    SUBMIT,
    WAITED,
    WAKE,
    WORDS,
    Measured,
    judge,
)
from pviommu.bench.samples import Series

QUICK = ("--repeat", "1", "--sample-ms", "0.01", "--core", "python")


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    ring.add_arguments(parser)
    out = io.StringIO()
    return ring.main(parser.parse_args([*QUICK, *options]), out=out), out.getvalue()


def test_everything_is_measured_against_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_IDLE_SECONDS", 0.02)
    target = tmp_path / "ring.json"
    status, shown = run("--json", str(target), "--spin-us", "50")
    assert status == 0
    document = json.loads(target.read_text())
    [core] = document["cores"]
    everything = {WAITED, SUBMIT, POSTED, WORDS, REGISTER, WAKE, POSTED_ASLEEP, ECHO}
    assert {series["name"] for series in core["series"]} == everything
    assert set(core["times"]) == {"start to listening", "--print-capabilities"}
    assert set(core["processor"]) == {"idle", "1000 ops/s", "100 ops/s"}
    assert {"ring-python", "ring-python-bars", "ring-python-processor", "ring-setting"} == set(document["blocks"])
    assert "waited op, polling" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repeat", "0"], "--repeat 0: give 1 to 1000"),
        (["--sample-ms", "-1"], "--sample-ms -1: give a number above 0"),
        (["--spin-us", "-1"], "--spin-us -1: must not be negative"),
        (["--json", "/nowhere/x"], "--json /nowhere/x: No such file"),
    ],
)
def test_wrong_options_end_with_status_2(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    assert run(*options)[0] == 2
    assert words in capsys.readouterr().err


def found(**changes: float) -> Measured:
    values = {"waited": 500.0, "words": 100.0, "bells": 15.0, "idle": 0.0, "start": 300e6, "printed": 100e6} | changes
    return Measured(
        [Series(WAITED, values=[values["waited"]]), Series(WORDS, values=[values["words"]])],
        {"start to listening": [values["start"]], "--print-capabilities": [values["printed"]]},
        {WAITED: values["bells"], POSTED: 0.0},
        {"idle": values["idle"]},
    )


def test_figures_at_their_bars_meet_them() -> None:
    assert [one.word for one in judge(found())] == ["met"] * 5


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"waited": 501.0}, 0),
        ({"bells": 16.0}, 1),
        ({"idle": 1e-6}, 2),
        ({"start": 301e6}, 3),
        ({"printed": 101e6}, 4),
    ],
)
def test_each_bar_can_be_missed(change: dict[str, float], missed: int) -> None:
    words = [one.word for one in judge(found(**change))]
    assert words == ["NOT MET" if at == missed else "met" for at in range(5)]
