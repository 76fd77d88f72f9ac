"""Records of events."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smmuv3.events import Event, EventClass, EventType


@pytest.mark.parametrize(
    ("event", "dwords"),
    [
        (
            Event(EventType.F_TRANSLATION, 0x20, None, 0xDEADB000, True, False, EventClass.IN),
            (0x2000000010, 0x0000020800000000, 0xDEADB000, 0),
        ),
        (
            Event(EventType.F_TRANSLATION, 0x20, None, 0xDEADB000, True, False, EventClass.IN, stag=0xABCD),
            (0x2000000010, 0x000002088000ABCD, 0xDEADB000, 0),
        ),
        (Event(EventType.C_BAD_STREAMID, 0x1234), (0x0000123400000002, 0, 0, 0)),
        (Event(EventType.F_CD_FETCH, 8, 5, fetch=0x8000_0047), (0x800005809, 0, 0, 0x8000_0040)),
        (Event(EventType.C_BAD_SUBSTREAMID, 8, 5), (0x800005008, 0, 0, 0)),
        (
            Event(EventType.F_PERMISSION, 8, None, 1, False, True, EventClass.TT, True, ipa=0x5000_0567),
            (0x800000013, 0x118000000000, 1, 0x5000_0000),
        ),
    ],
)
def test_events_are_encoded_as_the_architecture_says(event, dwords):
    assert struct.unpack("<4Q", event.pack()) == dwords


PAGES = st.integers(0, (1 << 40) - 1).map(lambda page: page << 12)


@given(
    st.sampled_from(list(EventType)),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 20) - 1),
    st.integers(0, (1 << 64) - 1),
    st.tuples(st.booleans(), st.booleans(), st.sampled_from(list(EventClass)), st.booleans()),
    PAGES,
    st.none() | st.integers(0, (1 << 16) - 1),
)
def test_what_was_written_is_read(kind, sid, ssid, address, flags, page, stag):
    fetched = kind in (EventType.F_STE_FETCH, EventType.F_CD_FETCH, EventType.F_WALK_EABT)
    event = Event(kind, sid, ssid, address, *flags, *((page, 0) if fetched else (0, page)), stag)

    assert Event.unpack(event.pack()) == event


def test_an_unknown_type_is_an_error():
    with pytest.raises(ValueError, match="not a valid EventType"):
        Event.unpack(bytes([0xFF]) + bytes(31))
