"""What a card's frames go to, and come from."""

from __future__ import annotations

from collections.abc import Callable

from ..hosted import MayGoOn, Watch

__all__ = ["Link", "Watcher"]

Watcher = Callable[[int, Callable[[int, MayGoOn], None]], Watch]
"""See :meth:`pviommu.hosted.Host.watch`."""


class Link:
    """One end of a link: this one is not connected."""

    is_up: bool = False
    """whether frames may arrive"""
    descriptors: int = 0
    """how many it has open"""

    def start(self, watch: Watcher, on_change: Callable[[], None]) -> None:
        """The card is in use: call ``on_change`` when frames have arrived, or the link has gone down."""

    def stop(self) -> None:
        """It is not any more. What arrives from now on is lost."""

    def accept(self, checksum: bool, segments_4: bool, segments_6: bool) -> None:
        """What of an arriving frame may be left undone: its checksum, segmentation of TCP over IPv4 and IPv6."""

    def send(self, header: bytes, frame: bytes) -> bool:
        """Send a frame with a header that was checked. Returns whether it could be sent."""
        return True

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame that has arrived, with its header, which nobody has checked."""
        return None

    def close(self) -> None:
        """Give back whatever it has. A second call does nothing."""
