"""Deliberate breakages: each patch of this folder must make the test that it names fail.

A patch begins with comment lines: what it breaks, and ``# test: tests/...::name``.
"""

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..forking import Forker

CHECKOUT = Path(__file__).parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
TIMEOUT_S = 60
IMPORTED = (
    "hypothesis.stateful",
    "jsonschema",
    "msgspec",
    "construct",
    "asyncio",
    "_pytest.terminal",
    "_pytest.pastebin",
)
IMPORTED += ("_pytest.junitxml", "_pytest.stepwise", "_pytest.doctest", "_pytest.faulthandler", "_pytest.logging")
"""What a run of pytest imports from outside the tree."""
FAILED = 1
"""Exit status of pytest when a test failed; an import error or a missing test has another one."""


def named_test(patch):
    """The test that a patch must make fail."""
    found = re.findall(r"^# test: (.+)$", patch.read_text(), re.MULTILINE)
    assert len(found) == 1, f"{patch.name} names {len(found)} tests, must name one"
    return found[0]


def copy_tree(target):
    """What the tests need, without what was compiled before."""
    shutil.copy(CHECKOUT / "pyproject.toml", target)
    for name in ("protocol", "device", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "lab", "bench", "vm", "breakages")
        shutil.copytree(CHECKOUT / name, target / name, ignore=ignored)
    return target


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree."""
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def forker(copy):
    """Forks processes that run pytest on the copy, and have imported what is not in it."""
    forker = Forker("pytest:main", IMPORTED, [copy / "protocol", copy / "device"])
    yield forker
    forker.close()


def run_tests(forker, tree, tests, **settings):
    """pytest on ``tests`` of the copy in ``tree``."""
    words = ["-q", "-p", "no:cacheprovider", "-rfE", "--rootdir", str(tree), *tests]
    settings |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return forker.run(words, os.environ | settings, tree, TIMEOUT_S)


@pytest.fixture(scope="module")
def tree(copy, forker):
    """The copy that nobody broke, in which all the named tests pass. Their run leaves it compiled."""
    tests = sorted({named_test(patch) for patch in PATCHES})
    process = run_tests(forker, copy, tests, PYTHONDONTWRITEBYTECODE="")
    assert process.returncode == 0, process.stdout + process.stderr
    return copy


@contextmanager
def broken(tree, patch):
    """``tree`` with ``patch``, and afterwards as it was, times of files too: by them Python knows what is compiled."""
    files = [tree / name for name in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.MULTILINE)]
    kept = [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    applied = subprocess.run(
        ["git", "apply", "-C1", patch], cwd=tree, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert applied.returncode == 0, f"{patch.name} does not fit the tree any more: {applied.stderr}"
    assert all(file.stat().st_mtime_ns != modified for file, _, modified in kept)
    try:
        yield
    finally:
        for file, content, modified in kept:
            file.write_bytes(content)
            os.utime(file, ns=(modified, modified))


def test_there_are_breakages():
    assert len(PATCHES) >= 20


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_breakage_makes_the_named_test_fail(patch, tree, forker):
    test = named_test(patch)
    with broken(tree, patch):
        process = run_tests(forker, tree, [test], PYTHONDONTWRITEBYTECODE="1")
    assert process.returncode == FAILED, f"{test} does not notice {patch.name}:\n{process.stdout}{process.stderr}"
    assert f"FAILED {test}" in process.stdout
    assert "ERROR tests/" not in process.stdout  # in the set-up of a test, which a line of a log is not


@pytest.mark.parametrize("name", ["no-fence-of-arming", "native-count-assigned-not-added"])
def test_what_was_broken_is_whole_again_and_needs_no_compiling(tree, name):
    def state():
        files = (path for path in (tree / "device").rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    with broken(tree, Path(__file__).with_name(f"{name}.patch")):
        assert state() != before

    assert state() == before
