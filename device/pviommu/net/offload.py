"""Checksums and segmentation that a driver leaves to its card (virtio 1.2, section 5.1.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "DATA_VALID",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_TYPE",
    "HEADER_BYTES",
    "NEEDS_CSUM",
    "PLAIN",
    "VLAN_TYPES",
    "FrameError",
    "Header",
]

NEEDS_CSUM, DATA_VALID = 1, 2
"""``VIRTIO_NET_HDR_F_...``"""
GSO_NONE, GSO_TCPV4, GSO_TCPV6 = 0, 1, 4
"""``VIRTIO_NET_HDR_GSO_...``"""
_HEADER = struct.Struct("<BBHHHH")
HEADER_BYTES = _HEADER.size
"""of a header without ``num_buffers``"""
GSO_TYPE = 1
"""The place of its type of segmentation, which is one byte."""
PLAIN = bytes(HEADER_BYTES)
"""The header of a frame that needs nothing."""
MAX_SEGMENTS = 128
"""into which one frame is divided; 64 KiB of TCP at the smallest MSS that Linux uses by itself, 536, are fewer"""
_ETHERTYPE, _IPV4, _IPV6 = 12, 0x0800, 0x86DD
VLAN_TYPES = (0x8100, 0x88A8)
_TCP, _TCP_CHECKSUM = 6, 16
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80


class FrameError(Exception):
    """A header that does not fit its frame; the frame is dropped."""


class Header(NamedTuple):
    """``virtio_net_hdr``, without the number of buffers."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        return cls(*_HEADER.unpack_from(data))

    def check(self, frame: bytes) -> None:
        """Raise :class:`FrameError` unless all of it is within ``frame`` and makes sense."""
        if self.flags & ~(NEEDS_CSUM | DATA_VALID):
            raise FrameError(f"flags {self.flags:#x}")
        if self.flags & NEEDS_CSUM and self.csum_start + self.csum_offset + 2 > len(frame):
            raise FrameError(f"a checksum at {self.csum_start} + {self.csum_offset} of {len(frame)} bytes")
        if self.gso_type == GSO_NONE:
            return
        if self.gso_type not in (GSO_TCPV4, GSO_TCPV6):
            raise FrameError(f"segmentation of type {self.gso_type}")
        if not self.flags & NEEDS_CSUM or not self.gso_size:
            raise FrameError("segmentation without a checksum or a size")

    def complete(self, frame: bytes) -> bytes:
        """``frame`` with its checksum, if that is left to do."""
        if not self.flags & NEEDS_CSUM:
            return frame
        place = self.csum_start + self.csum_offset
        value = checksum(frame[self.csum_start :]) or 0xFFFF  # 0 would mean that there is none
        return frame[:place] + value.to_bytes(2, "big") + frame[place + 2 :]

    def segments(self, frame: bytes) -> Iterator[bytes]:
        """``frame`` as frames of at most ``gso_size`` bytes of TCP each. Raises :class:`FrameError`, before the first
        of them, for what is no such frame.
        """
        network, tcp = _network_offset(frame, _IPV4 if self.gso_type == GSO_TCPV4 else _IPV6), self.csum_start
        least = network + (20 if self.gso_type == GSO_TCPV4 else 40)
        if not least <= tcp <= len(frame) - 20 or self.csum_offset != _TCP_CHECKSUM:
            raise FrameError("no TCP where the checksum begins")
        start = tcp + 4 * (frame[tcp + 12] >> 4)
        if not tcp + 20 <= start <= len(frame):
            raise FrameError("a TCP header past the end of the frame")
        if len(frame) - start > MAX_SEGMENTS * self.gso_size:
            raise FrameError(f"more than {MAX_SEGMENTS} segments")
        longest = start - network + min(self.gso_size, len(frame) - start)
        if longest > 0xFFFF:
            raise FrameError(f"a segment of {longest} bytes, more than an IP packet can have")
        return self._segments(frame, network, start)

    def _segments(self, frame: bytes, network: int, start: int) -> Iterator[bytes]:
        tcp, size = self.csum_start, self.gso_size
        sequence, flags = int.from_bytes(frame[tcp + 4 : tcp + 8], "big"), frame[tcp + 13]
        payload = frame[start:]
        for number, offset in enumerate(range(0, max(len(payload), 1), size)):
            part = payload[offset : offset + size]
            made = bytearray(frame[:start])
            made[tcp + 4 : tcp + 8] = (sequence + offset & 0xFFFFFFFF).to_bytes(4, "big")
            is_last = offset + size >= len(payload)
            made[tcp + 13] = flags & ~(0 if is_last else _FIN | _PSH) & ~(_CWR if number else 0)
            _set_network_length(made, network, tcp, start - network + len(part), number, self.gso_type)
            made[tcp + 16 : tcp + 18] = bytes(2)
            made += part
            pseudo = _pseudo_header(made, network, len(made) - tcp, self.gso_type)
            made[tcp + 16 : tcp + 18] = checksum(pseudo + made[tcp:]).to_bytes(2, "big")
            yield bytes(made)


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words."""
    number = int.from_bytes(data + b"\0" if len(data) % 2 else data, "big")
    return (number % 0xFFFF or (0xFFFF if number else 0)) ^ 0xFFFF  # 1 << 16 is 1 modulo 0xffff, so that words add up


def _network_offset(frame: bytes, wanted: int) -> int:
    """Where the network header begins. Raises :class:`FrameError` unless it is of the type ``wanted``."""
    place = _ETHERTYPE
    for _ in range(3):
        kind = int.from_bytes(frame[place : place + 2], "big")
        if kind not in VLAN_TYPES:
            break
        place += 4
    if kind != wanted:
        raise FrameError(f"ethertype {kind:#06x} where {wanted:#06x} is to be segmented")
    return place + 2


def _set_network_length(made: bytearray, network: int, tcp: int, length: int, number: int, kind: int) -> None:
    """Give the IP header of segment ``number`` its length, from the IP header on, and what depends on that."""
    if kind == GSO_TCPV6:
        made[network + 4 : network + 6] = (length - 40).to_bytes(2, "big")
        return
    identification = int.from_bytes(made[network + 4 : network + 6], "big") + number
    made[network + 2 : network + 4] = length.to_bytes(2, "big")
    made[network + 4 : network + 6] = (identification & 0xFFFF).to_bytes(2, "big")
    made[network + 10 : network + 12] = bytes(2)
    made[network + 10 : network + 12] = checksum(made[network:tcp]).to_bytes(2, "big")


def _pseudo_header(made: bytearray, network: int, length: int, kind: int) -> bytes:
    if kind == GSO_TCPV6:
        return bytes(made[network + 8 : network + 40]) + struct.pack(">LL", length, _TCP)
    return bytes(made[network + 12 : network + 20]) + struct.pack(">HH", _TCP, length)
