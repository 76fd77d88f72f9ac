"""The command: options, statuses, outputs, with the boots themselves played."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pviommu.bench import peers
from pviommu.bench.boots import Bench
from pviommu.bench.configurations import Configuration
from pviommu.bench.guest import Boot, MeasurementError, Plan, Round, VfioMaps, Witness
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Setup, Wanted
from pviommu.lab.vm import GuestTimeoutError


class Played:
    """Boots that end at once. ``problems`` maps a configuration's name to what its boot raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.booted: list[str] = []
        self.plans: list[Plan] = []
        self.problems: dict[str, Exception] = {}
        self.lacking: Exception | None = None

    def boot(self, _: Bench, entry: Configuration, plan: Plan, folder: Path) -> tuple[Boot, dict[str, Any]]:
        self.booted.append(f"{entry.name}/{folder.name}")
        self.plans.append(plan)
        if entry.name in self.problems:
            raise self.problems[entry.name]
        pairs = plan.timed_pairs + plan.count_operations
        counts = {"traps": 10 + 2 * pairs, "doorbells": 5} if entry.served else {}
        rounds = [
            Round(100, 110, 50, 60, 150, 170, 40, pages, plan.threads, plan.operations, 1e6)
            for pages in plan.granules
            for _ in range(plan.rounds)
        ]
        witnesses = [Witness(pages, plan.threads, 300, 200) for pages in plan.granules] if plan.witness else []
        group = {"group_type": entry.group or "none"}
        vfio = [VfioMaps(plan.vfio_mib << 8, 5000, 700)] if plan.vfio_mib else []
        return Boot(rounds, witnesses, group, {}, bool(plan.count_operations), 0, vfio), counts

    def provide(self, progress: Progress, wanted: Wanted) -> Setup:
        if self.lacking:
            raise self.lacking
        toolbox = Toolbox(self.folder, ("qemu",), {}, "11.1.3", Path("vmlinuz"), "6.12", Path("busybox"))
        return Setup(toolbox, [], "tcg")

    def main(self, *options: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        peers.add_arguments(parser)
        out = io.StringIO()
        least = ["--threads", "1", "--granules", "1", "--repeat", "1", "--vfio-mib", "0"]
        least += ["--results", str(self.folder / "results")]
        args = parser.parse_args([*least, *options])
        return peers.main(args, out=out, provide=self.provide, boot_once=self.boot), out.getvalue()


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_all_measured_ends_with_status_0_and_files_of_what_was_shown(played: Played) -> None:
    status, shown = played.main()
    assert status == 0
    assert played.booted == [
        *("none/1-1", "floor/1-1", "floor-strict/1-1", "virtio-iommu/1-1", "virtio-iommu-strict/1-1"),
        *("intel-iommu/1-1", "pviommu/1-1", "pviommu-strict/1-1", "pviommu-ring/1-1", "pviommu-ring-strict/1-1"),
        *("pviommu/1-empty", "pviommu-strict/1-empty", "pviommu-ring/1-empty", "pviommu-ring-strict/1-empty"),
    ]
    latest = played.folder / "results/latest"
    assert (latest / "peers.txt").read_text() in shown
    found = json.loads((latest / "peers.json").read_text())
    assert len(found["configurations"]) == 10
    assert [bar["verdict"] for bar in found["bars"][:4]] == ["met", "met", "met", "met"]
    assert "NOT MET" in {bar["verdict"] for bar in found["bars"]}
    assert "1 page, 1 thread: pviommu" in shown
    assert (latest / "peers-1-1.svg").read_text() == found["plots"]["peers-1-1.svg"]
    assert "[14/14] pviommu" in shown


def test_loads_are_measured_and_shown_one_by_one(played: Played) -> None:
    _, shown = played.main("--only", "none", "--threads", "1,2", "--granules", "1,512", "--rounds", "2")
    assert [(plan.threads, plan.granules) for plan in played.plans] == [(1, (1, 512)), (2, (1, 512))]
    assert "\n512 pages, 2 threads\n" in shown
    assert played.booted == ["none/1-1", "none/2-1"]


def test_levers_are_measured_beside_the_whole(played: Played) -> None:
    markdown = played.folder / "peers.md"
    played.main(
        "--only", "pviommu-ring", "--levers", "--markdown", str(markdown), "--plot", str(played.folder / "plots")
    )
    assert "pviommu-ring-waited/1-1" in played.booted
    assert "pviommu-ring-waited/1-empty" not in played.booted
    assert (
        "every map and unmap waited for | 100 | 50 | 150 | 170 | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |"
        in markdown.read_text()
    )
    assert (played.folder / "plots/peers-1-1.svg").is_file()


@pytest.mark.parametrize(("kernel", "witness"), [("debian", False), ("lab", True), ("lab-debug", True)])
def test_the_kernels_own_benchmark_is_asked_where_the_kernel_has_it(played: Played, kernel: str, witness: bool) -> None:
    played.main("--only", "none", "--kernel", kernel)
    assert played.plans[0].witness is witness
    names = set(json.loads((played.folder / "results/latest/peers.json").read_text())["blocks"])
    prefix = "peers" if kernel == "debian" else f"peers-{kernel}"
    assert names == {f"{prefix}-1-1", f"{prefix}-setting"} | ({f"{prefix}-witness"} if witness else set())


def test_the_servers_counts_are_taken_against_a_boot_that_measures_nothing(played: Played) -> None:
    played.main("--only", "pviommu", "--rounds", "2", "--operations", "100", "--json", str(played.folder / "j"))
    assert played.plans == [Plan(2, 100, 10, 1000), Plan(0, 100, 10, 0)]
    found = json.loads((played.folder / "j").read_text())
    assert found["configurations"][0]["server_counts_per_pair"] == {"traps": 2.0, "doorbells": 0.0}


def test_json_to_standard_output_stands_there_alone(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = played.main("--only", "none", "--json", "-")
    assert json.loads(shown)["plan"]["operations"] == 10000
    assert "[1/1] none" in capsys.readouterr().err


@pytest.mark.row("driver", 77)
def test_maps_through_vfio_are_measured_in_boots_of_their_own_behind_each_iommu_and_judged(played: Played) -> None:
    status, shown = played.main("--vfio-mib", "64", "--repeat", "2", "--threads", "1,2")
    assert status == 0
    vfio = [name for name in played.booted if "/vfio-" in name]
    names = ("floor", "virtio-iommu", "intel-iommu", "pviommu", "pviommu-ring")
    assert vfio == [f"{name}/vfio-1" for name in names] + [f"{name}/vfio-2" for name in reversed(names)]
    plans = [plan for plan in played.plans if plan.vfio_mib]
    assert {(plan.rounds, plan.count_operations, plan.vfio_mib) for plan in plans} == {(0, 0, 64)}
    assert "a map of 1 page through VFIO: pviommu, mean" in shown
    found = json.loads((played.folder / "results/latest/peers.json").read_text())
    assert "| pviommu | 5000 |" in found["blocks"]["peers-vfio"]


def test_tables_of_runs_beside_busy_processes_have_names_of_their_own(played: Played) -> None:
    _, shown = played.main("--only", "none", "--hogs", "1")
    found = json.loads((played.folder / "results/latest/peers.json").read_text())
    assert set(found["blocks"]) == {"peers-hogs-1-1", "peers-hogs-setting"}
    assert "1 process that spins" in shown
    assert found["hogs"] == 1


def test_a_run_is_resumed_with_the_boots_that_are_missing(played: Played) -> None:
    options = ("--only", "none,intel-iommu", "--json", str(played.folder / "j"))
    played.problems["intel-iommu"] = MeasurementError("interrupted")
    assert played.main(*options)[0] == 1
    folder = (played.folder / "results/latest").resolve()
    played.problems.clear()
    played.booted.clear()

    assert played.main(*options, "--resume", str(folder))[0] == 0

    assert played.booted == ["intel-iommu/1-1"]
    found = json.loads((played.folder / "j").read_text())
    assert [len(one["boots"]) for one in found["configurations"]] == [1, 1]
    played.booted.clear()
    played.main(*options, "--resume", str(folder), "--repeat", "2")
    assert played.booted == ["intel-iommu/1-2", "none/1-2"]


@pytest.mark.parametrize("options", [("--operations", "7"), ("--hogs", "1")])
def test_another_measurement_is_not_resumed(
    played: Played, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    played.main("--only", "none")
    folder = (played.folder / "results/latest").resolve()
    assert played.main("--only", "none", "--resume", str(folder), *options)[0] == 2
    assert (
        f"--resume {folder}: measured with another {'plan' if options[1] == '7' else 'hogs'}" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (MeasurementError("no device"), 1),
        (RunError("QEMU ended with status 1"), 1),
        (GuestTimeoutError(), 124),
        (EnvironmentProblem("no module", "get one"), 3),
    ],
)
def test_a_failed_boot_gives_its_status(played: Played, problem: Exception, expected: int) -> None:
    played.problems["virtio-iommu"] = problem
    assert played.main()[0] == expected


def test_a_failed_boot_does_not_keep_the_others_from_being_measured(played: Played) -> None:
    played.problems["pviommu"] = MeasurementError("the ring is off")
    _, shown = played.main()
    assert "pviommu, 1 threads, FAILED: the ring is off" in shown
    assert "pviommu/1-empty" not in played.booted
    assert "pviommu-strict/1-empty" in played.booted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 to 1000"),
        (["--operations", "-1"], "--operations -1: give 1 to"),
        (["--count-operations", "-1"], "--count-operations -1: give 0 to"),
        (["--repeat", "0"], "--repeat 0"),
        (["--vcpus", "65"], "--vcpus 65"),
        (["--timeout", "0"], "--timeout 0"),
        (["--hogs", "-1"], "--hogs -1: give 0 to 1024"),
        (["--vfio-mib", "-1"], "--vfio-mib -1: give 0 to 16384"),
        (["--resume", "/nowhere"], "--resume /nowhere: no such folder"),
        (["--memory", "1"], "--memory 1"),
        (["--only", "x"], "--only x: x is not one of"),
        (["--granules", "3"], "--granules 3: give powers of two"),
        (["--granules", "1,x"], "--granules 1,x: give numbers from 1 to 1024"),
        (["--threads", "0"], "--threads 0: give numbers from 1 to 64"),
        (["--threads", "8", "--operations", "600000"], "--operations 600000: give at most 500000 for 8 threads"),
        (["--only", "none", "--json", "/nowhere/at/all"], "--json /nowhere/at/all: No such file"),
        (["--only", "none", "--markdown", "/nowhere/at/all"], "--markdown /nowhere/at/all: No such file"),
        (["--only", "none", "--plot", "/dev/null/plots"], "--plot /dev/null/plots: Not a directory"),
    ],
)
def test_wrong_options_end_with_status_2_and_one_line(
    played: Played, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert played.main(*options)[0] == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_written_is_found_before_anything_boots(played: Played) -> None:
    played.main("--json", str(played.folder))
    assert played.booted == []


def test_a_results_folder_that_cannot_be_made_is_usage(played: Played) -> None:
    (played.folder / "results").write_text("in the way")
    assert played.main("--only", "none")[0] == 2


def test_a_host_that_lacks_something_ends_with_status_3(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    played.lacking = EnvironmentProblem("no QEMU", "install one")
    assert played.main()[0] == 3
    assert capsys.readouterr().err == "pviommu bench peers: no QEMU; install one\n"
