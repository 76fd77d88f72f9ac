"""The order of boots, what failures leave, and when a boot without pairs is worth it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pviommu.bench.boots import Bench
from pviommu.bench.configurations import Configuration, choose
from pviommu.bench.guest import Boot, MeasurementError, Plan, Round
from pviommu.bench.runs import Request, Runs
from pviommu.exit_status import ExitStatus
from pviommu.lab.provision import Toolbox
from pviommu.lab.run import Setup
from pviommu.lab.vm import GuestTimeoutError

PLAN = Plan(rounds=1, operations=100, warm_up=10, count_operations=5)


class Played:
    def __init__(self, folder: Path) -> None:
        self.booted: list[str] = []
        self.problem: Exception | None = None
        self._folder = folder

    def boot(self, _: Bench, entry: Configuration, plan: Plan, folder: Path) -> tuple[Boot, dict[str, Any]]:
        self.booted.append(f"{entry.name}/{folder.name}")
        if self.problem:
            raise self.problem
        rounds = [Round(1, 1, 1, 1, 2, 2, 1, 1, plan.threads, 100, 1000)] * plan.rounds
        counts = {"traps": 7 + 3 * (plan.timed_pairs + plan.count_operations)} if entry.served else {}
        return Boot(rounds, [], {"group_type": "DMA"}, {}, True, 0), counts

    def runs(self, names: str, threads: tuple[int, ...] = (1,), repeat: int = 1, plan: Plan = PLAN) -> Runs:
        toolbox = Toolbox(self._folder, ("qemu",), {}, "11.1.3", Path("vmlinuz"), "6.12", Path("busybox"))
        bench = Bench(Setup(toolbox, [], "tcg"), 1 << 30, 1, 20.0)
        request = Request(choose(names), threads, plan, repeat)
        runs = Runs(request, bench, self._folder, io.StringIO(), self.boot)
        runs.measure()
        return runs


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_every_other_repetition_runs_in_reverse_order(played: Played) -> None:
    played.runs("none,intel-iommu", repeat=3)
    names = "none/1-1 intel-iommu/1-1 intel-iommu/1-2 none/1-2 none/1-3 intel-iommu/1-3"
    assert played.booted == names.split()


def test_numbers_of_threads_are_measured_apart(played: Played) -> None:
    runs = played.runs("none", threads=(1, 2))
    assert [(one.threads, one.rounds(1)[0].threads) for one in runs.measurements] == [(1, 1), (2, 2)]


def test_the_servers_counts_are_those_of_the_pairs_alone(played: Played) -> None:
    runs = played.runs("pviommu", threads=(1, 2))
    assert played.booted == ["pviommu/1-1", "pviommu/2-1", "pviommu/1-empty"]
    assert [one.server for one in runs.measurements] == [{"traps": 3.0}, {}]


def test_a_witness_makes_pairs_that_nobody_counts_so_the_servers_counts_are_left_out(played: Played) -> None:
    played.runs("pviommu", plan=Plan(1, 100, 10, 5, witness=True))
    assert played.booted == ["pviommu/1-1"]


@pytest.mark.parametrize(
    ("problem", "status", "said"),
    [
        (MeasurementError("no device"), ExitStatus.FAILED, "no device"),
        (GuestTimeoutError(), ExitStatus.TIMEOUT, "the guest did not finish within 20 s"),
    ],
)
def test_a_failed_boot_is_noted(played: Played, problem: Exception, status: ExitStatus, said: str) -> None:
    played.problem = problem
    runs = played.runs("pviommu")
    assert runs.status is status
    assert runs.measurements[0].problem == said
    assert played.booted == ["pviommu/1-1"]
