"""What the SMMU remembers: translations of each stage, and configurations.

As hardware may, it uses what it remembers until the guest invalidates it, and forgets at any time. Faults and invalid
configurations are not remembered. A translation has the tag of the tables that it was found in (VMID and ASID, or VMID
alone if it is global or of stage 2), and covers a leaf, or all the leaves that a contiguous bit joins.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from ...engine import Access
from ...engine.stages import Remembered, Stages
from ...engine.walk import Leaf

__all__ = ["Cache", "PythonRemembered", "Tag", "Translations", "number_of"]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Cache(Generic[_K, _V]):
    """A bounded dictionary: what has been there longest makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[_K, _V] = {}
        self.looked_at = 0
        """Entries that :meth:`drop_if` has looked at, ever."""
        self.version = 0
        """another one whenever what is there may have changed"""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _K) -> _V | None:
        return self._entries.get(key)

    def put(self, key: _K, value: _V) -> None:
        if not self._limit:
            return
        self.version += 1
        self._entries.pop(key, None)
        if len(self._entries) >= self._limit:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = value

    def drop(self, key: _K) -> None:
        self.version += 1
        self._entries.pop(key, None)

    def drop_if(self, condition: Callable[[_K], bool]) -> None:
        """Forget all whose key fulfils ``condition``."""
        self.version += 1
        self.looked_at += len(self._entries)
        for key in [key for key in self._entries if condition(key)]:
            del self._entries[key]

    def clear(self) -> None:
        self.version += 1
        self._entries.clear()


class Tag(NamedTuple):
    """Whose translation it is."""

    vmid: int
    asid: int | None
    """None: of every ASID"""


_NO_ASID, _ASIDS = 1 << 16, (1 << 17) - 1
_ALL = (1 << 64) - 1


def number_of(tag: Tag) -> int:
    """A tag as :class:`.engine.stages.Remembered` takes it."""
    return tag.vmid << 17 | (_NO_ASID if tag.asid is None else tag.asid)


class _Key(NamedTuple):
    tag: int
    shift: int
    number: int
    """the address without its lowest ``shift`` bits"""


class _Entry(NamedTuple):
    output: int
    access: Access


class PythonRemembered:
    """A :class:`.engine.stages.Remembered` that says what is right."""

    def __init__(self, limit: int) -> None:
        self._cache: Cache[_Key, _Entry] = Cache(limit)
        self._shifts: list[int] = []
        """of all entries since the last :meth:`clear`, in order"""

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def looked_at(self) -> int:
        return self._cache.looked_at

    def find(self, tag: int, every: int, address: int, access: Access) -> tuple[int, int, Access] | None:
        for shift in self._shifts:
            for each in (tag, every):
                entry = self._cache.get(_Key(each, shift, address >> shift))
                if entry is not None and not access & ~entry.access:
                    return entry.output | address & (1 << shift) - 1, shift, entry.access
        return None

    def add(self, tag: int, address: int, leaf: Leaf) -> None:
        shift, mask = leaf.contiguous, (1 << leaf.contiguous) - 1
        if (leaf.output ^ address) & mask:
            shift, mask = leaf.shift, (1 << leaf.shift) - 1
        if shift not in self._shifts:
            insort(self._shifts, shift)
        self._cache.put(_Key(tag, shift, address >> shift), _Entry(leaf.output & ~mask, leaf.access))

    def drop(self, first: int, last: int, mask: int, tags: tuple[int, int]) -> None:
        blocks = sum((last >> shift) - (first >> shift) + 1 for shift in self._shifts)
        if mask == _ALL and len(tags) * blocks < len(self._cache):
            self._cache.looked_at += len(tags) * blocks
            for shift in self._shifts:
                for number in range(first >> shift, (last >> shift) + 1):
                    for tag in set(tags):
                        self._cache.drop(_Key(tag, shift, number))
            return

        def is_meant(key: _Key) -> bool:
            begin = key.number << key.shift
            return key.tag & mask in tags and begin <= last and first < begin + (1 << key.shift)

        self._cache.drop_if(is_meant)

    def clear(self) -> None:
        self._cache.clear()
        self._shifts.clear()


class Translations:
    """The translations of one stage."""

    def __init__(self, limit: int, stages: Stages | None = None) -> None:
        """``stages``: of a core, which remembers them then."""
        self.remembered: Remembered = stages.remembered(limit) if stages else PythonRemembered(limit)

    def __len__(self) -> int:
        return len(self.remembered)

    def find(self, tag: Tag, address: int, access: Access) -> tuple[int, int, Access] | None:
        """(output address, log2 of the block's size, what is allowed), if that is known and allows ``access``: a
        refusal has to come from memory.
        """
        return self.remembered.find(number_of(tag), number_of(Tag(tag.vmid, None)), address, access)

    def add(self, tag: Tag, address: int, leaf: Leaf) -> None:
        """Remember what a walk has found for ``address``. Contiguous leaves are one entry if their outputs can be."""
        self.remembered.add(number_of(tag), address, leaf)

    def drop(self, first: int, size: int, vmid: int, asid: int | None, *, every_asid: bool = False) -> None:
        """Forget what translates any of ``size`` bytes from ``first`` on, of one ASID and global, or of all ASIDs."""
        last = min(first + size - 1, _ALL)
        if every_asid:
            self._drop_vmid(first, last, vmid)
        else:
            self.remembered.drop(first, last, _ALL, (number_of(Tag(vmid, asid)), number_of(Tag(vmid, None))))

    def drop_asid(self, vmid: int, asid: int) -> None:
        """Forget what is of one ASID, global translations not among it."""
        tag = number_of(Tag(vmid, asid))
        self.remembered.drop(0, _ALL, _ALL, (tag, tag))

    def drop_vmid(self, vmid: int) -> None:
        """Forget all of one VMID."""
        self._drop_vmid(0, _ALL, vmid)

    def _drop_vmid(self, first: int, last: int, vmid: int) -> None:
        tag = vmid << 17
        self.remembered.drop(first, last, _ALL - _ASIDS, (tag, tag))

    def clear(self) -> None:
        """Forget all."""
        self.remembered.clear()
