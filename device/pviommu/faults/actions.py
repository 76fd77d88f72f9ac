"""What a rule may do: the keys of its ``do``, each action with its own parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from pviommu_abi.slots import Errno

from ..documents import WrongValueError
from ..toml_places import shown, spelled
from .catalogue import BITS, Nature, Place

__all__ = ["ACTIONS", "WAITS", "Action", "Do", "duration_ns", "rate", "result_of"]

_TIME = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?(ns|us|ms|s)")
_RATE = re.compile(r"([0-9]{1,20}) ?(|Ki|Mi|Gi)/s")
_NS = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}
_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
MOST_NS = 3600 * _NS["s"]


class Action(NamedTuple):
    """One of them."""

    text: str
    parameters: tuple[str, ...] = ()
    """keys that may stand beside it"""
    needs: tuple[str, ...] = ()
    """those of which one must"""


ACTIONS = {
    "fail": Action("answer this error, one that the probe declares, without doing anything"),
    "status": Action("answer this result, whether the probe declares it or not: a name, or 0 to 4095"),
    "partial": Action("do the first so many pages (bytes, of DMA) and then answer an error", ("then",), ("then",)),
    "delay": Action("go on after this time", ("jitter", "clock")),
    "bandwidth": Action("take as long as that many bytes a second take"),
    "suspend": Action("wait, under this tag, until a rule or an operator resumes it"),
    "wait": Action("wait until something is suspended under this tag"),
    "resume": Action("let everything go on that is suspended under this tag"),
    "reorder": Action("let so many later calls of this probe pass first", ("within",)),
    "hang": Action("never go on, until a reset; what a client waits for, until that client is gone"),
    "drop": Action("leave the call out: what it would have done does not happen, and nobody is told"),
    "lie": Action("leave the call out and answer success"),
    "duplicate": Action("do it this many times more; the last answer counts"),
    "corrupt": Action("change a field by its name, or a byte by its offset", ("xor", "value"), ("xor", "value")),
    "truncate": Action("only so many of the first bytes"),
    "slice": Action("so many bytes at most now, the rest later"),
    "stale": Action("translate as before the last change, if this was translated before"),
    "miss": Action("find nothing, though it may be there"),
    "overflow": Action("lose the event as if the event ring were full, and count it"),
    "withhold": Action("leave the file descriptors out that come with it"),
    "unplug": Action("lose the frame, and set the link of the network card down for this time"),
    "interrupt": Action("raise this MSI-X vector of the PV-IOMMU, which nothing is behind"),
    "disconnect": Action("hang up on the client of the function, once the call is over"),
    "crash": Action("end the process at once, as a killed server ends"),
    "reset": Action("reset the PV-IOMMU, once the call is over"),
    "log": Action("write this text to the log of events"),
    "assert": Action("fail the run unless these conditions hold, which read as those of `where`"),
}
"""By the key that names them."""

WAITS = frozenset({"delay", "bandwidth", "suspend", "wait", "reorder", "hang"})
"""Those that only take time."""
_PARAMETERS = ("then", "jitter", "clock", "within", "xor", "value")
_ERROR_RULE = "the name of an error, as ENOMEM"
_TIME_RULE = "a time, as 250us, 1.5ms or 2s, at most an hour"
_RATE_RULE = "units a second, as 64Ki/s or 10Mi/s; bytes, or of operations pages"
_TAG = Meta(pattern=r"^[ -~]{1,64}$(?!\n)", extra_json_schema={"$comment": "a tag of 1 to 64 printable characters"})
_TRUE = Literal[True]
_MOST = (1 << 32) - 1
_FIELD = Annotated[int, Meta(ge=0, le=_MOST)] | str


def _said(text: str) -> Meta:
    return Meta(extra_json_schema={"$comment": text})


_FULL = (1 << 63) - 1


class Do(msgspec.Struct, forbid_unknown_fields=True, rename={"assert_": "assert"}, frozen=True, omit_defaults=True):
    """``do``: one action and its parameters."""

    fail: Annotated[str | None, _said(_ERROR_RULE)] = None
    status: Annotated[int | str | None, _said("a result: the name of an error, or 0 to 4095")] = None
    partial: Annotated[int, Meta(ge=0, le=_MOST)] | None = None
    then: Annotated[str | None, _said(_ERROR_RULE)] = None
    delay: Annotated[str | None, _said(_TIME_RULE)] = None
    jitter: Annotated[str | None, _said(_TIME_RULE)] = None
    clock: Literal["real", "virtual"] | None = None
    bandwidth: Annotated[str | None, _said(_RATE_RULE)] = None
    suspend: Annotated[str, _TAG] | None = None
    wait: Annotated[str, _TAG] | None = None
    resume: Annotated[str, _TAG] | None = None
    reorder: Annotated[int, Meta(ge=1, le=1024)] | None = None
    within: Annotated[str | None, _said(_TIME_RULE)] = None
    hang: Annotated[_TRUE | None, _said("true")] = None
    drop: Annotated[_TRUE | None, _said("true")] = None
    lie: Annotated[_TRUE | None, _said("true")] = None
    duplicate: Annotated[int, Meta(ge=1, le=16)] | None = None
    corrupt: Annotated[_FIELD | None, _said("the name of a field, or the offset of a byte, 0 to 4294967295")] = None
    xor: Annotated[int, Meta(ge=1, le=_FULL)] | None = None
    value: Annotated[int, Meta(ge=0, le=_FULL)] | None = None
    truncate: Annotated[int, Meta(ge=0, le=_MOST)] | None = None
    slice: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    stale: Annotated[_TRUE | None, _said("true")] = None
    miss: Annotated[_TRUE | None, _said("true")] = None
    overflow: Annotated[_TRUE | None, _said("true")] = None
    withhold: Annotated[_TRUE | None, _said("true")] = None
    unplug: Annotated[str | None, _said(_TIME_RULE)] = None
    interrupt: Annotated[int, Meta(ge=0, le=8)] | None = None
    disconnect: Annotated[_TRUE | None, _said("true")] = None
    crash: Annotated[_TRUE | None, _said("true")] = None
    reset: Annotated[_TRUE | None, _said("true")] = None
    log: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    assert_: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """The keys that it has, in the order of their declaration."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    @property
    def action(self) -> str:
        """The one that it is."""
        return next(key for key, attribute in _ATTRIBUTES if getattr(self, attribute) is not None)

    @property
    def lacks_memory(self) -> bool:
        """Whether it answers what RESERVE has promised not to come of a map."""
        return not {self.fail, self.then}.isdisjoint({"ENOMEM", "POOL_EXHAUSTED"})

    def check(self) -> None:
        """Raises :class:`.WrongValueError`, places within ``do``, for a table that is no action."""
        given = self.given()
        named = [key for key in given if key in ACTIONS]
        if len(named) != 1:
            has = f"it has {' and '.join(named)}" if named else "it has none"
            raise WrongValueError((), f"one action: {has}; there are {', '.join(ACTIONS)}")
        action = ACTIONS[named[0]]
        for key in given:
            if key in _PARAMETERS and key not in action.parameters:
                fits = [name for name, each in ACTIONS.items() if key in each.parameters]
                raise WrongValueError((key,), f"{key} does not go with {named[0]}, but with {' and '.join(fits)}")
        if action.needs and len([key for key in action.needs if key in given]) != 1:
            raise WrongValueError((named[0],), f"{named[0]} needs {' or '.join(action.needs)} beside it")
        for key in ("delay", "jitter", "within", "unplug"):
            if key in given:
                duration_ns(given[key], (key,))
        if self.bandwidth is not None:
            rate(self.bandwidth)
        if self.status is not None:
            result_of(self.status)
        if isinstance(self.corrupt, int):
            self._check_width(8, f"corrupt = {self.corrupt} is one byte")
        if self.assert_ is not None and not self.assert_:
            raise WrongValueError(("assert",), "assert = {}: must have a condition, as those of `where`")

    def check_at(self, places: Iterable[Place]) -> None:
        """Raises :class:`.WrongValueError` for what is not possible at one of them."""
        action = self.action
        has_names = not (self.fail is self.then is self.corrupt is None)
        for place in places:
            if action not in place.actions:
                others = [each.name for each in place.probe.places if action in each.actions]
                hint = f" ({action}: {', '.join(others)})" if others else ""
                possible = f"possible is {', '.join(place.actions)}"
                raise WrongValueError((action,), f"{action} is not possible at {place.name}{hint}; {possible}")
            if has_names:
                self._check_names(place)

    def _check_names(self, place: Place) -> None:
        """Of errors and fields."""
        probe, known = place.probe, (*place.probe.errors, *place.probe.refusals)
        for key, error in (("fail", self.fail), ("then", self.then)):
            if error is not None and error not in known:
                hint = "; `status` answers any other" if error in _ERRORS and "status" in place.actions else ""
                said = f"{error[:64]} is no error of {probe.name}, which are {', '.join(known)}{hint}"
                raise WrongValueError((key,), said)
        fields = ", ".join(probe.fields)
        if isinstance(self.corrupt, str) and self.corrupt not in probe.fields:
            fields = fields or "none by name, give an offset"
            raise WrongValueError(("corrupt",), f"{probe.name} has no field {self.corrupt[:64]}, but {fields}")
        if isinstance(self.corrupt, str) and not probe.name.startswith("op."):
            self._check_width(bits := BITS[self.corrupt], f"{self.corrupt} of {probe.name} has {bits} bits")
        if isinstance(self.corrupt, int) and fields and not probe.payload:
            said = f"corrupt = {self.corrupt}: {probe.name} has no bytes, but the fields {fields}"
            raise WrongValueError(("corrupt",), said)

    def _check_width(self, bits: int, what: str) -> None:
        """Of the number that ``corrupt`` has with it, for ``what``."""
        for key, number in (("xor", self.xor), ("value", self.value)):
            if number is not None and number >> bits:
                raise WrongValueError((key,), f"{key} = {shown(number, ())}: {what}, so at most {(1 << bits) - 1}")

    def nature_at(self, place: Place) -> Nature:
        """Whether a correct IOMMU may do this there."""
        return self.natures_at((place,))[place.name]

    def natures_at(self, places: Iterable[Place]) -> dict[str, Nature]:
        """The same of several, by their names."""
        action, told = self.action, {self.fail, self.then} - {None}
        return {
            place.name: Nature.ADVERSARIAL
            if told and not told.isdisjoint(place.probe.refusals)
            else place.actions[action]
            for place in places
        }


_ATTRIBUTES = tuple((name, "assert_" if name == "assert" else name) for name in ACTIONS)


def duration_ns(text: str, place: tuple[str, ...] = ()) -> int:
    """A time in nanoseconds. Raises :class:`.WrongValueError`."""
    match = _TIME.fullmatch(text)
    found = round(float(match[1]) * _NS[match[2]]) if match else MOST_NS + 1
    if found > MOST_NS:
        raise WrongValueError(place, f"{spelled(place)} = {shown(text, ())}: must be {_TIME_RULE}")
    return found


def rate(text: str) -> int:
    """Units a second. Raises :class:`.WrongValueError`."""
    match = _RATE.fullmatch(text)
    if not match or not int(match[1]):
        raise WrongValueError(("bandwidth",), f"bandwidth = {shown(text, ())}: must be {_RATE_RULE}")
    return int(match[1]) * _UNITS[match[2]]


_ERRORS: Mapping[str, int] = {error.name: int(error) for error in Errno}


def result_of(status: int | str) -> int:
    """The errno of a status. Raises :class:`.WrongValueError`."""
    if isinstance(status, int) and 0 <= status <= 4095:
        return status
    if status in _ERRORS:
        return _ERRORS[str(status)]
    said = f"status = {shown(status, ())}: must be 0 to 4095, or one of {', '.join(_ERRORS)}"
    raise WrongValueError(("status",), said)
