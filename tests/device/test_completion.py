"""What completes the command line: every command, option and choice, and a real bash that uses it."""

import re
import subprocess

import pytest

from pviommu.cli import COMMANDS, whole_parser
from pviommu.completion import SHELLS, levels
from pviommu.control.commands import COMMANDS as CTL


@pytest.fixture(scope="module")
def found():
    return levels(whole_parser())


@pytest.fixture(scope="module")
def bash(found, tmp_path_factory):
    """Asks bash what may follow words."""
    script = tmp_path_factory.mktemp("completion") / "pviommu.bash"
    script.write_text(SHELLS["bash"](found))

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in ("pviommu", *words))
        program = (
            f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _pviommu; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


def test_every_command_has_a_level(found):
    words = {level.words.strip() for level in found}

    assert set(COMMANDS) <= words
    assert {f"ctl {command.name}" for command in CTL} <= words


def test_bash_completes_commands(bash):
    assert {"serve", "ctl", "lab", "topology"} <= set(bash(""))
    assert bash("to") == ["topology"]
    assert set(bash("topology", "")) == {"check", "list", "show", "-h", "--help"}
    assert set(bash("ctl", "")) >= {command.name for command in CTL}


def test_bash_completes_options_and_their_values(bash):
    assert bash("serve", "--ctl") == ["--ctl", "--ctl-mode"]
    assert bash("serve", "--core", "") == ["auto", "native", "python"]
    assert bash("serve", "--core", "na") == ["native"]
    assert bash("ctl", "statistics", "--format", "p") == ["prometheus"]
    assert bash("ctl", "--json", "trace", "o") == ["on", "off"]
    assert bash("ctl", "explain", "--st") == ["--stream"]


def test_bash_leaves_values_of_no_choice_to_files(bash, tmp_path):
    (tmp_path / "one.toml").touch()

    assert bash("serve", "--pidfile", f"{tmp_path}/o") == [f"{tmp_path}/one.toml"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_is_in_every_script(found, shell):
    script = SHELLS[shell](found)
    for level in found:
        for option in level.options:
            name = option if shell != "fish" else f"-l {option[2:]} " if option[:2] == "--" else f"-s {option[1:]} "
            assert name in script
        for name in level.commands:
            assert name in script


def test_texts_cannot_end_their_quotes():
    found = levels(whole_parser())
    found[0].commands["odd"] = "it's $(touch /tmp/x) `touch /tmp/y` \\"

    fish = SHELLS["fish"](found)
    assert "-d 'it\\'s $(touch /tmp/x) `touch /tmp/y` \\\\'" in fish
    zsh = SHELLS["zsh"](found)
    assert re.search(r"""'odd:it'"'"'s \$\(touch""", zsh)
