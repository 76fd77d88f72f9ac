"""Threads for work that blocks, whose outcomes come back into the loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ..hosted import Owner
from ..inputs import InputKind, Inputs, Source, WorkOutcome

__all__ = ["THREADS", "Workers"]

THREADS = 4
"""At most so many. Further work waits for one of them, and owners take turns."""
_T = TypeVar("_T")


class _Job(NamedTuple):
    """Work that is being done, or waits, for an owner."""

    owner: Owner
    generation: int
    callback: Callable[[WorkOutcome[Any]], None]


class Workers:
    """A few threads, started when they are needed. Their results enter through the inputs."""

    def __init__(self, inputs: Inputs, wake: Callable[[], None]) -> None:
        """``wake`` is called, in any thread, when there is something for :meth:`take`."""
        self._inputs = inputs
        self._wake = wake
        self._jobs: dict[int, _Job] = {}
        self._count = 0
        self._waiting: dict[Owner, deque[tuple[int, Callable[[], Any]]]] = {}
        """by owner, none of them empty; the first owner is the next to have something done"""
        self._finished: deque[WorkOutcome[Any]] = deque()
        self._has_work = threading.Condition()
        self._idle = 0
        self._threads = 0
        self._closed = False
        self._begin = inputs.of(Source(InputKind.WORKER), self._hand_over)

    def submit(self, owner: Owner, work: Callable[[], _T], callback: Callable[[WorkOutcome[_T]], None]) -> None:
        """See :meth:`pviommu.hosted.Host.submit`."""
        self._count += 1
        self._jobs[self._count] = _Job(owner, owner.generation, callback)
        self._begin(self._count, work)

    def _hand_over(self, number: int, work: Callable[[], Any]) -> None:
        owner = self._jobs[number].owner
        with self._has_work:
            self._drop_stale(owner)
            self._waiting.setdefault(owner, deque()).append((number, work))
            if self._idle < sum(map(len, self._waiting.values())) and self._threads < THREADS:
                self._begin_thread(number)
            self._has_work.notify()

    def _begin_thread(self, number: int) -> None:
        thread = threading.Thread(target=self._work, name="worker", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:  # otherwise the work waits for one of the existing threads
                self._waiting.clear()  # the owners of earlier work have been told so already
                self._finish(WorkOutcome(number, error=error))
        else:
            self._threads += 1

    def _drop_stale(self, owner: Owner) -> None:
        """Forget what an owner asked for before its last reset, unless it has begun."""
        waiting = self._waiting.get(owner, deque())
        while waiting and self._jobs[waiting[0][0]].generation != owner.generation:
            del self._jobs[waiting.popleft()[0]]
        if not waiting:
            self._waiting.pop(owner, None)

    def _next(self) -> tuple[int, Callable[[], Any]] | None:
        """Take out what is to be done next, if there is anything."""
        while self._waiting:
            owner = next(iter(self._waiting))
            self._drop_stale(owner)
            if waiting := self._waiting.pop(owner, None):
                job = waiting.popleft()
                if waiting:
                    self._waiting[owner] = waiting  # behind all others
                return job
        return None

    def take(self) -> list[Callable[[], None]]:
        """Calls that tell owners what came of their work; a call does nothing if its owner is not interested any
        more."""
        return [partial(self._tell, outcome) for outcome in self._inputs.outcomes(self._finished)]

    def _tell(self, outcome: WorkOutcome[Any]) -> None:
        owner, generation, callback = self._jobs.pop(outcome.job)
        if owner.generation == generation:
            callback(outcome)

    def close(self) -> None:
        """Begin no further work. Work in progress is not waited for."""
        with self._has_work:
            self._closed = True
            self._waiting.clear()
            self._has_work.notify_all()

    def _work(self) -> None:
        while True:
            with self._has_work:
                self._idle += 1
                while (job := self._next()) is None and not self._closed:
                    self._has_work.wait()
                self._idle -= 1
                if job is None or self._closed:
                    return
            number, work = job
            try:
                outcome: WorkOutcome[Any] = WorkOutcome(number, work())
            except Exception as error:  # whatever it is, the owner is told of it
                outcome = WorkOutcome(number, error=error)
            self._finish(outcome)

    def _finish(self, outcome: WorkOutcome[Any]) -> None:
        self._finished.append(outcome)
        self._wake()
