"""Who comes first where many want a turn: whoever has used the least time so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Fairness"]

_Member = TypeVar("_Member")


class Fairness(Generic[_Member]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) of members that are told apart by identity or equality.

    One that wanted nothing for a while comes before those that are always busy, and has no claim to the time that it
    left to others. All times are in nanoseconds and come from the caller.
    """

    def __init__(self) -> None:
        self._now = 0
        """the time, in shares, at which the turn in progress began"""
        self._used: dict[_Member, int] = {}
        """in shares, up to when each member has had its part"""

    def order(self, members: Iterable[_Member]) -> list[_Member]:
        """``members``, those first that had least; among equals the order stays."""
        used, now = self._used, self._now
        return sorted(members, key=lambda member: max(used.get(member, 0), now))

    def charge(self, member: _Member, ns: int) -> None:
        """``member`` has had a turn of ``ns``."""
        self._now = max(self._used.get(member, 0), self._now)
        self._used[member] = self._now + ns

    def forget(self, member: _Member) -> None:
        """``member`` is gone."""
        self._used.pop(member, None)
