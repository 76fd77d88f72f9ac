"""The measuring side of a ring, and of a bare exchange of words: in Python, and in C for a native server.

Both languages do the same, so that a ratio compares a server with a bare exchange made in the same way.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pviommu_abi.slots import SLOT_SIZE

from ..pci.shared_memory import fence

__all__ = ["STOP_WORD", "Mechanism", "NativeMechanism", "PythonMechanism", "RingPlace", "RingUse", "WordExchange"]

_MASK = 0xFFFFFFFF
_LOOKS = 64
_PING, _PONG, _STOP = 0, 16, 32  # words, each in a cache line of its own
_MOST_LOOKS = 1 << 24
STOP_WORD = _STOP
"""The word that the near end sets to end the far one."""


@dataclass(frozen=True, slots=True)
class RingPlace:
    """A ring in shared memory: byte offset and number of its slots, and where its index words are; ``templates``: two
    slots that are submitted in turn.
    """

    memory: memoryview
    slots: int
    entries: int
    producer: int
    completed: int
    doorbell_event: int
    templates: bytes


class RingUse(Protocol):
    """The guest's side of one ring. Each method goes on where the one before stopped.

    They return False when the device asks for a doorbell, once each time that it asks, and True when all is done.
    """

    @property
    def submitted(self) -> int:
        """The producer index."""

    def waited(self, target: int) -> bool:
        """Submit up to index ``target``, each slot when the one before is complete."""

    def posted(self, target: int) -> bool:
        """Submit up to index ``target``, waiting only for room."""

    def complete(self) -> bool:
        """Wait for what was submitted."""

    def close(self) -> None:
        """Release the memory."""


class WordExchange(Protocol):
    """The near end of a bare exchange."""

    def ping(self, first: int, count: int) -> bool:
        """Send ``count`` numbers from ``first`` on, waiting for each to come back. False: the other end is gone."""

    def close(self) -> None:
        """Release the memory."""


class Mechanism(Protocol):
    """A way to do both."""

    name: str

    def ring(self, place: RingPlace) -> RingUse:
        """The guest of a ring that is at index 0."""

    def exchange(self, memory: memoryview) -> WordExchange:
        """The near end, in ``memory`` that both have."""

    def pong(self, memory: memoryview) -> None:
        """The far end, until it is told to stop."""


class PythonMechanism:
    """Loops in Python."""

    name = "python"

    def ring(self, place: RingPlace) -> RingUse:
        """The guest of a ring that is at index 0."""
        return _PythonRing(place)

    def exchange(self, memory: memoryview) -> WordExchange:
        """The near end, in ``memory`` that both have."""
        return _PythonExchange(memory.cast("I"))

    def pong(self, memory: memoryview) -> None:
        """The far end, until it is told to stop."""
        with memory.cast("I") as words:
            last = 0  # the first number may have been sent already; numbers are never 0
            while not words[_STOP]:
                seen = words[_PING]
                if seen != last:
                    words[_PONG] = last = seen


class _PythonRing:
    def __init__(self, place: RingPlace) -> None:
        self.submitted = 0
        self._notified = 0
        self._place = place
        self._words = place.memory.cast("I")
        self._templates = (place.templates[:SLOT_SIZE], place.templates[SLOT_SIZE:])

    def waited(self, target: int) -> bool:
        if not self._wait(0):
            return False
        words, completed = self._words, self._place.completed
        while self.submitted != target:
            position = self._submit()
            for _ in range(_LOOKS):
                if words[completed] == position:
                    break
            else:
                if not self._wait(0):
                    return False
        return True

    def posted(self, target: int) -> bool:
        while self.submitted != target:
            if not self._wait(self._place.entries - 1):
                return False
            self._submit()
        return True

    def complete(self) -> bool:
        return self._wait(0)

    def close(self) -> None:
        self._words.release()

    def _submit(self) -> int:
        place, at = self._place, self.submitted
        start = place.slots + (at & place.entries - 1) * SLOT_SIZE
        place.memory[start : start + SLOT_SIZE] = self._templates[at & 1]
        self.submitted = self._words[place.producer] = at + 1 & _MASK
        return self.submitted

    def _wait(self, left: int) -> bool:
        words, place = self._words, self._place
        while True:
            for _ in range(_LOOKS):
                if (self.submitted - words[place.completed]) & _MASK <= left:
                    return True
            fence()
            missing = (self.submitted - words[place.completed]) & _MASK
            new = (self.submitted - self._notified) & _MASK
            if (self.submitted - words[place.doorbell_event] - 1) & _MASK < min(new, missing):
                self._notified = self.submitted
                return False


class _PythonExchange:
    def __init__(self, words: memoryview) -> None:
        self._words = words

    def ping(self, first: int, count: int) -> bool:
        words = self._words
        for number in range(first, first + count):
            words[_PING] = number
            looks = 0
            while words[_PONG] != number:
                looks += 1
                if looks > _MOST_LOOKS:
                    return False
        return True

    def close(self) -> None:
        self._words.release()


class _Ring(ctypes.Structure):
    _fields_ = (
        ("slots", ctypes.c_void_p),
        ("producer", ctypes.c_void_p),
        ("completed", ctypes.c_void_p),
        ("doorbell_event", ctypes.c_void_p),
        ("entries", ctypes.c_uint32),
        ("submitted", ctypes.c_uint32),
        ("notified", ctypes.c_uint32),
        ("templates", ctypes.c_char_p),
    )


class NativeMechanism:
    """Loops in C, from a library built from ``probe.c``. Raises OSError if the file is no such library."""

    name = "native"

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("pvb_waited", "pvb_posted"):
            function = getattr(self._library, name)
            function.restype = ctypes.c_int
        self._library.pvb_ping.restype = ctypes.c_uint32

    def ring(self, place: RingPlace) -> RingUse:
        """The guest of a ring that is at index 0."""
        return _NativeRing(self._library, place)

    def exchange(self, memory: memoryview) -> WordExchange:
        """The near end, in ``memory`` that both have."""
        return _NativeExchange(self._library, memory)

    def pong(self, memory: memoryview) -> None:
        """The far end, until it is told to stop."""
        with _Pinned(memory) as start:
            self._library.pvb_pong(ctypes.c_void_p(start))


class _Pinned:
    """The address of writable memory, valid while this object exists."""

    def __init__(self, memory: memoryview) -> None:
        self._object = (ctypes.c_char * memory.nbytes).from_buffer(memory)

    def __enter__(self) -> int:
        return ctypes.addressof(self._object)

    def __exit__(self, *_: object) -> None:
        del self._object


class _NativeRing:
    def __init__(self, library: ctypes.CDLL, place: RingPlace) -> None:
        self._library = library
        self._memory = (ctypes.c_char * place.memory.nbytes).from_buffer(place.memory)
        self._templates = place.templates
        start = ctypes.addressof(self._memory)
        words = (start + 4 * word for word in (place.producer, place.completed, place.doorbell_event))
        self._ring = _Ring(start + place.slots, *words, place.entries, 0, 0, self._templates)

    @property
    def submitted(self) -> int:
        return int(self._ring.submitted)

    def waited(self, target: int) -> bool:
        return not self._library.pvb_waited(ctypes.byref(self._ring), ctypes.c_uint32(target))

    def posted(self, target: int) -> bool:
        return not self._library.pvb_posted(ctypes.byref(self._ring), ctypes.c_uint32(target))

    def complete(self) -> bool:
        return self.waited(self.submitted)

    def close(self) -> None:
        del self._memory


class _NativeExchange:
    def __init__(self, library: ctypes.CDLL, memory: memoryview) -> None:
        self._library = library
        self._memory = (ctypes.c_char * memory.nbytes).from_buffer(memory)

    def ping(self, first: int, count: int) -> bool:
        start = ctypes.c_void_p(ctypes.addressof(self._memory))
        done = self._library.pvb_ping(start, ctypes.c_uint32(first), ctypes.c_uint32(count))
        return int(done) == count

    def close(self) -> None:
        del self._memory
