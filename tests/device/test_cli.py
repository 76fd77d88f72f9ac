"""The command line: words lead to commands, mistakes to status 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from pviommu import __version__, cli
from pviommu.cli import main


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["lab"],
        ["lab", "dance"],
        ["lab", "matrix", "--kernels"],
        ["bench"],
        ["serve", "--dance"],
        ["--", "serve"],
    ],
    ids=" ".join,
)
def test_words_that_are_no_command_exit_with_2_and_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)

    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: pviommu")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("serve", "lab", "bench"))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pviommu {__version__}\n"


def test_a_command_runs_with_its_options_and_returns_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print-capabilities"]) == 0

    assert json.loads(capsys.readouterr().out)["type"] == "pviommu"


@pytest.mark.parametrize(
    "words",
    [["serve", "--help"], ["lab", "run", "--help"], ["lab", "matrix", "--help"], ["doctor", "--help"]],
    ids=" ".join,
)
def test_a_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)

    assert caught.value.code == 0
    assert f"usage: pviommu {' '.join(words[:-1])}" in capsys.readouterr().out


def test_serving_does_not_load_the_lab() -> None:
    program = (
        "import sys, pviommu.cli; pviommu.cli.main(['serve', '--print-capabilities']); "
        "sys.exit('pviommu.lab.run' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pviommu", "--version"], capture_output=True, check=True, text=True)

    assert done.stdout == f"pviommu {__version__}\n"


COMMANDS = ["serve", "lab run", "lab matrix", "doctor", "bench engine", "bench ring", "bench peers", "bench report"]
COMMANDS += ["build-core", "selfcheck"]


def test_these_are_all_commands() -> None:
    assert set(COMMANDS) == set(cli._COMMANDS)


@pytest.mark.row("server", 92)
@pytest.mark.parametrize("words", COMMANDS)
def test_help_tells_what_each_option_is_and_its_default(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words.split(), "--help"])
    text = capsys.readouterr().out
    options = re.split(r"\n  (?=-)", text.partition("\noptions:")[2].partition("\n\n")[0])[1:]
    assert options
    for option in options:
        spelling, _, explanation = re.sub(r"\n {10,}", "  ", option).partition("  ")
        assert explanation.strip(), f"{spelling}: no explanation"
        if len(spelling.split()) > 1 and not spelling.startswith(("-h,", "-v,")):  # it takes a value
            assert re.search(r"[Dd]efault: *\S", explanation), f"{spelling}: no default"
