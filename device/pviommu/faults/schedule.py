"""When a rule fires: which of the passes that meet its conditions."""

from __future__ import annotations

from hashlib import blake2b
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from ..documents import WrongValueError

__all__ = ["Schedule", "Turns", "stream_of"]

_MOST = (1 << 32) - 1
_Probability = Annotated[
    float,
    Meta(
        gt=0,
        le=1,
        description="by chance, from a random stream that depends on the seed and the rule's id alone",
        extra_json_schema={"$comment": "more than 0 and at most 1"},
    ),
]


class Schedule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """``schedule``: without a key, every pass."""

    nth: Annotated[int, Meta(ge=1, le=_MOST, description="only this pass, counted from 1")] | None = None
    after: Annotated[int, Meta(ge=0, le=_MOST, description="not the first so many passes")] | None = None
    every: Annotated[int, Meta(ge=1, le=_MOST, description="of those, each of this number")] | None = None
    times: Annotated[int, Meta(ge=1, le=_MOST, description="no more often than this")] | None = None
    probability: _Probability | None = None
    until: Annotated[int, Meta(ge=1, le=_MOST, description="no pass behind this one")] | None = None

    def check(self) -> None:
        """Raises :class:`.WrongValueError` for keys that rule each other out."""
        if self.nth is not None:
            for key in ("after", "every", "times", "until"):
                if getattr(self, key) is not None:
                    raise WrongValueError((key,), f"nth is one pass, so {key} says nothing beside it")
        if self.until is not None and self.after is not None and self.until <= self.after:
            raise WrongValueError(("until",), f"until = {self.until}: must be more than after, {self.after}")


def stream_of(seed: int, rule: str) -> Random:
    """The random stream of a rule: of the scenario's seed and the rule's id, and of nothing else."""
    digest = blake2b(rule.encode(), digest_size=16, salt=seed.to_bytes(8, "little")).digest()
    return Random(int.from_bytes(digest, "little"))


class Turns:
    """Where a rule is in its schedule."""

    def __init__(self, schedule: Schedule, random: Random) -> None:
        self._schedule = schedule
        self._random = random
        self.passed = 0
        self.fired = 0

    def next(self) -> bool:
        """A pass that meets the conditions. Whether the rule fires.

        A number is drawn at each pass whose count fits, whether the rule may still fire or not: what was drawn before
        does not depend on ``times``.
        """
        self.passed += 1
        schedule, place = self._schedule, self.passed - (self._schedule.after or 0)
        if schedule.nth is not None and place != schedule.nth:
            return False
        if place < 1 or (schedule.until is not None and self.passed > schedule.until):
            return False
        if schedule.every is not None and place % schedule.every:
            return False
        if schedule.probability is not None and self._random.random() >= schedule.probability:
            return False
        if schedule.times is not None and self.fired >= schedule.times:
            return False
        self.fired += 1
        return True
