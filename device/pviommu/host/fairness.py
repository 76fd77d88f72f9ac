"""Which of many comes first: the one that has used the least time so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Fairness"]

_Member = TypeVar("_Member")

_AGE_NS = 100_000_000
"""Half-life of what a member has used: time used so long ago counts half."""


class Fairness(Generic[_Member]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) of members that are told apart by identity or equality.

    One that was idle for a while comes before those that are always busy, but does not get back the time that it left
    to others. All times are in nanoseconds and come from the caller.
    """

    def __init__(self) -> None:
        self._now = 0
        """the virtual time at which the turn in progress began"""
        self._used: dict[_Member, int] = {}
        """the virtual time up to which each member has had its part"""
        self._lately: dict[_Member, int] = {}
        """what each has used lately: it decides between members that wanted nothing for a while and then all come at
        once"""
        self._age_at = _AGE_NS

    def order(self, members: Iterable[_Member]) -> list[_Member]:
        """``members``, those that had least first; among equals the order stays."""
        used, lately, now = self._used, self._lately, self._now
        return sorted(members, key=lambda member: (max(used.get(member, 0), now), lately.get(member, 0)))

    def charge(self, member: _Member, ns: int) -> None:
        """``member`` has had a turn of ``ns``."""
        self._now = max(self._used.get(member, 0), self._now)
        self._used[member] = self._now + ns
        self._lately[member] = self._lately.get(member, 0) + ns
        if self._now >= self._age_at:
            self._age_at = self._now + _AGE_NS
            self._lately = {each: lately // 2 for each, lately in self._lately.items()}

    def forget(self, member: _Member) -> None:
        """``member`` is gone."""
        self._used.pop(member, None)
        self._lately.pop(member, None)
