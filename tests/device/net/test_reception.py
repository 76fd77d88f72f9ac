"""Which frames a card receives, and by which queue."""

from __future__ import annotations

import msgspec
import pytest

from pviommu.net.reception import FLOWS, Filter, flow

MAC = bytes.fromhex("525400000001")
OTHER = bytes.fromhex("525400000009")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6


def frame(to: bytes, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + (0xE000 | vlan).to_bytes(2, "big")
    return to + OTHER + tag + b"\x08\x00" + bytes(46)


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({}, {MAC, BROADCAST}),
        ({"promiscuous": True}, {MAC, OTHER, GROUP, BROADCAST}),
        ({"all_multicast": True}, {MAC, GROUP, BROADCAST}),
        ({"multicast": {GROUP}}, {MAC, GROUP, BROADCAST}),
        ({"multicast": None}, {MAC, GROUP, BROADCAST}),
        ({"multicast": None, "no_multicast": True}, {MAC, BROADCAST}),
        ({"unicast": {OTHER}}, {MAC, OTHER, BROADCAST}),
        ({"unicast": None}, {MAC, OTHER, BROADCAST}),
        ({"all_unicast": True}, {MAC, OTHER, BROADCAST}),
        ({"all_unicast": True, "no_unicast": True}, {BROADCAST}),
        ({"no_broadcast": True}, {MAC}),
    ],
)
def test_a_card_receives_what_its_driver_asked_for(changes: dict[str, object], received: set[bytes]) -> None:
    asked = msgspec.structs.replace(Filter(promiscuous=False), **changes)

    assert {to for to in (MAC, OTHER, GROUP, BROADCAST) if asked.accepts(frame(to), [MAC], by_vlan=False)} == received


def test_frames_of_other_vlans_are_not_received_if_vlans_are_filtered() -> None:
    asked = Filter(promiscuous=False, vlans={5})

    assert [asked.accepts(frame(MAC, vlan), [MAC], by_vlan=True) for vlan in (None, 5, 6)] == [True, True, False]
    assert asked.accepts(frame(MAC, 6), [MAC], by_vlan=False)


def ip(
    swapped: bool = False, protocol: int = 6, ports: bytes = b"\0\1\0\2", six: bool = False, tag: bytes = b""
) -> bytes:
    source, target = (b"\2" * 16, b"\1" * 16) if swapped else (b"\1" * 16, b"\2" * 16)
    ports = ports[2:] + ports[:2] if swapped else ports
    if six:
        return bytes(12) + tag + b"\x86\xdd" + bytes(6) + bytes([protocol, 64]) + source + target + ports
    head = b"\x45" + bytes(8) + bytes([protocol]) + bytes(2)
    return bytes(12) + tag + b"\x08\x00" + head + source[:4] + target[:4] + ports


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("protocol", [6, 17, 1])
@pytest.mark.parametrize("tag", [b"", b"\x81\x00\x00\x05"])
def test_both_ways_of_a_connection_are_one_flow(six: bool, protocol: int, tag: bytes) -> None:
    assert flow(ip(protocol=protocol, six=six, tag=tag)) == flow(ip(True, protocol=protocol, six=six, tag=tag))
    assert 0 <= flow(ip(protocol=protocol, six=six)) < FLOWS


@pytest.mark.parametrize("six", [False, True])
def test_connections_spread_over_many_flows(six: bool) -> None:
    flows = {flow(ip(ports=port.to_bytes(2, "big") + b"\0\x50", six=six)) for port in range(1000)}

    assert len(flows) > FLOWS // 2


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_a_frame_that_ends_early_has_a_flow_too(length: int) -> None:
    for six in (False, True):
        assert 0 <= flow(ip(six=six)[:length]) < FLOWS
