"""What tests of every folder may use."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from . import cpu_times
from .fuzz import background
from .workers import Once, is_worker, next_unit, number_of_workers, rank, unit_of

# How long an example takes says something about the machine only. Under CI the same code meets the same examples.
settings.register_profile(
    "pviommu", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("pviommu")

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.register(cpu_times)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(background)
    # under nohup it is ignored, which all that tests start would inherit: they send it, and wait for what it does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return number_of_workers(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    # one for all, so that tests whose parameters are a set are found in the same order everywhere
    os.environ.setdefault("PYTHONHASHSEED", str(random.getrandbits(32)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            others = (work for other, work in self.assigned_work.items() if other is not node)
            running = [unit for work in others for unit, tests in work.items() if not all(tests.values())]
            if (unit := next_unit(self.workqueue, running)) is not None:
                self.workqueue.move_to_end(unit, last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False  # by number of tests: the longest have only one
    return Units(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Tests that are found stay to the end, so the garbage collector need not look at them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_worker(config):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Shells start background jobs with SIGINT and SIGQUIT ignored, and Python leaves it so: some tests need both."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A test leaves signals as it found them: what is ignored stays so in the processes of later ones."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: a folder that ``make(folder)`` has filled, one for all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return Once((own.parent if is_worker(pytestconfig) else own) / "once")


def _build_wheel(target: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(CHECKOUT)).build(directory=str(target), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target / "site")


@pytest.fixture(scope="session")
def installed_wheel(once: Once) -> Path:
    """The wheel of this checkout, built and unpacked as an installer would: a folder for ``PYTHONPATH``."""
    return once("wheel", _build_wheel) / "site"


@pytest.fixture(scope="session")
def wheel_environment(installed_wheel: Path) -> dict[str, str]:
    """Environment in which ``python -m pviommu`` is the wheel's and not the checkout's."""
    return {**os.environ, "PYTHONPATH": str(installed_wheel), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="session")
def pviommu_command() -> list[str]:
    """The ``pviommu`` command of whatever ``PYTHONPATH`` says."""
    return [sys.executable, "-m", "pviommu"]
