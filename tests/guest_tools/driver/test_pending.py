"""Maps that are sent and whose outcome is taken later: random histories of the very source."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from ctypes import POINTER, byref, c_bool, c_int, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

PLACES = 16
MAPPED = 1 << 63
TASKS = 2
FAR = 1 << 20
"""Pages between what the tasks map."""

ERRORS = (errno.EPERM, errno.EADDRINUSE, errno.ENOMEM)


FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "domain_new": (c_void_p, []),
    "domain_delete": (c_int, [c_void_p]),
    "device_sends": (None, [c_bool]),
    "device_behind": (c_uint32, []),
    "device_in_flight": (c_uint32, []),
    "domain_map": (c_int, [c_void_p, c_int, c_uint64, c_uint64, c_uint32, c_int, c_uint32, POINTER(c_bool)]),
    "domain_clear_run": (c_uint64, [c_void_p, c_uint64, c_uint64, POINTER(c_uint64)]),
    "pviommu_pending_collect": (c_int, [c_void_p, c_uint64, c_uint64]),
}


@dataclass
class Sent:
    """A map that is remembered."""

    task: int
    error: int
    taken: bool = False


@dataclass
class Call:
    """What a task has mapped since it last synced, without a hole: one iommu_map()."""

    first: int
    pages: int = 0
    mapped: list[tuple[int, int]] = field(default_factory=list)
    """what the device has, or will have, mapped: first page and count"""


class Histories(RuleBasedStateMachine):
    """Two tasks, each in a call of its own, as the IOMMU core makes them."""

    library: ctypes.CDLL

    @initialize()
    def start(self) -> None:
        self.own = self.library.domain_new()
        self.sent: list[Sent] = []
        self.calls = [Call(task * FAR) for task in range(TASKS)]

    def _place(self, task: int) -> bool:
        """Whether there is a place for one more, which may take others' outcomes."""
        if len(self.sent) < PLACES:
            return True
        for one in [one for one in self.sent if one.task == task and not one.taken]:
            one.taken = True
            if not one.error:
                self.sent.remove(one)
                return True
        return False

    @rule(
        task=st.integers(0, TASKS - 1),
        nr=st.sampled_from([1, 3, 512]),
        error=st.sampled_from([0, 0, 0, 0, *ERRORS]),
        prefix=st.integers(0, 511),
        times=st.sampled_from([1, 1, 10, 20]),
    )
    def map(self, task: int, nr: int, error: int, prefix: int, times: int) -> None:
        for _ in range(times):
            if not self._map(task, nr, error, min(prefix, nr - 1) if error else nr):
                break

    def _map(self, task: int, nr: int, error: int, mapped: int) -> bool:
        call, waited, place = self.calls[task], c_bool(), self._place(task)
        dfn = call.first + call.pages
        got = self.library.domain_map(self.own, task, dfn, dfn + 7, nr, -error, mapped, byref(waited))
        assert waited.value is not place
        assert got == (0 if place else -error)
        if mapped:
            call.mapped.append((dfn, mapped))
        if place:
            self.sent.append(Sent(task, error))
        call.pages += nr if place else mapped
        if got:
            self._undo(task)  # as the core does, without sync
        return not got

    @rule(task=st.integers(0, TASKS - 1))
    def map_that_is_not_sent(self, task: int) -> None:
        if len(self.sent) == PLACES:
            return
        call, waited = self.calls[task], c_bool()
        self.library.device_sends(False)
        dfn = call.first + call.pages
        assert self.library.domain_map(self.own, task, dfn, dfn, 4, 0, 4, byref(waited)) == -errno.EIO
        self.library.device_sends(True)
        assert self.library.domain_clear_run(self.own, dfn, 4, byref(c_uint64())) == 0

    @rule(task=st.integers(0, TASKS - 1))
    def sync(self, task: int) -> None:
        call = self.calls[task]
        if not call.pages:
            return
        errors = [one.error for one in self.sent if one.task == task and one.error]
        self.sent = [one for one in self.sent if one.task != task]
        got = self.library.pviommu_pending_collect(self.own, call.first, call.pages)
        assert got == (-errors[0] if errors else 0)
        self._undo(task)  # because of the error, or later because nobody needs it any more

    def _undo(self, task: int) -> None:
        call = self.calls[task]
        self.sent = [one for one in self.sent if one.task != task]
        if not call.pages:
            return
        self.library.pviommu_pending_collect(self.own, call.first, call.pages)
        at, of_device, kind = call.first, [], c_uint64()
        while at < call.first + call.pages:
            run = self.library.domain_clear_run(self.own, at, call.first + call.pages - at, byref(kind))
            assert run > 0, "a page that was reported does not count as unmapped"
            if kind.value == MAPPED:
                of_device.append((at, run))
            at += run
        assert _merged(of_device) == _merged(call.mapped), "the device is asked for other pages than it has"
        self.calls[task] = Call(task * FAR)

    @invariant()
    def device_has_what_is_remembered(self) -> None:
        assert self.library.device_in_flight() == len([one for one in self.sent if not one.taken])

    def teardown(self) -> None:
        assert self.library.domain_delete(self.own) == 0, "pages of tables are left"


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, count in ranges:
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + count)
        else:
            merged.append((first, count))
    return merged


@pytest.fixture(scope="module")
def library(load_driver: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load_driver("pending.c", FUNCTIONS)


@pytest.mark.row("driver", 53)
def test_each_call_gets_its_first_error_and_the_device_unmaps_what_it_has(
    library: ctypes.CDLL, run_histories: Callable[[type[RuleBasedStateMachine], ctypes.CDLL], None]
) -> None:
    run_histories(Histories, library)


@pytest.mark.row("driver", 52)
def test_many_maps_between_two_syncs_never_leave_the_device_without_work(library: ctypes.CDLL) -> None:
    own, waited = library.domain_new(), c_bool()
    for i in range(10 * PLACES):
        assert library.domain_map(own, 0, i, i, 1, 0, 1, byref(waited)) == 0
        assert not waited.value
        if i >= PLACES:
            assert library.device_behind() == PLACES - 1
    assert library.pviommu_pending_collect(own, 0, 10 * PLACES) == 0
    assert library.device_in_flight() == 0
    assert library.domain_delete(own) == 0


@pytest.mark.row("driver", 52)
def test_an_error_taken_to_make_room_is_that_of_the_sync(library: ctypes.CDLL) -> None:
    own, waited = library.domain_new(), c_bool()
    for i in range(3 * PLACES):
        error = {2: errno.EPERM, 5: errno.ENOMEM}.get(i, 0)
        assert library.domain_map(own, 0, i, i, 1, -error, int(not error), byref(waited)) == 0
    assert library.pviommu_pending_collect(own, 3, 3 * PLACES) == -errno.ENOMEM
    assert library.pviommu_pending_collect(own, 0, 3) == -errno.EPERM
    assert library.domain_delete(own) == 0


@pytest.mark.row("driver", 52)
def test_places_of_another_task_are_left_alone(library: ctypes.CDLL) -> None:
    own, waited = library.domain_new(), c_bool()
    for i in range(PLACES):
        assert library.domain_map(own, 0, i, i, 1, 0, 1, byref(waited)) == 0
    assert library.domain_map(own, 1, FAR, 0, 1, -errno.EPERM, 0, byref(waited)) == -errno.EPERM
    assert waited.value
    assert library.device_in_flight() == PLACES
    assert library.domain_delete(own) == 0
