"""The matrix with a small program in place of each run: what runs, what is kept, what one failure does to the rest."""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pviommu.lab import matrix
from pviommu.lab.boot import Setup
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Wanted

RUN = """
import json, os, sys
options = dict(zip(sys.argv[3:], sys.argv[4:]))
name = "/".join(options[key] for key in ("--kernel", "--profile", "--mode", "--vcpus"))
if "--msi" in options:
    name = options["--arch"] + "-" + options["--msi"] + "/" + name
with open({log!r}, "a") as log:
    suite = " --suite " + options["--suite"] if "--suite" in sys.argv else ""
    if "--run" in sys.argv:
        keys = [key for key in ("--topology", "--scenario", "--run") if key in options]
        suite = " ".join(["", *(os.path.basename(options[key]) for key in keys)])
    assert options["--tables"] in ("on", "off")
    log.write(name + (" --long" if "--long" in sys.argv else "") + suite + "\\n")
{body}
verdict = "failed" if name in {failing!r} else "passed"
tests = {{"passed": 7, "failed": int(verdict == "failed"), "skipped": 0}}
results = {{"verdict": verdict, "tests": tests, "seconds": 1.5,
    "versions": {{"kernel": "6.12"}}, "problems": [] if verdict == "passed" else ["1 of 8 tests failed"]}}
os.makedirs(options["--results"] + "/latest")
json.dump(results, open(options["--results"] + "/latest/results.json", "w"))
sys.exit(verdict == "failed")
"""


@dataclass
class Runs:
    """A matrix whose cells are run by a script that writes down what it was asked for."""

    folder: Path
    failing: tuple[str, ...] = ()
    body: str = ""
    broken_kernels: tuple[str, ...] = ()
    kernel_image: bytes = b"a kernel"
    date: datetime = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
    prepared: list[str] = field(default_factory=list)

    def main(self, *options: str) -> tuple[int, str]:
        log = self.folder / "log"
        log.write_text("")
        script = self.folder / "run.py"
        script.write_text(RUN.format(log=str(log), failing=self.failing, body=self.body))
        parser = argparse.ArgumentParser()
        matrix.add_arguments(parser)
        args = parser.parse_args(["--results", str(self.folder / "results"), *options])
        out = io.StringIO()
        program = (sys.executable, str(script))
        status = matrix.main(args, out=out, program=program, provide=self.provide, now=lambda: self.date)
        return status, out.getvalue()

    def provide(self, progress: Progress, wanted: Wanted) -> Setup:
        arch = wanted.architecture.name
        of_arch = "" if arch == "amd64" else f" of {arch}"
        self.prepared.append((f"{wanted.kernel} {wanted.suite}" if wanted.suite else wanted.kernel) + of_arch)
        if wanted.kernel in self.broken_kernels:
            raise EnvironmentProblem("no space left", "give it some")
        image = self.folder / "vmlinuz"
        image.write_bytes(self.kernel_image)
        return Setup(Toolbox(self.folder, ("qemu",), {}, "11.1", image, "6.12", self.folder / "busybox"), [], "tcg")

    @property
    def ran(self) -> list[str]:
        """Cells that were run by the last :meth:`main`, in their order."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_cells_run_in_order_and_the_table_comes_last(runs: Runs) -> None:
    status, shown = runs.main("--kernels", "lab", "--arch", "amd64", "--only", "*/xen-v7/*/2")

    assert status == 0
    assert runs.ran == ["lab/xen-v7/lazy/2", "lab/xen-v7/strict/2 --long"]
    assert shown.splitlines()[:3] == [
        "[1/2] lab/xen-v7/lazy/2 passed, 7 tests in 1.5 s",
        "[2/2] lab/xen-v7/strict/2 passed, 7 tests in 1.5 s",
        "",
    ]
    assert "2 of 2 cells passed, with 14 tests" in shown
    cells = json.loads((runs.folder / "results/matrix.json").read_text())["cells"]
    assert [cell["verdict"] for cell in cells] == ["passed", "passed"]
    assert (runs.folder / "results/matrix.md").is_file()


def test_two_cells_of_a_kernel_are_long_ones(runs: Runs) -> None:
    runs.main("--kernels", "lab", "--arch", "amd64")

    assert [name for name in runs.ran if "--long" in name] == [
        "lab/xen-2024/lazy/2 --long",
        "lab/xen-v7/strict/2 --long",
    ]
    assert len(runs.ran) == 14


def test_suite_is_prepared_and_run_in_its_cell(runs: Runs) -> None:
    status, shown = runs.main("--only", "*/vfio")

    assert status == 0
    places = ("lab/xen-2024/lazy/2", "lab/xen-v7/lazy/2", "arm64-its/lab-64k/xen-2024/lazy/1")
    assert runs.ran == [f"{place} --suite vfio" for place in places]
    assert runs.prepared == ["lab vfio", "lab-64k vfio of arm64"]
    assert "[1/3] lab/xen-2024/lazy/2/vfio passed, 7 tests in 1.5 s" in shown


def test_network_cards_are_tried_on_each_kernel_for_longer_where_it_does_not_check_itself(runs: Runs) -> None:
    status, _ = runs.main("--only", "*/net", "--kernels", "debian", "lab-debug")

    assert status == 0
    assert runs.ran == [
        "debian/xen-2024/lazy/2 net net-faults.toml net-long.sh",
        "debian/xen-v7/lazy/2 net net-faults.toml net-long.sh",
        "lab-debug/xen-2024/lazy/2 net net-faults.toml net.sh",
        "lab-debug/xen-v7/lazy/2 net net-faults.toml net.sh",
    ]
    assert runs.prepared == ["debian", "lab-debug"]


def test_kernels_are_prepared_once_each(runs: Runs) -> None:
    runs.main("--kernels", "debian", "lab", "--only", "*/2", "--arch", "amd64")

    assert runs.prepared == ["debian", "lab"]


def test_cells_of_arm64_are_prepared_and_run_as_such(runs: Runs) -> None:
    status, shown = runs.main("--only", "arm64-gicv2m/debian*/*")

    assert status == 0
    assert runs.prepared == ["debian of arm64", "debian-7 of arm64", "debian-16k of arm64"]
    assert "arm64-gicv2m/debian/xen-2024/strict/1" in runs.ran
    assert len(runs.ran) == 4
    assert "\narm64-gicv2m/debian-16k  xen-2024  strict" in shown


def test_driver_of_an_smmu_is_tried_where_the_kernel_can_get_one(runs: Runs) -> None:
    status, shown = runs.main("--only", "*/smmu")

    assert status == 0
    assert runs.prepared == ["debian-7 of arm64", "lab-64k of arm64"]
    assert runs.ran == [
        "arm64-its/debian-7/xen-2024/lazy/1 lab-smmu smmu.sh",
        "arm64-its/debian-7/xen-2024/strict/2 lab-smmu smmu.sh",
        "arm64-gicv2m/lab-64k/xen-2024/lazy/2 lab-smmu smmu.sh",
    ]
    assert "[1/3] arm64-its/debian-7/xen-2024/lazy/1/smmu passed" in shown


def test_cell_is_run_again_when_its_topology_changed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.main("--only", "*/debian-7/*/lazy/1/smmu")
    changed = runs.folder / "lab-smmu.toml"
    shipped = matrix.resources.topologies()
    changed.write_text(shipped["lab-smmu"].read_text() + "# changed\n")
    monkeypatch.setattr(matrix.resources, "topologies", lambda: {**shipped, "lab-smmu": changed})
    runs.main("--only", "*/debian-7/*/lazy/1/smmu")

    assert runs.ran == ["arm64-its/debian-7/xen-2024/lazy/1 lab-smmu smmu.sh"]


def test_failing_cell_does_not_stop_the_others_and_fails_the_matrix(runs: Runs) -> None:
    runs.failing = ("lab/xen-v7/lazy/2",)
    status, shown = runs.main("--only", "lab/xen-v7/*/2")

    assert status == 1
    assert len(runs.ran) == 2
    assert "[1/2] lab/xen-v7/lazy/2 FAILED: 1 of 8 tests failed\n" in shown


def test_next_matrix_runs_only_what_did_not_pass(runs: Runs) -> None:
    runs.failing = ("lab/xen-v7/lazy/2",)
    runs.main("--only", "lab/xen-v7/*/2")
    runs.failing = ()
    runs.date = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
    status, shown = runs.main("--only", "lab/xen-v7/*/2", "--resume")

    assert status == 0
    assert runs.ran == ["lab/xen-v7/lazy/2"]
    assert "[2/2] lab/xen-v7/strict/2 passed, 7 tests in 1.5 s, kept from 2026-11-21 10:00\n" in shown


def test_fresh_runs_what_passed_too(runs: Runs) -> None:
    runs.main("--only", "lab/xen-v7/lazy/2")
    runs.main("--only", "lab/xen-v7/lazy/2", "--fresh")

    assert runs.ran == ["lab/xen-v7/lazy/2"]


def test_another_kernel_of_the_same_name_is_run_again(runs: Runs) -> None:
    runs.main("--only", "lab/xen-v7/lazy/2")
    runs.kernel_image = b"built anew"
    runs.main("--only", "lab/xen-v7/lazy/2")

    assert runs.ran == ["lab/xen-v7/lazy/2"]


def test_other_code_is_run_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.main("--only", "lab/xen-v7/lazy/2")
    monkeypatch.setattr(matrix.cells, "code_digest", lambda *folders: "other")
    runs.main("--only", "lab/xen-v7/lazy/2")

    assert runs.ran == ["lab/xen-v7/lazy/2"]


def test_kernel_that_cannot_be_provided_fails_its_cells_and_no_others(runs: Runs) -> None:
    runs.broken_kernels = ("debian",)
    status, shown = runs.main("--kernels", "debian", "lab", "--only", "*/xen-v7/lazy/2", "--arch", "amd64")

    assert status == 1
    assert runs.ran == ["lab/xen-v7/lazy/2"]
    assert "[1/2] debian/xen-v7/lazy/2 ERROR: no space left; give it some\n" in shown


def test_run_that_ends_without_results_is_an_error_with_its_last_words(runs: Runs) -> None:
    runs.body = "sys.exit('Traceback: lost')"
    status, shown = runs.main("--only", "lab/xen-v7/lazy/2")

    assert status == 1
    assert "ERROR: the run ended with status 1 and no results: Traceback: lost" in shown


def test_results_of_an_earlier_run_are_not_taken_for_those_of_one_that_broke(runs: Runs) -> None:
    runs.main("--only", "lab/xen-v7/lazy/2")
    runs.body = "sys.exit(3)"
    status, shown = runs.main("--only", "lab/xen-v7/lazy/2", "--fresh")

    assert (status, "no results" in shown) == (1, True)


def test_run_that_hangs_is_ended_at_its_hard_limit(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_GRACE", 0.1)
    runs.body = "import signal; signal.pause()"
    status, shown = runs.main("--only", "lab/xen-v7/lazy/2", "--timeout", "0.2")

    assert status == 1
    assert "TIMEOUT: the run did not end within 0.2 s" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "lap/*"), "--only lap/*: matches no cell"),
        (("--kernels", "lap"), "--kernels lap: must be some of debian"),
        (("--timeout", "-1"), "--timeout -1: give a number of seconds above 0"),
        (("--results", "/proc/none"), "--results /proc/none: "),
    ],
)
def test_wrong_option_is_a_usage_error(
    runs: Runs, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert runs.main(*options)[0] == 2
    assert words in capsys.readouterr().err
    assert runs.prepared == []
