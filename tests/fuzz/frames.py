"""Raw bytes and descriptors of a client, cut anywhere.

Input: chunks, each a u16 (low 12 bits its length, the others how many descriptors come with it) and its bytes. The
lowest bit of the first byte says whether a VERSION exchange went before, the next one which function is talked to.
"""

from __future__ import annotations

from pviommu.host.work import Work
from vfio_user import Frame, FrameReader, Session, SessionLimits, State
from vfio_user.framing import BadFrame, close_fds
from vfio_user.messages import Header

from .feed import Feed
from .machine import VERSION, Descriptors, open_descriptors, sealed_memory, small_machine, take

__all__ = ["TOKENS", "target"]

MAX_CHUNKS = 64
TOKENS = tuple(
    Header(1, command, size, 0, 0).pack()[2:12] for command, size in ((1, 20), (2, 48), (3, 40), (8, 36), (9, 32))
)


def target(data: bytes) -> None:
    """Frames do not depend on how the stream was cut; a session answers or closes; descriptors come back."""
    feed = Feed(data)
    flags = feed.u8()
    chunks: list[tuple[bytes, int]] = []
    while feed and len(chunks) < MAX_CHUNKS:
        head = feed.u16()
        chunks.append((feed.take(head & 0xFFF), head >> 12))
    descriptors = Descriptors(sealed_memory())
    try:
        _check_reader(chunks, descriptors)
        _check_session(chunks, descriptors, negotiated=bool(flags & 1), name="dma0" if flags & 2 else "iommu")
    finally:
        descriptors.close()


def _check_reader(chunks: list[tuple[bytes, int]], descriptors: Descriptors) -> None:
    before = open_descriptors()
    cut, whole = FrameReader(8192, max_fds=16), FrameReader(8192)
    expected = [_content(frame) for frame in whole.feed(b"".join(chunk for chunk, _ in chunks))]
    found = []
    for chunk, count in chunks:
        assert 1 <= cut.wanted <= 8192
        for frame in cut.feed(chunk, [descriptors.send(sort) for sort in range(count)]):
            found.append(_content(frame))
            if isinstance(frame, Frame):
                assert len(frame.fds) <= 16
                close_fds(frame.fds)
    cut.close()
    assert found == expected
    assert open_descriptors() == before


def _content(frame: Frame | BadFrame) -> tuple[Header, bytes | None]:
    return frame.header, frame.payload if isinstance(frame, Frame) else None


def _check_session(chunks: list[tuple[bytes, int]], descriptors: Descriptors, *, negotiated: bool, name: str) -> None:
    with small_machine() as machine:
        work = Work(machine).step
        function = next(function for function in machine.functions() if function.name == name)
        before = open_descriptors()
        session = Session(function)
        replies = FrameReader(SessionLimits().max_frame)
        if negotiated:
            session.receive(Header(0, 1, Header.SIZE + len(VERSION), 0, 0).pack() + VERSION, [])
        for chunk, count in chunks:
            session.receive(chunk, [descriptors.send(sort) for sort in range(count)])
            take(session.outgoing, replies)
            while session.paused:
                session.resume()
                take(session.outgoing, replies)
            work()
        session.eof()
        assert session.state is State.CLOSED
        assert not list(function.memory), "memory of a client that is gone"
        assert open_descriptors() == before
