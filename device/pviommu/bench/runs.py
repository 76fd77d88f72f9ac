"""All boots of one ``pviommu bench peers``, in an order that favours no configuration."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from ..exit_status import ExitStatus
from ..lab.problems import RunError
from ..lab.progress import Progress
from ..lab.vm import GuestTimeoutError
from .boots import Bench, server_counts
from .configurations import Configuration
from .figures import Measurement
from .guest import Boot, MeasurementError, Plan
from .hogs import hogs
from .kept import keep, kept

__all__ = ["BootOnce", "Request", "Runs"]

BootOnce = Callable[[Bench, Configuration, Plan, Path], tuple[Boot, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Request:
    """What is measured: each of ``configurations`` with each number of ``threads``, ``repeat`` times, while ``hogs``
    processes spin. Maps through VFIO, if the plan has any, are measured in boots of their own, with the configurations
    that are meant for that.
    """

    configurations: Sequence[Configuration]
    threads: Sequence[int]
    plan: Plan
    repeat: int
    hogs: int = 0


@dataclass(slots=True)
class _Job:
    configuration: Configuration
    plan: Plan
    measurement: Measurement
    label: str
    """begins the names of its boots, before their number"""
    served: dict[str, Any]
    """the server's counts of the last measuring boot; empty if it failed"""

    @property
    def has_counts(self) -> bool:
        """Whether another boot for the server's counts makes sense: not with a witness, whose number of pairs is
        unknown."""
        plan, configuration = self.plan, self.configuration
        whole = configuration.served and bool(configuration.group) and not configuration.lever_of
        return whole and plan.threads == 1 and plan.rounds > 0 and not plan.witness


class Runs:
    """Does all boots of ``request``; the logs of each are in a folder of its own in ``folder``."""

    def __init__(self, request: Request, bench: Bench, folder: Path, talk: TextIO, boot_once: BootOnce) -> None:
        self.status = ExitStatus.PASSED
        self.seconds = 0.0
        self._request = request
        self._bench = bench
        self._folder = folder
        self._boot_once = boot_once
        dma_plan = replace(request.plan, vfio_mib=0)
        self._jobs = [
            _Job(entry, replace(dma_plan, threads=threads), _measurement(entry, threads), str(threads), {})
            for threads in request.threads
            for entry in request.configurations
        ]
        self._jobs += self._vfio_jobs(request)
        boots = request.repeat * len(self._jobs) + sum(job.has_counts for job in self._jobs)
        self._progress = Progress(talk, boots)

    @property
    def measurements(self) -> list[Measurement]:
        """One for each configuration and number of threads."""
        return [job.measurement for job in self._jobs if job.plan.rounds]

    def _vfio_jobs(self, request: Request) -> list[_Job]:
        if not request.plan.vfio_mib:
            return []
        plan = replace(request.plan, rounds=0, count_operations=0, witness=False)
        first = {job.configuration.name: job for job in reversed(self._jobs)}
        return [
            _Job(entry, plan, first[entry.name].measurement, "vfio", {})
            for entry in request.configurations
            if entry.vfio
        ]

    def measure(self) -> None:
        """Do all boots whose figures are not kept from an earlier run. A configuration that fails is noted, and the
        others go on.
        """
        with hogs(self._request.hogs):
            self._measure()

    def _measure(self) -> None:
        began = time.monotonic()
        try:
            for turn in range(self._request.repeat):
                for job in self._jobs if turn % 2 == 0 else reversed(self._jobs):
                    job.served = self._boot(job, job.plan, f"{job.label}-{turn + 1}")
            for job in self._jobs:
                if job.has_counts and not job.served:
                    self._progress.skip(1)  # there are no counts to subtract the empty boot's from
                elif job.has_counts:
                    self._count_at_server(job)
        finally:
            self._progress.close()
        self.seconds = time.monotonic() - began

    def _boot(self, job: _Job, plan: Plan, label: str) -> dict[str, Any]:
        threads = f", {plan.threads} threads" if plan.threads > 1 else ""
        doing = "" if plan.rounds else f", {plan.vfio_mib} MiB through VFIO" if plan.vfio_mib else ", doing nothing"
        self._progress.step(f"{job.configuration.name}: {job.configuration.title}{threads}{doing}")
        counts: dict[str, Any] = {}
        try:
            measured, counts = self._boot_or_recall(
                job.configuration, plan, self._folder / job.configuration.name / label
            )
            if plan.rounds or plan.vfio_mib:
                job.measurement.boots.append(measured)
            self._progress.done(_shown(measured))
        except GuestTimeoutError:
            problem = f"the guest did not finish within {self._bench.timeout:g} s"
            self._failed(job.measurement, problem, ExitStatus.TIMEOUT)
        except (MeasurementError, RunError) as problem:
            self._failed(job.measurement, str(problem), ExitStatus.FAILED)
        return counts

    def _boot_or_recall(self, entry: Configuration, plan: Plan, folder: Path) -> tuple[Boot, dict[str, Any]]:
        found = kept(folder)
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)  # of a boot that was interrupted
            found = self._boot_once(self._bench, entry, plan, folder)
            keep(folder, *found)
        return found

    def _count_at_server(self, job: _Job) -> None:
        """What the server counted in the last measuring boot, minus what it counts in a boot that does nothing."""
        empty = self._boot(job, replace(job.plan, rounds=0, count_operations=0), f"{job.label}-empty")
        job.measurement.server = server_counts(job.served, empty, job.plan.timed_pairs + job.plan.count_operations)

    def _failed(self, measurement: Measurement, problem: str, status: ExitStatus) -> None:
        self._progress.done(f"failed: {problem}")
        measurement.problem = problem
        self.status = max(self.status, status)


def _measurement(configuration: Configuration, threads: int) -> Measurement:
    return Measurement(configuration.name, configuration.title, threads, configuration.group)


def _shown(measured: Boot) -> str:
    pairs = [entry.pair_ns_median for entry in measured.rounds]
    said = [f"map + unmap {min(pairs):.0f} to {max(pairs):.0f} ns"] if pairs else []
    return ", ".join(said + [f"a map through VFIO {entry.map_ns:.0f} ns" for entry in measured.vfio])
