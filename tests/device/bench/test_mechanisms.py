"""Guests of a ring and ends of a bare exchange, with a device and a far end that answer in a thread or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from pviommu.bench.cores import PROBE
from pviommu.bench.mechanisms import STOP_WORD, Mechanism, NativeMechanism, PythonMechanism, RingPlace, RingUse
from pviommu.native.build import build, find_compiler

ENTRIES = 4
PRODUCER, COMPLETED, WISH = 0, 16, 17
SLOTS = 256
TEMPLATES = b"m" * 64 + b"u" * 64


class Device:
    """Completes slots when told to; ``wish`` is the index whose passing asks for a doorbell."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.memory = memoryview(bytearray(4096))
        self.words = self.memory.cast("I")
        self.wish(0x80000000)
        place = RingPlace(self.memory, SLOTS, ENTRIES, PRODUCER, COMPLETED, WISH, TEMPLATES)
        self.ring: RingUse = mechanism.ring(place)

    def wish(self, index: int) -> None:
        self.words[WISH] = index

    def complete(self) -> None:
        self.words[COMPLETED] = self.words[PRODUCER]

    def slot(self, number: int) -> bytes:
        return bytes(self.memory[SLOTS + number * 64 : SLOTS + number * 64 + 64])

    def close(self) -> None:
        self.ring.close()
        self.words.release()
        self.memory.release()


@pytest.fixture(scope="module", params=["python", *(["native"] if find_compiler() else [])])
def mechanism(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mechanism:
    if request.param == "python":
        return PythonMechanism()
    cache = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    return NativeMechanism(build(cache, sources=PROBE))


@pytest.fixture
def device(mechanism: Mechanism) -> Iterator[Device]:
    made = Device(mechanism)
    yield made
    made.close()


def test_a_waited_slot_stops_for_the_doorbell_that_the_device_asks_for(device: Device) -> None:
    device.wish(0)
    assert not device.ring.waited(1)
    assert (device.ring.submitted, device.words[PRODUCER]) == (1, 1)
    device.complete()
    assert device.ring.waited(1)
    assert device.ring.complete()


def test_waited_slots_follow_each_other_only_when_complete(device: Device) -> None:
    device.wish(1)  # the second one rings
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            if device.words[PRODUCER] == 1:
                device.words[COMPLETED] = 1

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert not device.ring.waited(3)
    finally:
        stop.set()
        thread.join()
    assert device.ring.submitted == 2
    assert (device.slot(0), device.slot(1)) == (TEMPLATES[:64], TEMPLATES[64:])


def test_posted_slots_fill_the_ring_before_anything_is_waited_for(device: Device) -> None:
    device.wish(2)
    assert device.ring.posted(ENTRIES)
    assert device.words[PRODUCER] == ENTRIES
    assert not device.ring.posted(ENTRIES + 1)  # full, and the device sleeps
    assert device.ring.submitted == ENTRIES
    device.complete()
    assert device.ring.posted(ENTRIES + 1)
    device.complete()
    assert device.ring.complete()


def test_a_doorbell_is_asked_for_once(device: Device) -> None:
    device.wish(0)
    assert not device.ring.waited(1)
    timer = threading.Timer(0.01, device.complete)
    timer.start()
    assert device.ring.complete()  # without asking again meanwhile
    timer.join()


def test_a_wish_that_lies_ahead_is_none_yet(device: Device) -> None:
    device.wish(1)
    device.ring.posted(1)
    device.complete()
    assert device.ring.complete()


def test_words_go_and_come_back_until_the_far_end_is_stopped(mechanism: Mechanism) -> None:
    memory = memoryview(bytearray(4096))
    words = memory.cast("I")
    far = threading.Thread(target=mechanism.pong, args=(memory,))
    far.start()
    near = mechanism.exchange(memory)
    try:
        assert near.ping(1, 50)
        assert words[0] == words[16] == 50
    finally:
        words[STOP_WORD] = 1
        far.join()
        near.close()


def test_a_far_end_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.bench.mechanisms._MOST_LOOKS", 10)
    near = PythonMechanism().exchange(memoryview(bytearray(4096)))
    assert not near.ping(1, 1)
    near.close()
