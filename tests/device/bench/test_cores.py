"""Which implementations there are, and what stands in for one that cannot be had."""

from __future__ import annotations

import pytest

from pviommu.bench import cores
from pviommu.bench.cores import NATIVE, PYTHON, build_engine, chosen_cores, mechanism_of, serve_options
from pviommu.engine import EngineConfig
from pviommu.lab.problems import EnvironmentProblem
from pviommu.native.build import BuildError


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BuildError("no C compiler")

    monkeypatch.setattr(cores, "build", fail)


@pytest.mark.usefixtures("no_compiler")
def test_pythons_core_needs_nothing() -> None:
    assert chosen_cores("python") == [PYTHON]
    assert build_engine(EngineConfig(), PYTHON).usage().domains == 0
    assert mechanism_of(PYTHON)[0].name == "python"


@pytest.mark.usefixtures("no_compiler")
def test_both_is_pythons_alone_where_nothing_can_be_built() -> None:
    assert chosen_cores("both") == [PYTHON]
    assert mechanism_of(NATIVE)[0].name == "python"


@pytest.mark.usefixtures("no_compiler")
def test_the_native_core_by_name_must_be_there() -> None:
    with pytest.raises(EnvironmentProblem, match="no C compiler; install a C compiler"):
        chosen_cores("native")


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "build", lambda **_: cores.PROBE / "probe.c")
    with pytest.raises(EnvironmentProblem, match="does not load"):
        chosen_cores("native")


def test_the_server_is_told_which_core_to_use() -> None:
    assert serve_options(NATIVE) == ("--core", "native")
