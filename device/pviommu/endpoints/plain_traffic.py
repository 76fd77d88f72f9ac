"""The plain traffic of a network card, which native code does: one pair of split rings, and a tap.

Python's code defines what is right, and does all else: :class:`.virtio_net.VirtioNet`. Between two calls of the native
code all state is Python's. What is handed over is what both keep, so that each can go on where the other has stopped;
what is left undone, a buffer that is not as usual or a frame for nobody in particular, Python does from its beginning.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from vfio_user import IrqIndex
from vfio_user.signals import signal_context

from ..dma.translator import Lent
from ..hosted import Helper
from ..virtio.ring import Ring, Used

__all__ = ["CHECKSUM", "Accepts", "Done", "PlainTraffic", "Rules"]

CHECKSUM, SEGMENTS_4, SEGMENTS_6 = 1, 2, 4
"""What may be left to do of a frame: ``enum pv_offloads``."""


class Accepts:
    """Which frames are received: ``enum pv_accepts``."""

    EVERYTHING = 1
    UNICAST = 2
    BROADCAST = 4
    MULTICAST = 8
    TAGGED = 16


class Rules(NamedTuple):
    """What the driver has negotiated and asked for."""

    merges: bool
    of_guest: int
    """what it may leave to do of frames that it sends"""
    for_guest: int
    """and others of those that it receives"""
    accepts: int
    mac: bytes
    longest: int
    """bytes of a frame without a tag"""


class Done(NamedTuple):
    """What the native code has done, and what it leaves."""

    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    requests: int
    moved: int
    """of DMA, and its bytes"""
    interrupts: int
    """that were raised"""
    wanted: tuple[bool, bool]
    """interrupts for the receive and the transmit ring that are still to be raised"""
    error: int
    """errno of a frame that the tap did not take; 0: none"""
    held: bytes
    """a frame of the tap, with its header, that is to be received; empty: none"""
    expects: bool
    """whether an answer of the guest is looked for, of which it does not notify"""
    expected_ns: int
    """for how long"""
    expected_used: int
    """how many buffers of the transmit ring had been used then"""
    is_empty: bool
    """whether the tap had no more frames"""
    is_unusual: bool
    """whether there is something to do for Python"""


class PlainTraffic:
    """Hands the rings of a card over to native code, and takes them back."""

    def __init__(self, helper: Helper) -> None:
        self.helper = helper
        self._card: Any = helper.state
        self._card.signals, self._card.completed = signal_context() or (0, None)
        self._rules: Rules | None = None
        self._rings: tuple[tuple[Ring, Any], ...] = ()

    def begin(
        self, lent: Lent, rules: Rules, rings: tuple[Ring, Ring], eventfds: tuple[int, int], tap: int, reads_tap: bool
    ) -> None:
        """``rings``: the receive ring and the transmit ring, everything published, with their ``eventfds``, -1 for one
        that Python is to signal. Then set :meth:`allow`, and the helper may do what there is until :meth:`end`."""
        card = self._card
        port = card.port
        port.core, port.ctx, port.line, port.step = lent.core, lent.context, lent.line or None, lent.step or None
        if rules is not self._rules:
            self._rules = rules
            card.merges, card.header_of_guest, card.header_for_guest = rules.merges, rules.of_guest, rules.for_guest
            card.accepts, card.longest = rules.accepts, rules.longest
            card.mac[:] = rules.mac
        card.tap, card.reads_tap = tap, reads_tap
        self._rings = ((rings[0], card.rx), (rings[1], card.tx))
        for (ring, split), eventfd in zip(self._rings, eventfds, strict=True):
            state = ring.state
            split.desc, split.driver, split.device, split.size = state.desc, state.driver, state.device, state.size
            split.next_avail, split.next_used = state.next_avail, state.next_used
            split.event_idx, split.indirect = ring.features
            split.eventfd = eventfd if card.signals else -1
            split.there = 0

    def allow(self, *, send: bool, receive: bool, answer_ns: int) -> None:
        """Which ring it may look at, and for how long for an answer that the guest would notify of, if at all."""
        card = self._card
        card.may_send, card.may_receive, card.may_expect, card.answer_ns = send, receive, answer_ns > 0, answer_ns

    def end(self) -> Done:
        """The rings are Python's again."""
        card = self._card
        expected_used = self._rings[1][0].used + card.expected_after
        for ring, split in self._rings:
            state = ring.state
            state.next_avail, state.next_used, state.untold = split.next_avail, split.next_used, split.untold
            if split.count:
                state.used += [Used(each.id, 1, each.written, True) for each in split.entries[: split.count]]
            ring.used += split.taken
            ring.is_dry |= bool(split.is_dry)
        done = Done(
            *(card.sent, card.sent_bytes, card.received, card.received_bytes),
            *(card.port.requests, card.port.bytes, card.interrupts),
            (bool(card.rx.interrupts), bool(card.tx.interrupts)),
            *(card.error, self.helper.held() if card.held else b""),
            *(card.expected_at > 0, card.expected_for, expected_used),
            *(bool(card.is_empty), bool(card.is_unusual)),
        )
        for split in (card.rx, card.tx):
            split.count = split.untold = split.taken = split.interrupts = split.is_dry = 0
        card.sent = card.sent_bytes = card.received = card.received_bytes = card.interrupts = 0
        card.port.requests = card.port.bytes = card.error = card.held = card.is_unusual = card.is_empty = 0
        card.expected_at = card.expected_after = 0
        return done


def eventfd_of(interrupts: Any, vector: int) -> int:
    """The eventfd of an MSI-X vector; -1 if there is none here."""
    found = interrupts.eventfd(IrqIndex.MSIX, vector)
    return -1 if found is None else found


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
