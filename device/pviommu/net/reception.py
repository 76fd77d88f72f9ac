"""Which frames a card receives, and by which of its queues (virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.5)."""

from __future__ import annotations

import zlib
from collections.abc import Collection

import msgspec

from .offload import VLAN_TYPES

__all__ = ["MAC_TABLE", "MIN_FRAME", "Filter", "flow"]

MAC_TABLE = 64
"""Addresses of each kind that are kept; of more, all frames of that kind are received."""
MIN_FRAME = 14
"""bytes of an Ethernet header"""
_BROADCAST = b"\xff" * 6
FLOWS = 256


class Filter(msgspec.Struct):
    """What the driver has asked for. It begins with everything: a driver may have no control queue."""

    promiscuous: bool = True
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: set[bytes] | None = msgspec.field(default_factory=set)
    """addresses besides the card's own; None: all"""
    multicast: set[bytes] | None = msgspec.field(default_factory=set)
    vlans: set[int] = msgspec.field(default_factory=set)
    """those of which frames are received, if VLANs are filtered at all"""

    def accepts(self, frame: bytes, own: Collection[bytes], *, by_vlan: bool) -> bool:
        """Whether a card with these addresses receives ``frame``, of :data:`MIN_FRAME` bytes at least."""
        if self.promiscuous:
            return True
        is_tagged = by_vlan and int.from_bytes(frame[12:14], "big") == VLAN_TYPES[0]
        if is_tagged and int.from_bytes(frame[14:16], "big") & 0xFFF not in self.vlans:
            return False
        to = frame[:6]
        if to == _BROADCAST:
            return not self.no_broadcast
        if to[0] & 1:
            return not self.no_multicast and (self.all_multicast or self.multicast is None or to in self.multicast)
        if self.no_unicast:
            return False
        return to in own or self.all_unicast or self.unicast is None or to in self.unicast


def flow(frame: bytes) -> int:
    """A number below :data:`FLOWS` that frames of one connection have in common, whichever way they go."""
    kind, at = frame[12:14], 14
    if int.from_bytes(kind, "big") in VLAN_TYPES:
        kind, at = frame[16:18], 18
    if kind == b"\x08\x00":
        source, target = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        protocol = frame[at + 9 : at + 10]
        whole = frame[at + 6 : at + 8] in (b"\0\0", b"\x40\0")
        at += 4 * (frame[at] & 15) if len(frame) > at else 0
    elif kind == b"\x86\xdd":
        source, target = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        protocol, whole, at = frame[at + 6 : at + 7], True, at + 40
    else:
        return 0
    ends = source, target
    if whole and protocol in (b"\x06", b"\x11"):
        ends = source + frame[at : at + 2], target + frame[at + 2 : at + 4]
    return zlib.crc32(min(ends) + max(ends)) % FLOWS
