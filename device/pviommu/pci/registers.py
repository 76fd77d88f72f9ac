"""A BAR of declared registers.

The declaration says what reads and writes of a register do. The object that ``handlers`` names adds what happens
besides, by methods found by name:

* ``read_status(index)`` gives the value of STATUS, whatever the file holds;
* ``accept_producer(index, value)`` says whether a write of ``value`` takes effect;
* ``write_reset(index, value)`` is told of a write that took effect: the file holds the new value already.

``index`` counts within a register that is an array. ``value`` is what was written, reserved bits included. A 4-byte
access to a register of 64 bits is an access to one half: ``value`` has what the other half holds, and 0 where only
ones do something.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vfio_user import Steps
from wire_layout.registers import Access, Register, RegisterMap

__all__ = ["RegisterFile", "check_handlers"]

_KINDS = ("read", "accept", "write")
_READABLE = (Access.RO, Access.RW, Access.RW1C, Access.RW1S)
_WRITABLE = (Access.RW, Access.WO, Access.RW1C, Access.RW1S)


class _Read(NamedTuple):
    """What a read of one place and size does."""

    values: list[int]
    element: int
    handler: Callable[[int], int] | None
    mask: int
    shift: int


class _Masks(NamedTuple):
    """What a write does to the bits of a register, unless it just replaces all of them."""

    shift: int
    """of the written bytes' lowest bit"""
    other_half: int
    """bits that are not written, whose value a handler gets with those that are"""
    kept: int
    """bits that writing does not replace"""
    clears: int
    """bits that writing 1 clears"""
    stores: int
    """bits that are replaced, or that writing 1 sets"""


class _Write(NamedTuple):
    """What a write of one place and size does."""

    values: list[int]
    element: int
    accept: Callable[[int, int], bool] | None
    handler: Callable[[int, int], Steps | None] | None
    masks: _Masks | None


class RegisterFile:
    """The registers of one BAR. An access is of a register's size, or of half of one of 64 bits; any other reads 0
    and writes nothing.
    """

    def __init__(self, registers: Iterable[Register], handlers: object) -> None:
        self.registers = registers if isinstance(registers, RegisterMap) else RegisterMap(*registers)
        self.handlers = handlers
        self._values = {each.name: [each.reset or 0] * each.count for each in self.registers}
        self._power_on: dict[str, list[int]] = {}
        self._reads: dict[tuple[int, int], _Read] = {}
        self._writes: dict[tuple[int, int], _Write] = {}
        for register in self.registers:
            for index, place in enumerate(register.places):
                self._add(register, index, place, register.size, 0)
                if register.size == 8:
                    self._add(register, index, place, 4, 0)
                    self._add(register, index, place + 4, 4, 32)
        self.seal()

    def _add(self, register: Register, index: int, place: int, size: int, shift: int) -> None:
        """Say what accesses of ``size`` bytes at ``place`` do, which begin at bit ``shift`` of a register."""
        reader, accept, writer = (getattr(self.handlers, f"{kind}_{register.name.lower()}", None) for kind in _KINDS)
        values = self._values[register.name]
        part = (1 << 8 * size) - 1 << shift
        if register.mask(*_READABLE):
            self._reads[place, size] = _Read(values, index, reader, register.mask(*_READABLE) & part, shift)
        if register.mask(*_WRITABLE):
            self._writes[place, size] = _Write(values, index, accept, writer, _masks(register, part, shift))

    def __getitem__(self, name: str) -> int:
        """What register ``name`` holds, the first one of an array."""
        return self._values[name][0]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[name][0] = value

    def seal(self) -> None:
        """Take what registers hold now as what they hold after a reset."""
        self._power_on = {name: list(values) for name, values in self._values.items()}

    def reset(self, *names: str) -> None:
        """Let the registers of these names, or all, hold what they do after a reset."""
        for name in names or self._values:
            self._values[name][:] = self._power_on[name]

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``."""
        found = self._reads.get((offset, count))
        if found is None:
            return bytes(count)
        values, element, handler, mask, shift = found
        value = values[element] if handler is None else handler(element)
        return ((value & mask) >> shift).to_bytes(count, "little")

    def write(self, offset: int, data: bytes) -> Steps | None:
        """Write ``data`` at ``offset``. Returns what the register's write method returns: None, or what is left to do
        in steps.
        """
        found = self._writes.get((offset, len(data)))
        if found is None:
            return None
        values, element, accept, handler, masks = found
        value = int.from_bytes(data, "little")
        if masks is not None:
            value = value << masks.shift | values[element] & masks.other_half
        if accept is not None and not accept(element, value):
            return None
        if masks is None:
            values[element] = value
        else:
            values[element] = values[element] & masks.kept & ~(value & masks.clears) | value & masks.stores
        return None if handler is None else handler(element, value)


def _masks(register: Register, part: int, shift: int) -> _Masks | None:
    """What writing the bits of ``part`` does, which begin at bit ``shift``."""
    replaced = register.mask(Access.RW, Access.WO)
    if replaced == part:
        return None
    clears, sets = register.mask(Access.RW1C), register.mask(Access.RW1S)
    return _Masks(shift, replaced & ~part, ~(replaced & part), clears & part, (replaced | sets) & part)


def check_handlers(files: Iterable[RegisterFile]) -> None:
    """Raise :class:`ValueError` for a handler of these files that is never called: its name fits no register, or the
    register is not read or written at all. An object may handle several files.
    """
    known: dict[int, tuple[object, set[str], set[str]]] = {}
    for file in files:
        _, every, used = known.setdefault(id(file.handlers), (file.handlers, set(), set()))
        for register in file.registers:
            every.update(f"{kind}_{register.name.lower()}" for kind in _KINDS)
            if register.mask(*_READABLE):
                used.add(f"read_{register.name.lower()}")
            if register.mask(*_WRITABLE):
                used.update(f"{kind}_{register.name.lower()}" for kind in ("accept", "write"))
    for handlers, every, used in known.values():
        for name in dir(type(handlers)):  # dir() of the object itself would make its attributes slow in Python 3.11
            if not name.startswith(tuple(f"{kind}_" for kind in _KINDS)) or name in used:
                continue
            whose = f"{type(handlers).__name__}.{name}"
            if name in every:
                done = "read" if name.startswith("read_") else "written"
                raise ValueError(f"{whose} would never be called: its register is not {done}, by its access kind")
            nearest = difflib.get_close_matches(name, sorted(used), 1, 0)
            advice = f"; the nearest name that does is {nearest[0]}" if nearest else ""
            raise ValueError(f"{whose} fits no register{advice} (begin other methods with an underscore)")
