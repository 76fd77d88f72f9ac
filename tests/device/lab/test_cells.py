"""Cells of the matrix: their names, picking them, what is kept of them, what they depend on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pviommu.lab.architecture import ARM64
from pviommu.lab.cells import Cell, Outcome, all_cells, code_digest, pick, read_outcome, write_outcome
from pviommu.lab.guest_settings import KERNELS
from pviommu.lab.problems import UsageError


def test_matrix_is_every_combination_once() -> None:
    cells = [cell for cell in all_cells() if not cell.suite and not cell.crossed]

    assert len(cells) == len({cell.name for cell in cells}) == 4 * 2 * 2 * 2
    assert cells[0].name == "debian/xen-2024/lazy/1"
    assert cells[-1].name == "lab-debug/xen-v7/strict/2"


def test_suites_have_cells_of_their_own_behind_the_others() -> None:
    cells = all_cells(["debian", "lab"])

    names = [
        f"{kernel}/xen-{profile}/lazy/2/{suite}"
        for kernel, suite in (("lab", "vfio"), ("debian", "net"), ("lab", "net"))
        for profile in ("2024", "v7")
    ]
    assert [cell.name for cell in cells if cell.suite] == [cell.name for cell in cells[-6:]] == names
    assert [cell.tests for cell in cells if not cell.suite and cell.kernel == "lab"] == [
        *("own", "long", *["own"] * 5, "long"),
        *("own", "own"),
    ]


def test_cells_of_arm64_have_each_value_of_each_axis_and_come_last() -> None:
    kernels = list(dict.fromkeys([*KERNELS, *ARM64.kernels]))
    every = all_cells(kernels, ["amd64", "arm64"])
    own = all_cells(kernels, ["arm64"])

    assert every[-len(own) :] == own
    assert own[0].name == "arm64-its/debian/xen-2024/lazy/1"
    assert {cell.kernel for cell in own} == set(ARM64.kernels)
    for controller in ("its", "gicv2m"):
        some = [cell for cell in own if cell.msi == controller and not cell.suite]
        assert {cell.kernel for cell in some} == set(ARM64.kernels)
        assert {cell.profile for cell in some} == {"xen-2024", "xen-v7"}
        assert {cell.mode for cell in some} == {"lazy", "strict"}
        assert {cell.vcpus for cell in some} == {1, 2}
    assert [cell.tests for cell in own] == ["own"] * 10 + ["vfio"] + ["smmu"] * 3
    assert own[-1].name == "arm64-gicv2m/lab-64k/xen-2024/lazy/2/smmu"
    assert len({cell.file_name for cell in every}) == len(every)


def test_each_kernel_mode_vcpus_and_suite_has_tables_of_either_kind() -> None:
    cells = all_cells()

    kinds: dict[tuple[object, ...], set[str]] = {}
    for cell in cells:
        kinds.setdefault((cell.kernel, cell.mode, cell.vcpus, cell.suite), set()).add(cell.tables)
    assert set(map(frozenset, kinds.values())) == {frozenset({"on", "off"})}
    profiles = {(cell.kernel, cell.profile, cell.tables) for cell in cells}
    assert len(profiles) == 4 * 2 * 2, "each kernel speaks each profile with either kind"
    assert [cell.name for cell in cells if cell.crossed and cell.kernel == "lab"] == [
        "lab/xen-2024/strict/2/tables-off",
        "lab/xen-v7/lazy/2/tables-on",
    ]


def test_kernels_narrow_the_matrix() -> None:
    assert {cell.kernel for cell in all_cells(["lab"])} == {"lab"}


def test_unknown_kernel_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--kernels lap: must be some of debian, debian-7, lab, lab-debug"):
        all_cells(["lap"])


def test_patterns_add_up_in_the_order_of_the_matrix() -> None:
    names = [cell.name for cell in pick(all_cells(), ["lab/*/strict/2", "debian/xen-2024/*/2", "lab/xen-v7/*/2"])]

    assert names == [
        *("debian/xen-2024/lazy/2", "debian/xen-2024/strict/2"),
        *("lab/xen-2024/strict/2", "lab/xen-v7/lazy/2", "lab/xen-v7/strict/2"),
    ]


def test_without_a_pattern_all_are_meant() -> None:
    assert pick(all_cells(["lab"]), []) == all_cells(["lab"])


def test_pattern_that_matches_nothing_lists_the_axes() -> None:
    with pytest.raises(UsageError) as caught:
        pick(all_cells(["debian", "lab"]), ["lab/*", "lab-debug/*"])

    text = str(caught.value)
    assert text.startswith("--only lab-debug/*: matches no cell, whose names are kernel/profile/mode/vCPUs")
    assert "(kernel: debian, lab; profile: xen-2024, xen-v7; mode: lazy, strict; vCPUs: 1, 2)" in text


def test_outcome_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    cell = Cell("lab", "xen-v7", "strict", 2)
    outcome = Outcome("failed", 3, 1, 0, 12.5, "2026-11-21 10:00", "ab", {"kernel": "7.3"}, ["1 of 4 tests failed"])
    write_outcome(tmp_path, cell, outcome)

    assert read_outcome(tmp_path, cell) == outcome
    assert [path.name for path in tmp_path.iterdir()] == ["lab_xen-v7_strict_2.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": "passed", "colour": 3}', "{"])
def test_file_of_another_form_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    cell = Cell("lab", "xen-v7", "strict", 2)
    assert read_outcome(tmp_path, cell) is None
    (tmp_path / f"{cell.file_name}.json").write_text(text)

    assert read_outcome(tmp_path, cell) is None


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (
        *("device/pviommu/host/server.py", "device/pviommu/bench/peers.py", "protocol/vfio_user/framing.py"),
        *(
            "guest-tools/driver/pviommu.c",
            "qemu-configs/lab.toml",
            "qemu-configs/scenarios/lab.toml",
            "device/pviommu/__pycache__/server.pyc",
        ),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def digest(project: Path) -> str:
    configs = (project / "qemu-configs" / name for name in ("lab.toml", "scenarios/lab.toml"))
    return code_digest(project / "device/pviommu", project / "guest-tools", *configs)


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("device/pviommu/host/server.py", True),
        ("protocol/vfio_user/framing.py", True),
        ("guest-tools/driver/pviommu.c", True),
        ("qemu-configs/lab.toml", True),
        ("qemu-configs/scenarios/lab.toml", True),
        ("device/pviommu/bench/peers.py", False),
        ("device/pviommu/__pycache__/server.pyc", False),
    ],
)
def test_digest_changes_with_what_a_run_depends_on(project: Path, name: str, matters: bool) -> None:
    before = digest(project)
    (project / name).write_text("changed")

    assert (digest(project) != before) == matters


def test_digest_is_the_same_for_the_same_files_elsewhere(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(project, copy)

    assert digest(copy) == digest(project)
