"""Hypothesis strategies made from declarations of registers. Only tests import this module: it needs hypothesis."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from hypothesis import strategies as st

from .registers import BitFields, Register, RegisterMap

__all__ = ["RegisterAccess", "accesses", "register_values", "words"]

_W = TypeVar("_W", bound=BitFields)


class RegisterAccess(NamedTuple):
    """A read of ``size`` bytes, or a write of ``data``."""

    offset: int
    size: int
    data: bytes | None


def words(declared: type[_W]) -> st.SearchStrategy[_W]:
    """Words of ``declared`` with any value in each field, and reserved bits 0."""
    fields = {field.name: st.integers(0, field.most) for field in declared.fields}
    return st.fixed_dictionaries(fields).map(lambda values: declared(0, **values))


def register_values(register: Register) -> st.SearchStrategy[int]:
    """Any value of the width of ``register``, with reserved bits and values without a name among them."""
    return st.integers(0, (1 << register.width) - 1)


def accesses(registers: RegisterMap) -> st.SearchStrategy[RegisterAccess]:
    """Reads and writes of a BAR, most of them at declared offsets and of declared sizes."""
    places = [(place, each.size) for each in registers for place in each.places]
    halves = [(place + half, 4) for place, size in places if size == 8 for half in (0, 4)]
    known = st.sampled_from(places + halves)
    unknown = st.tuples(st.integers(0, registers.end + 8), st.integers(1, 16))

    def access(place: tuple[int, int]) -> st.SearchStrategy[RegisterAccess]:
        offset, size = place
        data = st.none() | st.binary(min_size=size, max_size=size)
        return data.map(lambda written: RegisterAccess(offset, size, written))

    return st.one_of(known, known, known, unknown).flatmap(access)
