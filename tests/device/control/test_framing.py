"""Where messages end."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pviommu.control.framing import MOST_MESSAGE, Framing, TooLongError

OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.text(max_size=8) | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def messages(framing):
    found = []
    while framing.has_message:
        found.append(framing.take())
    return found


@given(st.lists(st.tuples(OBJECTS, st.sampled_from((b"", b" ", b"\n", b"\r\n"))), max_size=5), st.integers(1, 9))
def test_objects_are_found_however_they_are_cut_and_whatever_is_between(objects, size):
    framing, found = Framing(), []
    data = b"".join(json.dumps(each, ensure_ascii=False).encode() + between for each, between in objects)
    for start in range(0, len(data), size):
        framing.receive(data[start : start + size])
        found += messages(framing)

    assert [json.loads(message) for message in found] == [each for each, _ in objects]


@given(st.binary(max_size=200), st.integers(1, 50))
@example(b'"\\', 1)  # the reset is behind what escapes the next character of a text
def test_garbage_is_bounded_and_ends_with_a_reset(data, size):
    framing = Framing()
    for start in range(0, len(data), size):
        framing.receive(data[start : start + size])
        messages(framing)
    framing.receive(b"\xff")
    messages(framing)
    framing.receive(b'{"execute": "version"}')

    assert messages(framing) == [b'{"execute": "version"}']


def test_what_is_no_object_ends_with_its_line():
    framing = Framing()
    framing.receive(b'hello\n"half a text\n{"a": "\\"}"}}x')

    assert messages(framing) == [b"hello\n", b'"half a text\n', b'{"a": "\\"}"}', b"}"]


@pytest.mark.parametrize("byte", [b"x", b"[", b'"', b"\\", b" "])
def test_a_message_that_is_too_long_is_told_of_once_and_little_of_it_is_kept(byte):
    framing, told = Framing(), 0
    for _ in range(300):
        framing.receive(byte * 4096)
        while framing.has_message:
            with pytest.raises(TooLongError):
                framing.take()
            told += 1
        assert len(framing._buffer) <= MOST_MESSAGE + 4096
    framing.receive(b'\xff{"a": 1}')

    assert told == 1
    assert messages(framing) == [b'{"a": 1}']


def test_a_whole_message_that_is_too_long_is_dropped():
    framing = Framing()
    framing.receive(b'{"a": "%s"}{"b": 1}' % (b"x" * MOST_MESSAGE))

    with pytest.raises(TooLongError):
        framing.take()
    assert messages(framing) == [b'{"b": 1}']
