"""Objects of one open /dev/iommu, by id."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TypeVar

from .places import Places
from .request_error import RequestError

__all__ = ["Object", "Objects"]

T = TypeVar("T", bound="Object")


class Object:
    """Something that has an id. ``users`` are the objects, devices and drivers that would miss it."""

    what = "object"
    """What kind it is, in texts."""

    def __init__(self, places: Places) -> None:
        """Raises OSError (ENOMEM) if that place fails. Nothing of it is done before."""
        places.object()
        self.id = 0
        self.users = 0

    @property
    def is_used(self) -> bool:
        """Whether it cannot be destroyed."""
        return bool(self.users)

    def destroy(self) -> None:
        """Give back what it holds. It has no users then, and no id any more."""

    def __str__(self) -> str:
        return f"{self.what} {self.id}"


class Objects:
    """Ids are given from 1 on, the lowest that is free."""

    def __init__(self) -> None:
        self._objects: dict[int, Object] = {}
        self._free: list[int] = []
        self._next = 1

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, new: Object) -> None:
        """Give it an id."""
        if self._free:
            new.id = heappop(self._free)
        else:
            new.id, self._next = self._next, self._next + 1
        self._objects[new.id] = new

    def find(self, number: int) -> Object | None:
        """The object with this id."""
        return self._objects.get(number)

    def get(self, kind: type[T], number: int) -> T:
        """The object of this kind with this id. Raises OSError (ENOENT)."""
        found = self._objects.get(number)
        if not isinstance(found, kind):
            which = f"is {found.what}" if found else "is no object"
            raise RequestError(errno.ENOENT, f"{kind.what} {number}: {number} {which}")
        return found

    def remove(self, number: int) -> None:
        """Destroy an object. Raises OSError: ENOENT for an id that none has, EBUSY while it has users."""
        found = self._objects.get(number)
        if found is None:
            raise RequestError(errno.ENOENT, f"destroy {number}: no object has this id")
        if found.is_used:
            raise RequestError(errno.EBUSY, f"destroy {found}: {found.users or 'by mmap(),'} others use it")
        self._forget(found)

    def bury(self, gone: Object) -> None:
        """Destroy an object that users may still ask for: its id is not given again."""
        del self._objects[gone.id]
        gone.destroy()

    def _forget(self, gone: Object) -> None:
        del self._objects[gone.id]
        heappush(self._free, gone.id)
        gone.destroy()

    def clear(self) -> None:
        """Destroy all of them, those first that nobody uses."""
        while leaves := [held for held in self if not held.users]:
            for leaf in leaves:
                self._forget(leaf)
