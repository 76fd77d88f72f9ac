"""Replies wait in order, and say when there is no room for more."""

from __future__ import annotations

import errno
import logging

import pytest

from vfio_user import Command, Header, HeaderFlags
from vfio_user.outbox import Outbox, Outgoing

ASKED = Header(7, Command.REGION_READ, 32, 0, 0)
POSTED = Header(8, Command.REGION_WRITE, 32, HeaderFlags.NO_REPLY, 0)


def test_replies_echo_the_number_and_descriptors_ride_on_them() -> None:
    outbox = Outbox("lamp", 100, is_loud=True)

    outbox.reply(ASKED, b"data", (5,))
    outbox.reply(POSTED, b"")
    outbox.refuse(ASKED, errno.EINVAL, "no")
    outbox.refuse(POSTED, errno.EINVAL, "no")

    assert list(outbox.messages) == [
        Outgoing(Header(7, Command.REGION_READ, 20, 1, 0).pack() + b"data", (5,)),
        Outgoing(Header(7, Command.REGION_READ, 16, 0x21, errno.EINVAL).pack()),
    ]


def test_there_is_room_again_once_the_sender_has_taken_messages() -> None:
    outbox = Outbox("lamp", 40, is_loud=True)

    outbox.reply(ASKED, bytes(24))
    assert outbox.has_room
    outbox.reply(ASKED, b"")
    assert not outbox.has_room
    outbox.messages.popleft()
    assert outbox.has_room


@pytest.mark.parametrize(("is_loud", "levels"), [(True, {logging.WARNING}), (False, {logging.DEBUG})])
def test_refusals_are_warnings_unless_somebody_else_has_said_it(
    caplog: pytest.LogCaptureFixture, is_loud: bool, levels: set[int]
) -> None:
    caplog.set_level(logging.DEBUG)

    Outbox("lamp", 100, is_loud).refuse(POSTED, errno.EINVAL, "no")

    assert {record.levelno for record in caplog.records} == levels
