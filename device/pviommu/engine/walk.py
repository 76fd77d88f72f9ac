"""Walks of translation tables that lie in memory: of whatever format, since the format is data.

`Tables` says where a table begins and how its descriptors are read; `formats` makes them for the formats that there
are. Descriptors have 64 bits and come from a `read(address)`, which may translate the address first (the tables of a
nested guest), or refuse it. Nothing is trusted: each level is judged anew, a walk reads one descriptor a level, and
what changes meanwhile can only change the result of this walk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .results import Access, Run, add_run

ENTRY_SIZE = 8
"""Bytes of a descriptor."""
ATTEMPTS = 8
"""How often a descriptor is judged that somebody else changes whenever the walk is about to update it."""
_READ, _WRITE = int(Access.READ), int(Access.WRITE)


class Pattern(NamedTuple):
    """Bits of a descriptor, those of `mask`, and what they must be."""

    mask: int
    value: int

    def fits(self, descriptor: int) -> bool:
        return descriptor & self.mask == self.value


ANY = Pattern(0, 0)
NEVER = Pattern(0, 1)


class Grants(NamedTuple):
    """What a descriptor must look like to allow reading and writing."""

    read: Pattern
    write: Pattern

    def of(self, descriptor: int) -> int:
        """Access bits."""
        return (_READ if self.read.fits(descriptor) else 0) | (_WRITE if self.write.fits(descriptor) else 0)


class Level(NamedTuple):
    """One level of tables."""

    number: int
    """As the architecture counts: Arm's from 0 (or -1) up to 3, Intel's from 4 or 5 down to 1."""
    shift: int
    """An entry covers `1 << shift` bytes of input addresses."""
    index_mask: int
    leaf: Pattern
    """Of a descriptor that ends the walk."""
    table: Pattern
    """Of one that leads to the next table. One that is neither is refused with `Rules.neither`."""
    leaf_address: int
    """The address bits of a leaf."""
    leaf_reserved: int
    """Bits that must be 0 in a leaf."""
    contiguous: int
    """With the contiguous bit, so many bits more are one block; 0 if the bit means nothing here."""


class WalkFaultKind(Enum):
    """Why a walk has no result."""

    INPUT = "the address is not one that these tables translate"
    READ = "the descriptor cannot be read or updated"
    NOT_PRESENT = "the descriptor is invalid"
    MALFORMED = "a reserved bit of the descriptor is set"
    OUTPUT = "the descriptor leads to an address beyond the output size"
    ACCESS_FLAG = "the access flag is not set"
    PERMISSION = "the access is not allowed"
    CONTENDED = "the descriptor changed each time that it was to be updated"


class Rules(NamedTuple):
    """What all levels of a format have in common."""

    present: int
    """With none of these bits a descriptor is invalid."""
    table_address: int
    table_reserved: int
    """Bits that must be 0 in a descriptor of a table."""
    high: int
    high_shift: int
    """Address bits that are elsewhere: those of `high`, so many places further up."""
    leaf_grants: Grants
    table_grants: Grants
    """A table's descriptor limits what is below."""
    table_accessed: int
    leaf_accessed: int
    """Access flags, which a walk sets if it updates."""
    needs_accessed: bool
    """Whether a leaf without its access flag is refused, if no walk sets it."""
    clean: Pattern
    """Of a leaf that a write makes dirty..."""
    dirty: int
    """... by toggling this bit."""
    contiguous: int
    """The contiguous bit of a leaf, a hint; 0 if there is none."""
    neither: WalkFaultKind


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables, and how they are to be read."""

    root: int
    """Address of the first table, or of the first of several that lie one behind the other."""
    levels: tuple[Level, ...]
    rules: Rules
    input_bits: int
    output_bits: int
    signed: bool = False
    """Whether the highest of the input bits goes on up to bit 63."""
    updates_access: bool = False
    """Whether a walk sets access flags."""
    updates_dirty: bool = False
    """Whether a write makes clean leaves dirty; without it they keep the permissions that they have."""

    def __repr__(self) -> str:
        """For a log: levels and rules are thousands of characters, so only what is not the same in each format."""
        place = f"root={self.root:#x}, start={self.levels[0].number}, page={1 << self.levels[-1].shift:#x}"
        sizes = f"input_bits={self.input_bits}, output_bits={self.output_bits}"
        rules = f"needs_accessed={self.rules.needs_accessed}, limits={self.rules.table_grants.write.mask:#x}"
        return f"Tables({place}, {sizes}, {rules})"


class ReadRefusal:
    """What `read` and `update` return instead of a descriptor; a class derived from this one says why."""

    __slots__ = ()


class WalkFault(NamedTuple):
    """A walk that ended without a result."""

    kind: WalkFaultKind
    level: int
    place: int | None = None
    """Address of the descriptor; None if none was to be read."""
    cause: ReadRefusal | None = None
    """Of READ: what was returned instead."""


class Leaf(NamedTuple):
    """What a walk has found."""

    output: int
    """Where the input address leads."""
    shift: int
    """The leaf translates `1 << shift` bytes, aligned to that."""
    access: Access
    """What all descriptors on the way allow; writing only if no descriptor has to be updated for it."""
    contiguous: int
    """At least `shift`: `1 << contiguous` bytes around the address may be taken for one block."""
    level: int
    descriptor: int
    """The leaf, as it is in memory after the walk."""


Read = Callable[[int], int | ReadRefusal]
"""The descriptor at an address, a multiple of 8."""
Update = Callable[[int, int, int], int | ReadRefusal]
"""Replaces the descriptor at an address by the third argument if it is still the second, as one atomic step. Returns
the one that was there."""


def walk(tables: Tables, address: int, access: Access, read: Read, update: Update | None = None) -> Leaf | WalkFault:
    """What `tables` make of one address of 64 bits, for an access of one kind or both.

    Faults come in the architectures' order: for each descriptor validity, output size, then, for a leaf, access flag
    and permission. Without `update` nothing in memory is changed, whatever `tables` says.
    """
    levels, rules = tables.levels, tables.rules
    if not _is_input(tables, address):
        return WalkFault(WalkFaultKind.INPUT, levels[0].number)
    wanted, allowed = int(access), _READ | _WRITE
    table = tables.root
    for level in levels:
        place = table + (address >> level.shift & level.index_mask) * ENTRY_SIZE
        found = read(place)
        for _ in range(ATTEMPTS):
            if isinstance(found, ReadRefusal):
                return WalkFault(WalkFaultKind.READ, level.number, place, found)
            is_leaf = level.leaf.fits(found)
            output = _output(tables, level, found, is_leaf)
            if isinstance(output, WalkFaultKind):
                return WalkFault(output, level.number, place)
            judged = (
                _judge_leaf(tables, found, wanted, allowed, update) if is_leaf else _judge_table(tables, found, update)
            )
            if isinstance(judged, WalkFaultKind):
                return WalkFault(judged, level.number, place)
            before = found
            if judged != before and update is not None:
                found = update(place, before, judged)
                if found != before:
                    continue
            if not is_leaf:
                allowed &= rules.table_grants.of(judged)
                table = output
                break
            return _leaf(tables, level, judged, output, address, allowed)
        else:
            return WalkFault(WalkFaultKind.CONTENDED, level.number, place)
    raise ValueError("the lowest level of a format has leaves only")


def translate(
    tables: Tables, address: int, length: int, access: Access, read: Read, update: Update | None = None
) -> list[Run] | tuple[int, WalkFault]:
    """Where `length` bytes from `address` on lead: runs in order, adjacent ones joined; or the address of the first
    byte that is refused, and why. The caller bounds `length`: the cost grows with the leaves.
    """
    runs: list[Run] = []
    position, end = address, address + length
    while position < end:
        leaf = walk(tables, position, access, read, update)
        if isinstance(leaf, WalkFault):
            return position, leaf
        size = min(end, (position >> leaf.shift) + 1 << leaf.shift) - position
        add_run(runs, leaf.output, size)
        position += size
    return runs


@dataclass(frozen=True, slots=True)
class Halves:
    """Two sets of tables, as Arm's stage 1 has: one for addresses whose bit 55 is 0, one for the others."""

    low: Tables | None
    high: Tables | None
    ignores_top: tuple[bool, bool] = (False, False)
    """Whether the bits above bit 55 of each half's addresses mean nothing."""

    def choose(self, address: int) -> tuple[Tables, int] | None:
        """The tables for an address, and what they are to translate; None if it is in neither half, or in one that is
        turned off.
        """
        is_high = address >> 55 & 1
        tables = self.high if is_high else self.low
        if tables is None:
            return None
        top = 55 if self.ignores_top[is_high] else 63
        above = (address & (2 << top) - 1) >> tables.input_bits
        if above != (((2 << top) - 1) >> tables.input_bits if is_high else 0):
            return None
        return tables, address & (1 << tables.input_bits) - 1


def _is_input(tables: Tables, address: int) -> bool:
    if not tables.signed:
        return not address >> tables.input_bits
    above = address >> tables.input_bits - 1
    return above in (0, (1 << 65 - tables.input_bits) - 1)


def _output(tables: Tables, level: Level, descriptor: int, is_leaf: bool) -> int | WalkFaultKind:
    """The address in a descriptor."""
    rules = tables.rules
    if not descriptor & rules.present:
        return WalkFaultKind.NOT_PRESENT
    if not is_leaf and not level.table.fits(descriptor):
        return rules.neither
    if descriptor & (level.leaf_reserved if is_leaf else rules.table_reserved):
        return WalkFaultKind.MALFORMED
    output = descriptor & (level.leaf_address if is_leaf else rules.table_address)
    output |= (descriptor & rules.high) << rules.high_shift
    return WalkFaultKind.OUTPUT if output >> tables.output_bits else output


def _judge_table(tables: Tables, descriptor: int, update: Update | None) -> int:
    """What the descriptor of a table is to become."""
    updates = update is not None and tables.updates_access
    return descriptor | tables.rules.table_accessed if updates else descriptor


def _judge_leaf(
    tables: Tables, descriptor: int, wanted: int, allowed: int, update: Update | None
) -> int | WalkFaultKind:
    """What a leaf is to become, or why the access is refused."""
    rules, becomes = tables.rules, descriptor
    if update is not None and tables.updates_access:
        becomes |= rules.leaf_accessed
    elif rules.needs_accessed and not descriptor & rules.leaf_accessed:
        return WalkFaultKind.ACCESS_FLAG
    if wanted & _WRITE and _is_clean(tables, descriptor, update):
        becomes ^= rules.dirty
    if wanted & ~(allowed & rules.leaf_grants.of(becomes)):
        return WalkFaultKind.PERMISSION
    return becomes


def _is_clean(tables: Tables, descriptor: int, update: Update | None) -> bool:
    return update is not None and tables.updates_dirty and tables.rules.clean.fits(descriptor)


def _leaf(tables: Tables, level: Level, descriptor: int, output: int, address: int, allowed: int) -> Leaf:
    rules = tables.rules
    access = allowed & rules.leaf_grants.of(descriptor)
    if tables.updates_dirty and rules.clean.fits(descriptor):
        access &= ~_WRITE  # somebody has to come here again before it is written
    more = level.contiguous if descriptor & rules.contiguous else 0
    contiguous = max(level.shift, min(level.shift + more, tables.input_bits))
    offset = address & (1 << level.shift) - 1
    return Leaf(output | offset, level.shift, Access(access), contiguous, level.number, descriptor)
