"""A plugin of pytest: starts the fuzzers when the tests begin and moves the tests that wait for them to the end.

Where several processes run the tests, the one that hands them out starts the fuzzers and tells the others the folder.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .campaign import Campaign

__all__ = ["campaign"]

_CAMPAIGN = pytest.StashKey[Campaign]()
_FOLDER = "fuzzing"
_WAITING = re.compile(r"::test_fuzzing_finds_nothing\[(\w+)\]")
"""Names of the tests that wait for a fuzzer, and in them its name."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _WAITING.search(item.nodeid) is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not (hasattr(session.config, "workerinput") or session.config.option.collectonly):
        _start(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    stash = node.config.stash
    if _CAMPAIGN not in stash:
        stash[_CAMPAIGN] = Campaign(Path(tempfile.mkdtemp(prefix="pviommu-fuzz-")))
    node.workerinput[_FOLDER] = str(stash[_CAMPAIGN].folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    _start(node.config, ids)


def _start(config: pytest.Config, tests: Sequence[str]) -> None:
    names = [found[1] for test in tests if (found := _WAITING.search(test))]
    if _CAMPAIGN not in config.stash:
        config.stash[_CAMPAIGN] = Campaign(Path(tempfile.mkdtemp(prefix="pviommu-fuzz-")))
    if names and not config.stash[_CAMPAIGN].is_started:
        config.stash[_CAMPAIGN].start(names)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _CAMPAIGN in config.stash:
        config.stash[_CAMPAIGN].close()


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """The fuzzers that have been running since the tests began."""
    if hasattr(pytestconfig, "workerinput"):
        return Campaign(Path(pytestconfig.workerinput[_FOLDER]))
    return pytestconfig.stash[_CAMPAIGN]
