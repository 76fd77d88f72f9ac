"""The command: both servers measured shortly, and bars from figures made up here."""

from __future__ import annotations

import argparse
import io
import json
import socket
import threading
from pathlib import Path

import pytest

from libvfio_user import Library
from pviommu.bench import transports
from pviommu.bench.transports import JUDGED, MAP, READ, WAITED, WAKE, WRITE, Trap, judge
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.progress import Progress
from pviommu.transports import TRANSPORTS


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    transports.add_arguments(parser)
    return parser.parse_args(options)


def test_both_servers_are_measured(tmp_path: Path) -> None:
    target, out = tmp_path / "transports.json", io.StringIO()
    options = ("--core", "python", "--repeat", "1", "--sample-ms", "0.2", "--json", str(target))
    assert transports.main(parsed(*options), out=out) == 0
    document = json.loads(target.read_text())
    assert set(document["transports"]) == set(TRANSPORTS)
    for found in document["transports"].values():
        assert {READ, WRITE, MAP, WAITED, WAKE, "memory of the server", "start to listening"} <= set(found)
        assert all(values and min(values) > 0 for values in found.values())
    assert set(document["blocks"]) == {"transports", "transports-bars", "transports-setting"}
    assert document["versions"]["libvfio-user"] == "2022"
    shown = out.getvalue()
    assert "trapped read, its server, us" in shown
    assert "at most 1.30 x libvfio-user" in shown


@pytest.mark.parametrize(
    ("own", "word", "value"),
    [([130.0, 260.0, 2600.0], "met", 1.3), ([131.0, 262.0, 1.0], "NOT MET", 1.31)],
)
def test_the_bar_is_for_the_median_of_the_ratios_of_each_round(own: list[float], word: str, value: float) -> None:
    figures = [own, [100.0, 200.0, 100.0]]
    found = {name: dict.fromkeys(JUDGED, values) for name, values in zip(TRANSPORTS, figures, strict=True)}
    assert [(one.word, round(one.value or 0, 2)) for one in judge(found)] == [(word, value)] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--repeat", "0"), "--repeat 0: give 1 to 1000"),
        (("--sample-ms", "0"), "--sample-ms 0: give a number above 0, up to 10000"),
    ],
)
def test_wrong_options_end_with_status_2(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert transports.main(parsed(*options)) == 2
    assert words in capsys.readouterr().err


def test_without_a_library_it_ends_with_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(progress: Progress) -> Library:
        raise EnvironmentProblem("libvfio-user /x.so: LIBVFIO_USER names no file", "build one")

    assert transports.main(parsed("--core", "python"), provide=refuse) == 3
    assert capsys.readouterr().err.endswith("libvfio-user /x.so: LIBVFIO_USER names no file; build one\n")


def test_an_access_that_is_refused_is_no_figure() -> None:
    near, far = socket.socketpair()

    def refuse() -> None:
        far.recv(64)
        far.send(bytes(16))

    server = threading.Thread(target=refuse)
    server.start()
    with near, far:
        with pytest.raises(RunError, match="answered a trapped access with 16 bytes, not 36"):
            Trap(near).read(1)
        server.join()
