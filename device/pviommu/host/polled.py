"""Several pollables as one."""

from __future__ import annotations

from collections.abc import Sequence

from ..hosted import Poll, Pollable

__all__ = ["Polled", "as_one"]


def as_one(pollables: Sequence[Pollable]) -> Pollable:
    """A single one is returned as it is, so that turns cost no more."""
    return pollables[0] if len(pollables) == 1 else Polled(pollables)


class Polled:
    """Each of them has its part of a turn and of a poll. See :class:`pviommu.hosted.Pollable`."""

    def __init__(self, pollables: Sequence[Pollable]) -> None:
        self._all = tuple(pollables)

    @property
    def has_core(self) -> bool:
        return any(one.has_core for one in self._all)

    @property
    def is_polled(self) -> bool:
        return any(one.is_polled for one in self._all)

    @property
    def is_told_of_waits(self) -> bool:
        """True if that holds of all that are in use now."""
        used = [one for one in self._all if one.is_polled]
        return bool(used) and all(one.is_told_of_waits for one in used)

    def work(self) -> bool:
        found = [one.work() for one in self._all]  # all of them
        return any(found)

    def spin(self, poll: Poll) -> bool:
        with_core = [one for one in self._all if one.has_core]
        part = poll._replace(budget_ns=poll.budget_ns // max(len(with_core), 1))
        found = [one.spin(part) for one in with_core]
        return any(found)

    def waits(self) -> int:
        return sum(one.waits() for one in self._all)

    def is_pressed(self) -> bool:
        return any(one.is_pressed() for one in self._all)

    def arm(self) -> bool:
        return all(one.arm() for one in self._all)

    def disarm(self) -> None:
        for one in self._all:
            one.disarm()

    def rested(self) -> None:
        for one in self._all:
            one.rested()
