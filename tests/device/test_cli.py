"""The command line: words lead to commands, mistakes to status 2."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pviommu import __version__
from pviommu.cli import COMMANDS, _columns, main
from pviommu.native.build import build
from pviommu_abi.registers import ABI_VERSION


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


@pytest.mark.row("server", 127)
def test_the_version_says_interface_profiles_and_core(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said() -> list[str]:
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        return capsys.readouterr().out.splitlines()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = [f"pviommu {__version__}", f"ABI {ABI_VERSION}", "profiles xen-2024 xen-v7"]
    assert said() == [*facts, "core python; the native core is not built, run: pviommu build-core"]

    library = build()
    assert said() == [*facts, f"core native, {library}"]


@pytest.mark.row("server", 129)
@pytest.mark.parametrize("words", COMMANDS)
def test_a_mistake_shows_the_usage_of_its_own_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words.split(), "--no-such-option"])

    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.match(rf"usage: pviommu {words} ", said)
    assert re.match(rf"pviommu {words}: error: ", said.splitlines()[-1])


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

    assert done.stdout.startswith(f"pviommu {__version__}\n")


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


@pytest.mark.parametrize("columns", [None, "", "0", "-3", "many", " 61 ", "1_00", "200"])
def test_help_is_as_wide_as_that_of_other_programs(monkeypatch: pytest.MonkeyPatch, columns: str | None) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    assert _columns() == shutil.get_terminal_size().columns


def test_a_command_runs_with_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    monkeypatch.setattr("pviommu.schemas.command.main", lambda _: found.append(gc.isenabled()) or 0)

    assert main(["schema", "topology"]) == 0
    assert found == [True]
