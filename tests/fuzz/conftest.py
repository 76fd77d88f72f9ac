"""Starts the fuzzers when the tests begin and moves the tests that wait for them to the end."""

from __future__ import annotations

import pytest

from .campaign import Campaign

_CAMPAIGN = pytest.StashKey[Campaign]()
_WAITING = "fuzzed"
"""Parameter of the tests that wait for a fuzzer: its name."""


def _fuzzed(item: pytest.Item) -> str | None:
    return item.callspec.params.get(_WAITING) if hasattr(item, "callspec") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _fuzzed(item) is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    names = [name for item in session.items if (name := _fuzzed(item)) is not None]
    if names and not session.config.option.collectonly:
        session.config.stash[_CAMPAIGN] = Campaign(names)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _CAMPAIGN in config.stash:
        config.stash[_CAMPAIGN].close()


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """The fuzzers that have been running since the tests began."""
    return pytestconfig.stash[_CAMPAIGN]
