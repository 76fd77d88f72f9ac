"""A plugin of pytest: ``--cpu-times`` says where the processor time of a run goes.

The time of a test is that of the process that runs it and of the children that it has waited for, with the fixtures
that are made for it first; what else the machine does makes no difference to it. Guests are children of the lab's
command, so theirs is in it. That of the fuzzers beside the tests is not.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import pytest

__all__ = ["lines", "used"]

SHOWN = 60
"""Tests and files that are named, most expensive first."""
_OPTION = "cpu_times"
_SECONDS = "cpu_seconds"


def used() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def lines(seconds: Mapping[str, float]) -> Iterator[str]:
    """The report on ``seconds`` by the names of tests: by folder, by file, by test."""
    yield f"{sum(seconds.values()):8.1f} s of CPU time in {len(seconds)} tests"
    for what, key in (("folder", _folder), ("file", _file), ("test", str)):
        sums: Counter[str] = Counter()
        for name, spent in seconds.items():
            sums[key(name)] += spent
        yield f"by {what}:"
        yield from (f"{spent:8.1f} {name}" for name, spent in sums.most_common(SHOWN) if spent >= 0.05)


def _file(name: str) -> str:
    return name.partition("::")[0]


def _folder(name: str) -> str:
    return _file(name).rpartition("/")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-times",
        action="store_true",
        dest=_OPTION,
        help="at the end, say how much processor time folders, files and tests took",
    )


class Clock:
    """Writes on each report what was used since the one before it."""

    def __init__(self, now: Callable[[], float] = used) -> None:
        self._now = now
        self._last = now()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        now = self._now()
        setattr(report, _SECONDS, now - self._last)
        self._last = now
        return report


class Account:
    """Adds up what the reports of all processes say."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += getattr(report, _SECONDS, 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("CPU times")
        for line in lines(self.seconds):
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(_OPTION):
        config.pluginmanager.register(Clock())
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Account())
