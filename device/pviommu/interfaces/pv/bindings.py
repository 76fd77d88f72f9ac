"""Which PCI address belongs to which stream.

A vfio-user device is never told its bus, device and function, so somebody has to say: the guest driver by BIND,
or the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pviommu_abi.shared import SBDF_UNBOUND
from pviommu_abi.slots import Errno

__all__ = ["Bindings", "BindingsState", "format_sbdf", "sbdf_of"]


def sbdf_of(seg: int, bus: int, devfn: int) -> int:
    """Segment, bus and devfn as one number."""
    return seg << 16 | bus << 8 | devfn


def format_sbdf(sbdf: int) -> str:
    """``ssss:bb:dd.f``, or ``unbound``."""
    if sbdf == SBDF_UNBOUND:
        return "unbound"
    return f"{sbdf >> 16:04x}:{sbdf >> 8 & 0xFF:02x}:{sbdf >> 3 & 0x1F:02x}.{sbdf & 7}"


@dataclass(frozen=True)
class BindingsState:
    """The saved state of :class:`Bindings`."""

    bound: tuple[tuple[int, int], ...] = ()
    """(SBDF, stream), without the fixed ones."""


class Bindings:
    """A one-to-one relation of SBDFs and streams. ``fixed`` maps streams to SBDFs that the guest cannot change."""

    def __init__(self, streams: frozenset[int], fixed: Mapping[int, int]) -> None:
        self._streams = streams
        self._fixed = dict(fixed)
        self._stream: dict[int, int] = {}
        self._sbdf: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Only the fixed ones remain."""
        self.load(BindingsState())

    def save(self) -> BindingsState:
        """The state, in the order of SBDFs."""
        return BindingsState(tuple(sorted(item for item in self._stream.items() if item[1] not in self._fixed)))

    def load(self, state: BindingsState) -> None:
        """Take over a state. Raises ValueError if it contradicts itself; only the fixed ones remain then."""
        self._sbdf = dict(self._fixed)
        self._stream = {sbdf: stream for stream, sbdf in self._fixed.items()}
        for sbdf, stream in state.bound:
            if sbdf in self._stream or self.bind(sbdf, stream):
                self.reset()
                raise ValueError(f"{format_sbdf(sbdf)} cannot be bound to stream {stream}")

    def bind(self, sbdf: int, stream: int) -> int:
        """0, or a negative errno: -ENODEV: unknown stream; -EPERM: fixed to something else; -EEXIST: bound
        elsewhere."""
        if stream not in self._streams:
            return -Errno.ENODEV
        if self._stream.get(sbdf) == stream:
            return 0
        if stream in self._fixed or sbdf in self._fixed.values():
            return -Errno.EPERM
        if sbdf in self._stream or stream in self._sbdf:
            return -Errno.EEXIST
        self._stream[sbdf] = stream
        self._sbdf[stream] = sbdf
        return 0

    def unbind(self, sbdf: int) -> int:
        """0, or a negative errno: -ENOENT: not bound; -EPERM: fixed."""
        stream = self._stream.get(sbdf)
        if stream is None:
            return -Errno.ENOENT
        if stream in self._fixed:
            return -Errno.EPERM
        del self._stream[sbdf], self._sbdf[stream]
        return 0

    def stream(self, sbdf: int) -> int | None:
        """The stream bound to ``sbdf``."""
        return self._stream.get(sbdf)

    def sbdf(self, stream: int) -> int:
        """The SBDF bound to ``stream``, or ``SBDF_UNBOUND``."""
        return self._sbdf.get(stream, SBDF_UNBOUND)

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sbdf)
