"""Rules for frames on their way into a link of a network card, and out of it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pviommu.faults.points import links
from pviommu.net.offload import NEEDS_CSUM

from .test_virtio_net import RECEIVED, Cards, Rule, cards

__all__ = ["cards"]

LENGTH = 96
S = 1_000_000_000


def rule(on: str, nth: int = 2, where: dict[str, Any] | None = None, **do: Any) -> Rule:
    return {"on": on, "where": {"function": "net*", **(where or {})}, "schedule": {"nth": nth}, "do": do}


def arrivals(played: Cards, count: int = 3) -> list[bool]:
    return [played.exchange(fill) for fill in range(1, count + 1)]


def drops(played: Cards) -> list[dict[str, int]]:
    one, two = (played.card(name).link_report() for name in ("net0", "net1"))
    return [one["sent_dropped"], two["received_dropped"]]


def buffers(played: Cards) -> int:
    """How many receive buffers came back that nobody has taken."""
    count = 0
    while played.drivers["net1"].rings[0].take():
        count += 1
    return count


@pytest.mark.row("virtio", 44)
@pytest.mark.parametrize("error", ["ENOBUFS", "EAGAIN", "EIO"])
def test_a_link_that_does_not_take_a_frame_loses_it_alone(cards: Callable[[Rule], Cards], error: str) -> None:
    played = cards(rule("link.send.pre", fail=error))

    assert arrivals(played) == [True, False, True]
    assert drops(played) == [{"link": 1}, {}]


@pytest.mark.row("virtio", 45)
def test_a_link_that_is_gone_is_down_at_both_ends_until_it_is_made_anew(cards: Callable[[Rule], Cards]) -> None:
    played = cards(rule("link.send.pre", fail="EBADFD"))

    assert arrivals(played) == [True, False, False]
    assert [played.card(name).link_is_up for name in ("net0", "net1")] == [False, False]
    assert not any(played.card(name).failed for name in ("net0", "net1"))
    played.card("net0").set_link(True)
    assert [played.card(name).link_is_up for name in ("net0", "net1")] == [True, True]
    while played.drivers["net1"].rings[0].take():
        pass
    assert played.exchange(7)


@pytest.mark.parametrize("on", ["link.send.apply", "link.receive.apply"])
def test_a_frame_that_is_dropped_counts_as_sent(cards: Callable[[Rule], Cards], on: str) -> None:
    played = cards(rule(on, drop=True))

    assert arrivals(played) == [True, False, True]
    assert played.card("net0").link_report()["sent"] == 3
    assert drops(played) == [{}, {}]


@pytest.mark.parametrize("on", ["link.send.apply", "link.receive.apply"])
def test_a_frame_that_is_repeated_arrives_more_often(cards: Callable[[Rule], Cards], on: str) -> None:
    played = cards(rule(on, 1, duplicate=2))
    two = played.drivers["net1"]
    for place in (RECEIVED + 0x1000, RECEIVED + 0x2000):
        two.rings[0].add([], [(place, 2048)])
    played.exchange(1)

    assert 1 + buffers(played) == 3
    assert played.card("net1").link_report()["received"] == 3


@pytest.mark.parametrize("on", ["link.send.pre", "link.receive.pre"])
def test_a_frame_that_is_damaged_arrives_damaged(cards: Callable[[Rule], Cards], on: str) -> None:
    played = cards(rule(on, 1, corrupt=20, xor=3))

    assert not played.exchange(5)
    assert played.read(RECEIVED + 12, LENGTH) == b"\xff" * 6 + b"\5" * 14 + b"\6" + b"\5" * 75


@pytest.mark.parametrize(("length", "received"), [(60, 1), (14, 1), (13, 0), (0, 0)])
def test_a_frame_that_is_cut_arrives_if_it_is_one(cards: Callable[[Rule], Cards], length: int, received: int) -> None:
    played = cards(rule("link.receive.pre", 1, truncate=length))
    played.exchange(5)

    report = played.card("net1").link_report()
    assert (report["received"], report["received_bytes"]) == (received, length * received)
    assert not played.card("net1").failed


def test_a_frame_whose_header_does_not_fit_any_more_is_lost(cards: Callable[[Rule], Cards]) -> None:
    """Otherwise a card would look for a checksum behind the end of the frame."""
    played = cards(rule("link.receive.pre", 1, truncate=40))
    header = struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 34, 16)
    two = played.drivers["net1"]
    two.rings[0].add([], [(RECEIVED, 2048)])
    two.function.notify(0)
    played.card("net1").receive(header, b"\xff" * 96)
    played.settle()

    assert buffers(played) == 0
    assert not played.card("net1").failed


@pytest.mark.row("virtio", 43)
@pytest.mark.parametrize("on", ["link.send.pre", "link.receive.pre"])
@pytest.mark.parametrize("do", [{"delay": "3s"}, {"bandwidth": "32/s"}], ids=str)
def test_a_frame_may_take_its_time(cards: Callable[[Rule], Cards], on: str, do: dict[str, Any]) -> None:
    played = cards(rule(on, 1, **do))
    assert not played.exchange(1)
    assert played.agenda.run(2 * S) == 0
    played.settle()
    assert buffers(played) == 0

    assert played.agenda.run(S + 1) == 1
    played.settle()

    assert buffers(played) == 1
    assert played.read(RECEIVED + 12 + 6, 90) == bytes([1] * 90)


def test_a_frame_that_is_on_its_way_when_its_card_is_reset_is_lost(cards: Callable[[Rule], Cards]) -> None:
    played = cards(rule("link.send.pre", 1, delay="3s"))
    played.exchange(1)
    played.start("net0")
    played.agenda.run(4 * S)
    played.settle()

    assert buffers(played) == 0


def test_a_late_frame_whose_link_is_gone_fails_no_card(
    cards: Callable[[Rule], Cards], monkeypatch: pytest.MonkeyPatch
) -> None:
    played = cards(rule("link.send.pre", 1, delay="3s"))
    card = played.card("net0")
    played.exchange(1)

    def gone(*_: object) -> bool:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    monkeypatch.setattr(card._link.transmit, "call", gone)
    played.agenda.run(4 * S)

    assert not card.failed
    assert not card.link_is_up


@pytest.mark.row("virtio", 42)
@pytest.mark.parametrize("on", ["link.send.pre", "link.receive.pre"])
def test_a_link_that_flaps_is_seen_by_the_guest(cards: Callable[[Rule], Cards], on: str) -> None:
    played = cards(rule(on, unplug="3s"))
    functions = [driver.function for driver in played.drivers.values()]
    for function in functions:
        function.read(3, 0, 1)
    generations = [function["CONFIG_GENERATION"] for function in functions]

    assert arrivals(played) == [True, False, False]
    for function in functions:
        assert function.read(3, 0, 1) & 2
    assert [function.device_config(6, 2) & 1 for function in functions] == [0, 0]
    played.agenda.run(3 * S + 1)
    played.settle()

    assert [function.device_config(6, 2) & 1 for function in functions] == [1, 1]
    after = [function["CONFIG_GENERATION"] for function in functions]
    assert after == [generation + 2 for generation in generations]
    buffers(played)
    assert played.exchange(9)


def test_an_operator_who_sets_a_link_down_while_it_flaps_has_the_last_word(cards: Callable[[Rule], Cards]) -> None:
    played = cards(rule("link.send.pre", unplug="3s"))
    arrivals(played)
    played.card("net0").set_link(False)
    played.agenda.run(4 * S)

    assert not played.card("net0").link_is_up
    played.card("net0").set_link(True)
    assert played.card("net0").link_is_up


def test_a_link_that_cannot_be_made_anew_after_a_flap_stays_down(
    cards: Callable[[Rule], Cards], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As that to a tap which was deleted together with its namespace; an exception would end the server."""
    played = cards(rule("link.send.pre", unplug="3s"))
    arrivals(played)
    link = played.card("net0")._link
    link.end()

    def refuse() -> None:
        raise OSError(errno.EPERM, "net0: link tap tap0: Operation not permitted")

    monkeypatch.setattr(link, "again", refuse)
    played.agenda.run(4 * S)

    assert not played.card("net0").link_is_up
    assert [record.message for record in caplog.records if "stays down" in record.message] == [
        "net0: the link stays down after a cable was pulled: net0: link tap tap0: Operation not permitted"
    ]


def test_a_link_that_is_down_is_not_pulled_again_by_frames_that_come_late(cards: Callable[[Rule], Cards]) -> None:
    """Each would set it up again after a time of its own."""
    played = cards({**rule("link.receive.pre", unplug="3s"), "schedule": {}})
    card = played.card("net1")
    played.exchange(1)
    for _ in range(5):
        played.agenda.run(S // 2)
        card.receive(bytes(10), b"\xff" * 96)

    assert drops(played)[1] == {"link": 5}
    played.agenda.run(S // 2 + 1)
    assert card.link_is_up
    assert played.faults.holds.is_full is False
    assert played.agenda.run(10 * S) == 0


def test_a_late_frame_does_not_leave_by_a_cable_that_is_pulled(cards: Callable[[Rule], Cards]) -> None:
    played = cards(rule("link.send.pre", 1, delay="3s"))
    played.exchange(1)
    played.card("net0").set_link(False)
    played.agenda.run(4 * S)
    played.settle()
    played.card("net0").set_link(True)
    played.settle()

    assert played.card("net1").link_report()["received"] == 0
    assert buffers(played) == 0


def test_frames_that_are_held_have_a_limit_in_bytes_and_more_are_lost(
    cards: Callable[[Rule], Cards], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many frames there are is up to the guest, and each may have 64 KiB."""
    monkeypatch.setattr(links, "MOST_BYTES", 2 * LENGTH)
    played = cards({**rule("link.send.pre", delay="3s"), "schedule": {}})
    arrivals(played, 5)

    played.agenda.run(4 * S)
    played.settle()
    assert buffers(played) == 2
    played.exchange(6)
    played.agenda.run(4 * S)
    played.settle()
    assert buffers(played) == 1


def test_frames_that_were_held_when_their_card_was_reset_take_no_room_any_more(
    cards: Callable[[Rule], Cards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MOST_BYTES", 2 * LENGTH)
    played = cards({**rule("link.send.pre", suspend="it"), "schedule": {}})
    for _ in range(3):
        arrivals(played, 2)
        assert not played.card("net0").link_report()["sent_dropped"]
        assert played.faults.holds.resume("it") == 2
        arrivals(played, 2)
        played.start("net0")
        assert played.faults.holds.resume("it") == 0


def test_a_rule_may_be_for_frames_of_some_length(cards: Callable[[Rule], Cards]) -> None:
    played = cards(rule("link.send.apply", 1, {"length": f"{LENGTH}", "stream": 1}, drop=True))
    assert arrivals(played, 2) == [False, True]
    other = cards(rule("link.send.apply", 1, {"length": f"{LENGTH + 1}.."}, drop=True))
    assert arrivals(other, 2) == [True, True]
