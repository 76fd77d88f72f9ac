"""A BAR of declared registers.

The declaration says what reads and writes of a register do. The object ``handlers`` adds further effects, by methods
found by name:

* ``read_status(index)`` gives the value that is read from STATUS, whatever the file holds; ``accept_producer(index,
* value)`` says whether a write of ``value`` takes effect; ``write_reset(index, value)`` is called after a write that
* took effect: the file holds the new value already.

``index`` counts within a register that is an array. ``value`` is what was written, reserved bits included. A 4-byte
access to a 64-bit register is an access to one half: ``value`` then has the present bits of the other half, but 0 for
those where writing 1 has an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from vfio_user import Steps
from wire_layout.registers import AccessKind, Register, RegisterMap

__all__ = ["RegisterFile", "RegisterValues", "check_handlers"]

_READABLE = (AccessKind.RO, AccessKind.RW, AccessKind.RW1C, AccessKind.RW1S)
_WRITABLE = (AccessKind.RW, AccessKind.WO, AccessKind.RW1C, AccessKind.RW1S)


_Read = tuple[list[int], int, Callable[[int], int] | None, int, int]
"""What a read of one place and size does: the list of values and an index into it, the read method, the bits that are
read, and the number of the lowest one.
"""
_Masks = tuple[int, int, int, int, int]
"""What a write does to a register's bits: the number of the lowest one that is written; those that are not written,
whose value handlers get with the others; those that stay; those that writing 1 clears; those that are replaced or that
writing 1 sets.
"""
RegisterValues = dict[str, tuple[int, ...]]
"""Values by name; an array has several."""
_Accept = Callable[[int, int], bool]
_Told = Callable[[int, int], Steps | None]
_Write = tuple[list[int], int, _Accept | None, _Told | None, _Masks | None]
"""What a write of one place and size does: the list of values and an index into it, the accept and the write method,
and the masks; there are none if the written value simply replaces the old one.
"""


class RegisterFile:
    """The registers of one BAR. An access has a register's size, or is one half of a 64-bit register; any other reads 0
    and writes nothing.
    """

    def __init__(self, registers: Iterable[Register], handlers: object) -> None:
        self.registers = registers if isinstance(registers, RegisterMap) else RegisterMap(*registers)
        self.handlers = handlers
        self._values = {each.name: [each.reset or 0] * each.count for each in self.registers}
        self._power_on: RegisterValues = {}
        self._reads: dict[tuple[int, int], _Read] = {}
        self._writes: dict[tuple[int, int], _Write] = {}
        for register in self.registers:
            values = self._values[register.name]
            read, accept, write = (getattr(handlers, name, None) for name in _handlers(register))
            for size, start, readable, shift, writable, masks in _accesses(register):
                for index, place in enumerate(register.places):
                    if readable:
                        self._reads[place + start, size] = values, index, read, readable, shift
                    if writable:
                        self._writes[place + start, size] = values, index, accept, write, masks
        self.seal()

    def __getitem__(self, name: str) -> int:
        """The value of register ``name``, of an array the first one."""
        return self._values[name][0]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[name][0] = value

    def save(self) -> RegisterValues:
        """The values of all registers."""
        return {name: tuple(map(int, values)) for name, values in self._values.items()}

    def load(self, state: RegisterValues) -> None:
        """Take over ``state``. Raises ValueError, and then changes nothing, if it is that of other registers."""
        if differing := state.keys() ^ self._values.keys():
            raise ValueError(f"register {min(differing)}: it is not on both sides")
        for register in self.registers:
            values = state[register.name]
            if len(values) != register.count or not all(0 <= value < 1 << 8 * register.size for value in values):
                raise ValueError(f"register {register.name} cannot hold {values}")
        for name, values in state.items():
            self._values[name][:] = values

    def seal(self) -> None:
        """Make the present values those after a reset."""
        self._power_on = self.save()

    def reset(self, *names: str) -> None:
        """Give the registers of these names, or all, their values after a reset."""
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
        """Write ``data`` at ``offset``. Returns what the register's write method returns: None, or the steps that are
        left.
        """
        found = self._writes.get((offset, len(data)))
        if found is None:
            return None
        values, element, accept, handler, masks = found
        value = int.from_bytes(data, "little")
        if masks is not None:
            shift, other_half, kept, clears, stores = masks
            value = value << shift | values[element] & other_half
        if accept is not None and not accept(element, value):
            return None
        if masks is None:
            values[element] = value
        else:
            values[element] = values[element] & kept & ~(value & clears) | value & stores
        return None if handler is None else handler(element, value)


def _handlers(register: Register) -> tuple[str, str, str]:
    """The names of the methods that read, accept and write."""
    name = register.name.lower()
    return f"read_{name}", f"accept_{name}", f"write_{name}"


@lru_cache(maxsize=1024)
def _accesses(register: Register) -> tuple[tuple[int, int, int, int, bool, _Masks | None], ...]:
    """The accesses that a register takes: how many bytes, from which of its bytes on; which bits are read, and the
    number of the lowest one; whether it can be written, and what a write does.
    """
    parts = [(register.size, 0)] + ([(4, 0), (4, 4)] if register.size == 8 else [])
    found = []
    for size, start in parts:
        shift = 8 * start
        part = (1 << 8 * size) - 1 << shift
        writable = bool(register.mask(*_WRITABLE) & part)
        found.append((size, start, register.mask(*_READABLE) & part, shift, writable, _masks(register, part, shift)))
    return tuple(found)


def _masks(register: Register, part: int, shift: int) -> _Masks | None:
    """What writing the bits of ``part`` does, which begin at bit ``shift``."""
    replaced = register.mask(AccessKind.RW, AccessKind.WO)
    if replaced == part:
        return None
    clears, sets = register.mask(AccessKind.RW1C), register.mask(AccessKind.RW1S)
    return shift, replaced & ~part, ~(replaced & part), clears & part, (replaced | sets) & part


def check_handlers(files: Iterable[RegisterFile]) -> None:
    """Raise :class:`ValueError` for a handler of these files that is never called: its name fits no register, or the
    register is not read or written at all. An object may handle several files.
    """
    of: dict[int, tuple[type, list[RegisterMap]]] = {}
    for file in files:
        of.setdefault(id(file.handlers), (type(file.handlers), []))[1].append(file.registers)
    for kind, maps in of.values():
        _check_names(kind, tuple(maps))


@lru_cache(maxsize=64)
def _check_names(kind: type, maps: tuple[RegisterMap, ...]) -> None:
    every: set[str] = set()
    called: set[str] = set()
    for register in (register for each in maps for register in each):
        read, accept, write = _handlers(register)
        every |= {read, accept, write}
        called |= {read} if register.mask(*_READABLE) else set()
        called |= {accept, write} if register.mask(*_WRITABLE) else set()
    for name in dir(kind):  # dir() of an object would make its attributes slow in Python 3.11
        if not name.startswith(("read_", "accept_", "write_")) or name in called:
            continue
        if name in every:
            done = "read" if name.startswith("read_") else "written"
            raise ValueError(
                f"{kind.__name__}.{name} would never be called: by its access kind, its register is not {done}"
            )
        import difflib  # imported late: only a mistake needs it

        nearest = difflib.get_close_matches(name, sorted(called), 1, 0)
        advice = f"; the nearest name that does is {nearest[0]}" if nearest else ""
        raise ValueError(f"{kind.__name__}.{name} fits no register{advice} (begin other methods with an underscore)")
