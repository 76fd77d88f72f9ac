"""VERSION: what is accepted, what is answered, what is refused."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user import Capabilities, ProtocolError, SessionLimits, negotiation

QEMU = {
    "capabilities": {
        "pgsizes": 4096,
        "max_msg_fds": 16,
        "max_dma_maps": 65535,
        "max_data_xfer_size": 1048576,
        "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
        "write_multiple": True,
    }
}


def version(document: Any = None, major: int = 0, minor: int = 0) -> bytes:
    text = b"" if document is None else json.dumps(document).encode() + b"\0"
    return struct.pack("<HH", major, minor) + text


def capabilities(**found: Any) -> bytes:
    return version({"capabilities": found})


def answer(payload: bytes, limits: SessionLimits | None = None) -> tuple[tuple[int, int], dict[str, Any]]:
    reply, _ = negotiation.accept(payload, limits or SessionLimits())
    assert reply[-1] == 0
    return struct.unpack_from("<HH", reply), json.loads(reply[4:-1])["capabilities"]


def test_qemu_gets_its_own_version_and_only_capabilities_that_it_knows() -> None:
    found, keys = answer(version(QEMU))
    assert found == (0, 0)
    assert keys == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1048576,
        "max_dma_maps": 65535,
        "pgsizes": 4096,
    }


@pytest.mark.parametrize(("proposed", "agreed"), [(0, 0), (1, 1), (2, 2), (3, 2), (65535, 2)])
def test_reply_carries_the_smaller_minor(proposed: int, agreed: int) -> None:
    assert answer(version(minor=proposed))[0] == (0, agreed)


@pytest.mark.parametrize("document", [None, {}, {"capabilities": {}}])
def test_absent_capabilities_take_the_defaults_of_the_specification(document: Any) -> None:
    _, found = negotiation.accept(version(document), SessionLimits())
    assert found.capabilities == Capabilities(1, 1 << 20, 65535, 4096, False)


@pytest.mark.row("server", 54)
def test_a_reply_has_no_capability_that_was_not_proposed() -> None:
    assert answer(version())[1] == answer(version({}))[1] == {}
    assert answer(capabilities(pgsizes=8192, unheard_of=1))[1] == {"pgsizes": 4096}


@pytest.mark.row(
    "server", 54, deviation="a limit below the protocol's default is named unasked: the client would go beyond it"
)
def test_but_the_limits_that_a_client_would_otherwise_exceed() -> None:
    limits = SessionLimits(max_msg_fds=0, max_data_xfer_size=8192, max_dma_maps=9)
    assert answer(version(), limits)[1] == {"max_msg_fds": 0, "max_data_xfer_size": 8192, "max_dma_maps": 9}


def test_client_limits_are_read() -> None:
    payload = capabilities(max_msg_fds=3, max_data_xfer_size=1024, max_dma_maps=5, pgsizes=8192)
    assert negotiation.parse(payload).capabilities == Capabilities(3, 1024, 5, 8192)


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(True, True, True), (True, False, False), (False, True, False)])
def test_write_multiple_needs_both_sides(ours: bool, theirs: bool, agreed: bool) -> None:
    limits = SessionLimits(write_multiple=ours)
    reply, found = negotiation.accept(capabilities(write_multiple=theirs), limits)
    assert found.capabilities.write_multiple is agreed
    assert (b'"write_multiple":true' in reply) is agreed


def test_unknown_capabilities_are_left_alone() -> None:
    payload = capabilities(colour="blue", twin_socket={"supported": True}, migration={})
    assert negotiation.parse(payload).capabilities == Capabilities()


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "at least 4 are needed"),
        (b"\0\0\0", "at least 4 are needed"),
        (version(major=1), "only major version 0"),
        (version(major=999), "only major version 0"),
        (version() + b"{}", "end in NUL"),
        (version() + b"\0", "cannot be read"),
        (version() + b"{\0", "cannot be read"),
        (version() + b'"\0', "cannot be read"),
        (version() + b'{"\xff": 1}\0', "cannot be read"),
        (version() + b"[" * 100_000 + b"\0", "cannot be read"),
        (version() + b"9" * 10_000 + b"\0", "cannot be read"),
        (version() + b"{}\0{}\0", "cannot be read"),
        (version([]), "must be an object"),
        (version("text"), "must be an object"),
        (version({"capabilities": "23"}), "capabilities must be an object"),
        (capabilities(migration="23"), "migration must be an object"),
        (capabilities(migration={"pgsize": "foo"}), "pgsize must be an integer"),
        (capabilities(twin_socket=True), "twin_socket must be an object"),
        (capabilities(max_msg_fds="foo"), "max_msg_fds must be an integer"),
        (capabilities(max_msg_fds=True), "max_msg_fds must be an integer"),
        (capabilities(max_msg_fds=1.5), "max_msg_fds must be an integer"),
        (capabilities(max_msg_fds=-1), "max_msg_fds -1: 0 to 1024"),
        (capabilities(max_msg_fds=1025), "max_msg_fds 1025: 0 to 1024"),
        (capabilities(max_data_xfer_size=0), "max_data_xfer_size 0"),
        (capabilities(max_dma_maps=None), "max_dma_maps must be an integer"),
        (capabilities(pgsizes=0), "pgsizes 0"),
        (capabilities(write_multiple=1), "write_multiple must be true or false"),
    ],
)
@pytest.mark.row("wire", 17)
def test_malformed_offer_is_refused(payload: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        negotiation.accept(payload, SessionLimits())


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_protocol_error(text: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        _, found = negotiation.accept(b"\0\0\0\0" + text + b"\0", SessionLimits())
        assert (found.major, found.minor) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_msg_fds": 17},
        {"max_data_xfer_size": 4095},
        {"max_data_xfer_size": (64 << 20) + 1},
        {"max_dma_maps": 65536},
        {"pgsizes": 4097},
        {"pgsizes": 0},
    ],
)
@pytest.mark.row("wire", 13)
def test_limits_that_qemu_would_refuse_are_refused_here(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SessionLimits(**wrong)


def test_offer_is_what_accept_reads() -> None:
    limits = SessionLimits(max_msg_fds=4, max_data_xfer_size=8192, max_dma_maps=9, write_multiple=True)
    found = negotiation.parse(negotiation.offer(limits, 1))
    assert (found.minor, found.capabilities) == (1, Capabilities(4, 8192, 9, 4096, True))
