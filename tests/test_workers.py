"""How tests are spread over processes: what belongs together stays so, and what all need is made once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .workers import APART, FIRST, TOGETHER, WORKERS, Once, next_unit, number_of_workers, rank, unit_of


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("tests/wire/test_serve.py::test_a[x/y.py::z]", "tests/wire/test_serve.py"),
        ("tests/vm/test_bars.py::test_a", "tests/vm/test_lab.py"),
        ("tests/packaging/test_dkms.py::test_a[7]", "tests/packaging/test_dkms.py::test_a[7]"),
    ],
)
def test_a_file_is_a_unit_but_for_those_that_share_a_machine_and_those_that_share_nothing(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_everything_that_is_named_is_there(checkout: Path) -> None:
    for name in (*TOGETHER, *TOGETHER.values(), *APART, *FIRST):
        path, _, test = name.partition("::")
        assert (checkout / path).exists(), name
        assert not test or f"def {test}" in (checkout / path).read_text(), name


def test_machines_begin_first_and_what_is_not_named_last() -> None:
    names = [
        "tests/wire/test_serve.py::a",
        "tests/conformance/test_conformance.py::a",
        "tests/vm/test_driver_ring.py::a",
    ]

    assert sorted(names, key=rank) == names[::-1]


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        (["tests/vm/test_a.py", "tests/b.py"], ["tests/c.py"], "tests/vm/test_a.py"),
        (["tests/vm/test_a.py", "tests/b.py"], ["tests/vm/test_c.py"], "tests/b.py"),
        (["tests/vm/test_a.py"], ["tests/vm/test_c.py"], None),
        ([next(name for name in APART if "reads_without_end" in name)], ["tests/vm/test_c.py"], "itself"),
    ],
)
def test_one_machine_runs_at_a_time_but_for_the_one_that_only_waits(
    waiting: list[str], running: list[str], expected: str | None
) -> None:
    assert next_unit(waiting, running) == (waiting[0] if expected == "itself" else expected)


@pytest.mark.parametrize(
    ("given", "expected"), [([], WORKERS), (["."], WORKERS), (["test_a.py"], 0), ([".", "test_a.py::test_b"], 0)]
)
def test_files_and_single_tests_are_run_by_one_process(
    given: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_a.py").touch()
    config: Any = SimpleNamespace(option=SimpleNamespace(file_or_dir=given))

    assert number_of_workers(config) == expected


def _make(folder: Path) -> None:
    with (folder / "made").open("a") as file:
        file.write("once\n")


def _ask(shared: Path) -> None:
    Once(shared)("thing", _make)


def test_what_all_processes_need_is_made_by_the_first_alone(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(_ask, [tmp_path / "shared"] * 6)

    assert (tmp_path / "shared/thing/made").read_text() == "once\n"


def test_what_could_not_be_made_is_tried_again(tmp_path: Path) -> None:
    once = Once(tmp_path)

    with pytest.raises(ZeroDivisionError):
        once("thing", lambda _: print(1 // 0))

    assert (once("thing", _make) / "made").read_text() == "once\n"
