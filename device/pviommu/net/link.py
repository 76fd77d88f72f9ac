"""What a card's frames go to, and come from."""

from __future__ import annotations

import errno
from collections.abc import Callable

from ..hosted import MayGoOn, Watch

__all__ = ["Link", "Watcher"]

Watcher = Callable[[int, Callable[[int, MayGoOn], None]], Watch]
"""See :meth:`pviommu.hosted.Host.watch`."""
_GONE = (errno.EBADFD, errno.ENODEV, errno.EBADF)


class Link:
    """One end of a link: this one is not connected."""

    is_gone: bool = False
    """whether it has come to its end"""
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

    def use(self, pairs: int) -> None:
        """The driver uses so many pairs of queues, at least one."""

    def carry(self, is_up: bool) -> None:
        """The card's side is set up, or down: the other end may show that."""

    def send(self, header: bytes, frame: bytes, pair: int = 0) -> bool:
        """Send a frame with a header that was checked, by that pair of queues. Returns whether it could be sent. A link
        that is full (EAGAIN, ENOBUFS), or not set up at its other end (EIO), loses that frame. Anything else is its
        end.
        """
        try:
            return self.transmit(header, frame, pair)
        except OSError as error:
            self.judge(error)
            return False

    def transmit(self, header: bytes, frame: bytes, pair: int) -> bool:
        """The same. Raises OSError."""
        return True

    def judge(self, error: OSError) -> None:
        """Whether an error is the end of the link."""
        if error.errno in _GONE:
            self.end()

    def end(self) -> None:
        """It is gone, and down until :meth:`again`."""
        self.is_gone, self.is_up = True, False

    def again(self) -> None:
        """One that is gone is made anew. Raises OSError if that does not succeed."""

    def look(self) -> None:
        """The card looks: :meth:`receive` is to find what has arrived since there was nothing."""

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame that has arrived, with its header, which nobody has checked."""
        return None

    def lend(self) -> tuple[int, bool] | None:
        """Let native code read and write frames of a link that is one descriptor, until anything else is done here: the
        descriptor, and whether epoll does not tell of frames. None: it may not.
        """
        return None

    def take_back(self, *, is_empty: bool) -> None:
        """What was lent is given back. ``is_empty``: the last look found no frame."""

    def rest(self) -> None:
        """The card does not look before ``on_change`` is called."""

    def close(self) -> None:
        """Give back whatever it has. A second call does nothing."""
