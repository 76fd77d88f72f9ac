"""All interleavings of small programs that share memory, in three memory orders.

``SC``    each thread's operations take effect at once and in order
``TSO``   stores wait in a first-in first-out buffer of their thread, which its own loads look into: x86
``WEAK``  operations of a thread take effect in any order that fences, acquire, release, dependencies and the same
          address allow; for all threads at once (multi-copy atomic): Armv8, or weaker, as nothing else is ordered

A program is a list of operations without jumps. A guard says whether an operation is carried out at all; waiting for a
value is a load that only takes effect when it finds one. Loops are unrolled by whoever writes the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Registers = Mapping[str, int]


class MemoryOrder(Enum):
    SC = "sequential consistency"
    TSO = "total store order"
    WEAK = "weaker"


@dataclass(frozen=True)
class Op:
    """One operation of a thread."""

    kind: str
    """load, store or fence"""
    place: str = ""
    value: int = 0
    """of a store"""
    into: str = ""
    """register of a load"""
    uses: tuple[str, ...] = ()
    """registers that must be there first: of the guard, of the condition, of the address"""
    guard: Callable[[Registers], bool] | None = None
    until: Callable[[int, Registers], bool] | None = None
    """what a load waits for"""
    acquire: bool = False
    release: bool = False
    old: bool = False
    """uses the old entry: must not take effect after an operation that is `new`"""
    new: bool = False
    """by who relies on the old entry being out of use"""


class _State(NamedTuple):
    done: tuple[int, ...]
    """of each thread: a bit for each operation that has been carried out"""
    registers: tuple[tuple[tuple[str, int], ...], ...]
    memory: tuple[tuple[str, int], ...]
    buffers: tuple[tuple[int, ...], ...]
    """of each thread: its operations whose stores nobody else sees yet"""
    is_new: bool


class Outcome(NamedTuple):
    """What all interleavings come to."""

    states: int
    violation: tuple[str, ...] | None
    """the steps to one, if there is any: an `old` operation after a `new` one"""
    stuck: tuple[str, ...] | None
    """the steps to a state in which somebody waits for ever, if there is any"""


def explore(threads: Sequence[Sequence[Op]], memory: Mapping[str, int], order: MemoryOrder) -> Outcome:
    """Go through every reachable state."""
    first = _State(
        (0,) * len(threads), ((),) * len(threads), tuple(sorted(memory.items())), ((),) * len(threads), False
    )
    paths: dict[_State, tuple[str, ...]] = {first: ()}
    waiting, violation, stuck = [first], None, None
    while waiting:
        state = waiting.pop()
        following = list(_steps(threads, state, order))
        if not following and any(done != (1 << len(ops)) - 1 for done, ops in zip(state.done, threads, strict=True)):
            stuck = stuck or paths[state]
        for what, new, is_violation in following:
            path = (*paths[state], what)
            if is_violation:
                violation = violation or path
            if new not in paths:
                paths[new] = path
                waiting.append(new)
    return Outcome(len(paths), violation, stuck)


def _steps(threads, state, order):
    for number, ops in enumerate(threads):
        for place in range(len(ops)):
            if state.done[number] >> place & 1 or not _may_begin(ops, state.done[number], place, order):
                continue
            found = _carry_out(ops, state, number, place, order)
            if found is not None:
                yield found
        if state.buffers[number]:
            yield _drained(ops, state, number)


def _may_begin(ops, done, place, order):
    before = [ops[each] for each in range(place) if not done >> each & 1]
    if order is not MemoryOrder.WEAK:
        return not before
    return not any(_is_ordered(earlier, ops[place]) for earlier in before)


def _is_ordered(earlier: Op, later: Op) -> bool:
    if "fence" in (earlier.kind, later.kind) or earlier.acquire or later.release:
        return True
    if earlier.place == later.place or (earlier.into and earlier.into in later.uses):
        return True
    # What is behind a wait depends on it. Loads may be carried out ahead of that, stores never are.
    return earlier.until is not None and later.kind == "store"


def _carry_out(ops, state, number, place, order):
    op, registers = ops[place], dict(state.registers[number])
    done = _replaced(state.done, number, state.done[number] | 1 << place)
    what = f"{number}: {op.kind} {op.place}"
    if op.guard is not None and not op.guard(registers):
        return f"{what} not", state._replace(done=done), False
    memory = dict(state.memory)
    if op.kind == "fence":
        return None if state.buffers[number] else (what, state._replace(done=done), False)
    if op.kind == "store":
        if order is MemoryOrder.TSO:
            buffers = _replaced(state.buffers, number, (*state.buffers[number], place))
            return f"{what}={op.value} into the buffer", state._replace(done=done, buffers=buffers), False
        memory[op.place] = op.value
        return _seen(f"{what}={op.value}", state._replace(done=done, memory=tuple(sorted(memory.items()))), op)
    found = next((ops[each].value for each in reversed(state.buffers[number]) if ops[each].place == op.place), None)
    found = memory[op.place] if found is None else found
    if op.until is not None and not op.until(found, registers):
        return None
    registers[op.into] = found
    loaded = _replaced(state.registers, number, tuple(sorted(registers.items())))
    return _seen(f"{what} is {found}", state._replace(done=done, registers=loaded), op)


def _drained(ops, state, number):
    """The oldest store of a buffer reaches memory."""
    place, *rest = state.buffers[number]
    op, memory = ops[place], dict(state.memory)
    memory[op.place] = op.value
    buffers = _replaced(state.buffers, number, tuple(rest))
    state = state._replace(buffers=buffers, memory=tuple(sorted(memory.items())))
    return _seen(f"{number}: {op.place}={op.value} reaches memory", state, op)


def _seen(what, state, op):
    return what, state._replace(is_new=state.is_new or op.new), op.old and state.is_new


def _replaced(values, place, value):
    return (*values[:place], value, *values[place + 1 :])
