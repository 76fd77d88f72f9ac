"""The command: exit statuses, and what it prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pviommu.cli import main
from pviommu.exit_status import ExitStatus
from pviommu.native.build import build
from pviommu.selfcheck import command
from pviommu.selfcheck.engine_path import EnginePath

from .wrong import LeakyEngine


def test_agreement_is_status_0_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--steps", "300", "--seed", "4"]) == 0

    assert capsys.readouterr().out.startswith("xen-2024: 300 operations through engine,ring: no difference, ")


def test_a_difference_is_status_1_with_a_short_history_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.PATHS, "engine", partial(EnginePath, make=LeakyEngine))

    assert main(["selfcheck", "--steps", "6000", "--seed", "4", "--through", "engine"]) == 1

    lines = capsys.readouterr().out.splitlines()
    words = [line.partition("(")[0].strip() for line in lines[1:-2]]
    assert words == ["Setting", *["Alloc"] * (len(words) - 2), "Free"]
    assert "pool pages" in lines[-2]
    again = "again: pviommu selfcheck --steps 6000 --seed 4 --through engine --profile xen-2024 --episode "
    assert lines[-1].startswith(again)
    assert main([*lines[-1].split()[2:]]) == 1


def test_one_episode_of_a_run_is_that_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--steps", "5100", "--through", "engine", "--episode", "1"]) == 0

    assert ": 100 operations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--through", "engine,air"], "'air' must be one of engine, snapshot, tables, ring, machine, wire"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--steps", "100", "--episode", "1"], "--episode 1: must be 0..0 for 100 steps"),
    ],
    ids=["path", "steps", "episode"],
)
def test_bad_arguments_are_status_2_and_say_what_is_possible(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selfcheck", *arguments]) == 2

    assert text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--profile", "xen-1999"], ["--steps", "many"]], ids=lambda words: words[0])
def test_arguments_of_the_wrong_kind_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["selfcheck", *arguments])

    assert caught.value.code == 2
    assert "usage: pviommu selfcheck" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_the_native_core_agrees_too(
    profile: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    build()

    assert main(["selfcheck", "--steps", "1500", "--seed", "4", "--core", "native", "--profile", profile]) == 0

    assert capsys.readouterr().out.startswith(f"{profile}, native core: 150")


def test_a_native_core_that_is_not_built_is_status_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert main(["selfcheck", "--steps", "3", "--core", "native"]) == ExitStatus.ENVIRONMENT
