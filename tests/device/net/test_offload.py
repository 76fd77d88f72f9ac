"""Checksums and segmentation, against packets that are put together by hand."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pviommu.net.offload import (
    GSO_TCPV4,
    GSO_TCPV6,
    MAX_SEGMENTS,
    NEEDS_CSUM,
    FrameError,
    Header,
    checksum,
)

ETHERNET = bytes.fromhex("525400000002 525400000001".replace(" ", ""))
PAYLOAD = bytes(range(256)) * 20


def words(data: bytes) -> int:
    """The one's complement sum of 16-bit words, as RFC 1071 has it."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp(payload: bytes, flags: int = 0x18, sequence: int = 0xFFFFFF00, options: bytes = b"\1\1\1\1") -> bytes:
    head = struct.pack(">HHLLBBHHH", 1000, 80, sequence, 7, (20 + len(options)) // 4 << 4, flags, 0x4000, 0, 0)
    return head + options + payload


def frame_4(payload: bytes, vlan: bool = False, flags: int = 0x18) -> tuple[bytes, int]:
    """A frame, and where its TCP header begins."""
    segment = tcp(payload, flags)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0xFFFF, 0x4000, 64, 6, 0, b"\n\0\0\1", b"\n\0\0\2")
    tag = b"\x81\x00\x00\x05" if vlan else b""
    return ETHERNET + tag + b"\x08\x00" + ip + segment, 34 + len(tag)


def frame_6(payload: bytes) -> tuple[bytes, int]:
    segment = tcp(payload)
    ip = struct.pack(">LHBB16s16s", 6 << 28, len(segment), 6, 64, b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(15))
    return ETHERNET + b"\x86\xdd" + ip + segment, 54


def gso(kind: int, start: int, size: int = 1000) -> Header:
    return Header(NEEDS_CSUM, kind, start + 24, size, start, 16)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\1", b"\1\2\3", PAYLOAD, b"\xff" * 999]
)
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert checksum(data) == words(data) ^ 0xFFFF


def test_the_rest_of_a_checksum_is_added_to_what_the_driver_began() -> None:
    udp = struct.pack(">HHHH", 1, 2, 8 + len(PAYLOAD), 0) + PAYLOAD
    pseudo = b"\n\0\0\1\n\0\0\2" + struct.pack(">HH", 17, len(udp))
    begun = udp[:6] + words(pseudo).to_bytes(2, "big") + udp[8:]
    frame = bytes(34) + begun

    complete = Header(NEEDS_CSUM, 0, 0, 0, 34, 6).complete(frame)

    assert words(pseudo + complete[34:]) == 0xFFFF
    assert (complete[:40], complete[42:]) == (frame[:40], frame[42:])


def test_a_checksum_that_would_be_0_is_written_as_its_other_form() -> None:
    assert Header(NEEDS_CSUM, 0, 0, 0, 0, 0).complete(b"\0\0\xff\xff") == b"\xff\xff\xff\xff"


@pytest.mark.parametrize("kind", ["IPv4", "IPv4 in a VLAN", "IPv6"])
def test_segments_are_what_a_card_would_send(kind: str) -> None:
    frame, start = frame_6(PAYLOAD) if kind == "IPv6" else frame_4(PAYLOAD, vlan="VLAN" in kind)
    network = start - (40 if kind == "IPv6" else 20)
    segments = list(gso(GSO_TCPV6 if kind == "IPv6" else GSO_TCPV4, start).segments(frame))

    assert b"".join(each[start + 24 :] for each in segments) == PAYLOAD
    assert [len(each) - start - 24 for each in segments] == [1000] * 5 + [120]
    for number, each in enumerate(segments):
        ip, segment = each[network:start], each[start:]
        if kind == "IPv6":
            assert int.from_bytes(ip[4:6], "big") == len(segment)
            pseudo = ip[8:40] + struct.pack(">LL", len(segment), 6)
        else:
            assert int.from_bytes(ip[2:4], "big") == len(ip) + len(segment)
            assert int.from_bytes(ip[4:6], "big") == (0xFFFF + number) & 0xFFFF
            assert words(ip) == 0xFFFF
            pseudo = ip[12:20] + struct.pack(">HH", 6, len(segment))
        assert words(pseudo + segment) == 0xFFFF
        assert int.from_bytes(segment[4:8], "big") == (0xFFFFFF00 + 1000 * number) & 0xFFFFFFFF
        assert segment[13] == (0x18 if number == 5 else 0x10)


def test_flags_are_those_of_the_first_or_the_last_segment() -> None:
    frame, start = frame_4(bytes(2500), flags=0x99)  # CWR, ACK, PSH, FIN

    assert [each[start + 13] for each in gso(GSO_TCPV4, start).segments(frame)] == [0x90, 0x10, 0x19]


def test_a_frame_without_data_is_one_segment() -> None:
    frame, start = frame_4(b"")

    assert len(list(gso(GSO_TCPV4, start).segments(frame))) == 1


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (gso(GSO_TCPV6, 34), "ethertype 0x0800"),
        (gso(GSO_TCPV4, 20), "no TCP where"),
        (gso(GSO_TCPV4, 0xFFFF), "no TCP where"),
        (gso(GSO_TCPV4, 34)._replace(csum_offset=6), "no TCP where"),
        (gso(GSO_TCPV4, 34, 1), f"more than {MAX_SEGMENTS} segments"),
    ],
)
def test_what_is_no_tcp_is_not_segmented(header: Header, text: str) -> None:
    frame, _ = frame_4(PAYLOAD)

    with pytest.raises(FrameError, match=text):
        header.segments(frame)


@pytest.mark.parametrize("length", [0x00, 0x40, 0xF0])
def test_a_tcp_header_of_a_wrong_length_is_not_segmented(length: int) -> None:
    frame, start = frame_4(b"")
    frame = frame[: start + 12] + bytes([length]) + frame[start + 13 :]

    with pytest.raises(FrameError, match="a TCP header past"):
        gso(GSO_TCPV4, start).segments(frame)


@pytest.mark.parametrize(("make", "kind"), [(frame_4, GSO_TCPV4), (frame_6, GSO_TCPV6)])
def test_a_segment_that_no_ip_packet_can_be_is_refused_before_the_first(make: Any, kind: int) -> None:
    """Without a VLAN tag the longest frame has eight bytes more than such a packet."""
    empty, start = make(b"")
    network = 14
    for length in (0xFFFF, 0x10000):
        frame = empty + bytes(network + length - len(empty))
        header = gso(kind, start, 0xFFFF)
        header.check(frame)
        if length > 0xFFFF:
            with pytest.raises(FrameError, match="a segment of 65536 bytes, more than an IP packet can have"):
                header.segments(frame)
        else:
            assert [len(each) for each in header.segments(frame)] == [network + length]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (Header(4, 0, 0, 0, 0, 0), "flags 0x4"),
        (Header(NEEDS_CSUM, 0, 0, 0, 50, 9), "a checksum at 50 \\+ 9 of 60"),
        (Header(NEEDS_CSUM, 0, 0, 0, 0xFFFF, 0xFFFF), "a checksum at"),
        (Header(NEEDS_CSUM, 3, 0, 100, 0, 0), "segmentation of type 3"),
        (Header(NEEDS_CSUM, 0x81, 0, 100, 0, 0), "segmentation of type 129"),
        (Header(0, 1, 0, 100, 0, 0), "without a checksum"),
        (Header(NEEDS_CSUM, 1, 0, 0, 0, 0), "or a size"),
    ],
)
def test_a_header_that_does_not_fit_its_frame_is_refused(header: Header, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        header.check(bytes(60))


def test_a_checksum_at_the_end_of_the_frame_fits() -> None:
    Header(NEEDS_CSUM, 0, 0, 0, 50, 8).check(bytes(60))
