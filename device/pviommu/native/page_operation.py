"""What :mod:`pviommu.interfaces.pv.page_operation` declares, as C takes it."""

from __future__ import annotations

from ctypes import addressof, memset, sizeof

from pviommu_abi.slots import PAYLOAD_OFFSET, Errno
from wire_layout import Field

from ..engine import Stop
from ..interfaces.pv.page_operation import PageKinds, PageOperation, PageRules
from . import library
from .library import SLOT_WORDS

__all__ = ["MOST_PAGES", "hand_over"]

MOST_PAGES = 1 << 16
"""Most pages of an operation in C, which take less than a millisecond. Python carries out larger ones, in pieces."""

_STOPS = (
    None,
    Stop.NO_ACCESS,
    Stop.OUT_OF_APERTURE,
    Stop.NOT_RAM,
    Stop.RESERVED,
    Stop.MAPPED,
    Stop.POOL_EXHAUSTED,
    Stop.NOT_MAPPED,
)
"""Stops in the order of ``enum pv_stop``. Its last one, no memory in this process, is an exception in Python."""
_NO_MEMORY = -Errno.EIO
"""The result of such an operation, as after any other exception."""
_WORD = 8
"""Bytes that C reads at once."""
_WORD_MASK = (1 << 8 * _WORD) - 1


def hand_over(rules: PageRules | None, kinds: PageKinds, rings: library.Rings) -> None:
    """Have C carry out the operations of ``kinds``."""
    memset(addressof(rings.operations), 0, sizeof(rings.operations))
    if rules is None:
        return
    for place, kind in enumerate((PageKinds.MAP, PageKinds.UNMAP)):
        _fill(rings.operations[place], rules[place])
        rings.operations[place].carried_out = kind in kinds


def _fill(target: library.Operation, operation: PageOperation) -> None:
    target.fixed[:], target.value[:] = map(_words, operation.slot_must_read)
    names = {"ctx": "ctx_no", "dfn": "dfn", "nr": "nr_pages", "count": operation.count}
    if operation.is_map:
        names["gfn"] = "gfn"
        flags = _field(operation.record.field_named(operation.flags))
        target.access_word = flags.word
        target.readable, target.writeable = operation.readable << flags.shift, operation.writeable << flags.shift
    for name, used in names.items():
        setattr(target, name, _field(operation.record.field_named(used)))
    target.added = target.count.mask if operation.adds else 0
    target.most = min(operation.most, MOST_PAGES)
    target.reserved_first = operation.reserved_first
    target.counted = sum(1 << place for place, stop in enumerate(_STOPS) if stop not in operation.uncounted)
    results = [0 if stop is None else operation.results.get(stop, _NO_MEMORY) for stop in _STOPS]
    target.counted |= 1 << len(_STOPS)
    target.result[:] = [*results, _NO_MEMORY]


def _words(bits: int) -> list[int]:
    return [bits >> 8 * _WORD * place & _WORD_MASK for place in range(SLOT_WORDS)]


def _field(field: Field) -> library.Field:
    word, byte = divmod(PAYLOAD_OFFSET + field.offset, _WORD)
    return library.Field((1 << 8 * field.size) - 1, word, 8 * byte)
