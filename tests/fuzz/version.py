"""The payload of a VERSION message.

Input: the payload itself, JSON included.
"""

from __future__ import annotations

from vfio_user import Command, Header, HeaderFlags, ProtocolError, Session, SessionLimits, State
from vfio_user.framing import FrameReader
from vfio_user.negotiation import MINOR, Offer, accept, parse

from .machine import bare_function, nothing_raised, take

__all__ = ["TOKENS", "target"]

TOKENS = (
    *(f'"{name}":'.encode() for name in (*SessionLimits(write_multiple=True).to_json(), "capabilities", "migration")),
    *(b"twin_socket", b"max_bitmap_size", b"pgsize", b"true", b"false", b"null", b"1e999", b"-1", b"[[[[", b"\xff\xfe"),
)

_FUNCTION = bare_function()
"""Negotiation does not touch the device behind it."""


def target(data: bytes) -> None:
    """An offer is accepted with values inside their bounds, or refused as a protocol error; a session agrees."""
    limits = SessionLimits(write_multiple=True)
    try:
        proposed = parse(data)
        reply, agreed = accept(data, limits)
    except ProtocolError:
        accepted = False
    else:
        accepted = True
        _check(limits, proposed, reply, agreed)
    payload = data[: limits.max_frame - Header.SIZE]
    with nothing_raised():
        session = Session(_FUNCTION, limits)
        session.receive(Header(7, Command.VERSION, Header.SIZE + len(payload), 0, 0).pack() + payload, [])
        [answer] = take(session.outgoing, FrameReader(limits.max_frame))
        assert session.state is (State.RUNNING if accepted else State.CLOSED)
        assert bool(answer.header.flags & HeaderFlags.ERROR) is not accepted
        session.eof()


def _check(limits: SessionLimits, proposed: Offer, reply: bytes, agreed: Offer) -> None:
    answer = parse(reply)
    assert answer.major == agreed.major == 0
    assert answer.minor == agreed.minor == min(proposed.minor, MINOR)
    assert answer.capabilities.write_multiple is agreed.capabilities.write_multiple
    assert answer.capabilities.max_dma_maps == limits.max_dma_maps
    found = agreed.capabilities
    assert 0 <= found.max_msg_fds <= 1024
    assert 1 <= found.max_data_xfer_size < 1 << 64
    assert 1 <= found.pgsizes < 1 << 64
