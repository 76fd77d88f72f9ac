"""Machines that are saved in the middle of a history and go on in another process, and some that are not saved well."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from msgspec.structs import replace

from pviommu.machine import MachineState
from pviommu.native.library import Library
from pviommu.pci.shared_memory import pages_of
from pviommu.selfcheck.checker import Checker, Run
from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.machine_path import MachinePath
from pviommu.selfcheck.machine_process import MachineProcess
from pviommu.selfcheck.operations import Usage
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.rules import Rules
from pviommu.selfcheck.settings import Setting
from pviommu_abi.registers import SHARED_BAR
from pviommu_abi.shared import EVENT_ENTRIES, EVENT_OFFSET, SHARED_BAR_SIZE, Event

from ..native.conftest import native_library

__all__ = ["native_library"]

Made = list[MachinePath]


@pytest.fixture
def made() -> Made:
    return []


@pytest.fixture
def make(made: Made) -> Callable[..., Callable[[Oracle], MachinePath]]:
    """What makes paths, which can be looked at afterwards."""

    def with_(**how: Any) -> Callable[[Oracle], MachinePath]:
        def build(oracle: Oracle) -> MachinePath:
            made.append(MachinePath(oracle, **how))
            return made[-1]

        return build

    return with_


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_histories_go_on_in_another_process(profile: str, make: Any, made: Made) -> None:
    assert Run("s", profile).check(400, [make(every=7)]) is None

    [path] = made
    assert path.snapshots > 40
    assert path.in_operations > 4


def test_histories_go_on_with_either_core(
    native_library: Library, make: Any, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    natives: list[bool] = []
    build = MachineProcess.build

    def noted(self: MachineProcess, *arguments: Any, native: bool) -> Any:
        natives.append(native)
        return build(self, *arguments, native=native)

    monkeypatch.setattr(MachineProcess, "build", noted)
    library = Path(native_library._library._name)

    assert Run("n", "xen-2024").check(300, [make(every=9, library=library)]) is None

    assert len(natives) == made[0].snapshots + 1 > 20
    assert natives[:6] == [True, False, False, True, True, False]


def without_times(path: MachinePath) -> MachineState:
    """All that is saved, but for when events were: DMA that is brought to an end takes no time of this clock."""
    state = msgspec.json.decode(path.take().split(b"\n", 1)[1], type=MachineState)
    function = state.iommu.function
    memory = bytearray(SHARED_BAR_SIZE)
    for offset, data in function.shared[SHARED_BAR]:
        memory[offset : offset + len(data)] = data
    for event in range(EVENT_OFFSET, EVENT_OFFSET + EVENT_ENTRIES * Event.SIZE, Event.SIZE):
        at = event + Event.offset_of("time_ns")
        memory[at : at + 8] = bytes(8)
    function = replace(function, shared={SHARED_BAR: pages_of(bytes(memory))})
    return replace(state, iommu=replace(state.iommu, function=function))


def test_a_machine_that_is_saved_again_and_again_ends_as_one_that_is_left_alone(make: Any, made: Made) -> None:
    """In all that is saved: registers, shared memory with all completions and events, tables, counters."""
    run = Run("alike", "xen-2024")
    with Checker(run.setting, [make(every=0), make(every=5)]) as checker:
        rules = Rules(run._random, checker.oracle.model, checker.oracle.interface.malformed)
        for _ in range(300):
            for op in rules.draw():
                checker.step(op)
        checker.compare_all()
        alone, saved = made
        assert (alone.snapshots, saved.snapshots > 40) == (0, True)
        assert without_times(alone) == without_times(saved)


# -- what is not saved well -------------------------------------------------------------------------------------------


def no_operation(state: Any) -> None:
    for ring in state["iommu"]["rings"]:
        ring["operation"] = None


def nobody_blocked(state: Any) -> None:
    state["iommu"]["engine"]["attachments"]["blocked"] = []
    state["iommu"]["contexts"]["held"] = []


def nothing_lost(state: Any) -> None:
    state["iommu"]["events"]["sequence"] = 0


@pytest.mark.parametrize("forget", [no_operation, nobody_blocked, nothing_lost])
def test_what_is_not_saved_is_noticed(
    forget: Callable[[Any], None], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = MachineProcess.__call__

    def forgetful(self: MachineProcess, name: str, *arguments: Any, **named: Any) -> Any:
        outcome = call(self, name, *arguments, **named)
        if name != "take":
            return outcome
        head, _, body = outcome[0].partition(b"\n")
        state = msgspec.json.decode(body)
        forget(state)
        body = msgspec.json.encode(state)
        head = msgspec.json.encode(msgspec.json.decode(head) | {"bytes": len(body), "crc32": crc32(body)})
        return head + b"\n" + body, outcome[1]

    monkeypatch.setattr(MachineProcess, "__call__", forgetful)
    runs = (Run(f"w{number}", "xen-2024") for number in range(4))

    found = next(filter(None, (run.check(600, [make(every=7)]) for run in runs)))

    assert found.path == "machine"


def test_a_machine_that_cannot_be_restored_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(Setting())
    path = MachinePath(oracle, every=2)
    monkeypatch.setattr(path, "_plug_parts", lambda _: None)
    path.run(Usage(), oracle.apply(Usage()))

    with pytest.raises(Difference, match=r"guest memory of .* is expected, and there is nothing"):
        path.run(Usage(), oracle.apply(Usage()))

    path.close()


def test_processes_end_with_the_path() -> None:
    path = MachinePath(Oracle(Setting()))
    processes = [each._process for each in (path._process, next(path._processes))]
    assert len(multiprocessing.active_children()) >= len(processes)

    path.close()

    assert not multiprocessing.active_children()
