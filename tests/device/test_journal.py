"""What is recorded comes back, in order and from the same source, and nothing is called for it."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pviommu.counters import Counters
from pviommu.host.loop import Loop
from pviommu.host.pacing import Pace
from pviommu.host.work import Work
from pviommu.inputs import InputKind, LiveInputs, Source, WorkOutcome
from pviommu.journal import DivergedError, Entry, JournalEndError, JournalInputs, ReplayInputs
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import EndpointSection, Topology
from vfio_user import RequestError

SENT = Source(InputKind.SENT, "dma0")
DESCRIPTOR = Source(InputKind.DESCRIPTOR, "dma0")


def never(*_: object) -> int:
    raise AssertionError("a replay calls nothing")


def refused_one() -> int:
    raise RequestError(errno.EINVAL, "no")


def test_values_and_errors_come_back_in_order() -> None:
    journal = JournalInputs(LiveInputs())
    lasting = [3, 4]
    length, refuse = journal.of(SENT, len), journal.of(DESCRIPTOR, refused_one)
    assert length("four") == 4
    with pytest.raises(RequestError):
        refuse()
    with pytest.raises(OSError):
        journal.of(SENT, os.close)(-1)
    journal.of(SENT, lambda: lasting)()
    lasting.clear()  # by the device, which owns it
    now = journal.now_ns()

    replayed = ReplayInputs(journal.entries)
    assert replayed.of(SENT, never)() == 4
    with pytest.raises(RequestError, match="no") as refused:
        replayed.of(DESCRIPTOR, never)()
    assert refused.value.errno == 22
    with pytest.raises(OSError) as failed:
        replayed.of(SENT, never)()
    assert failed.value.errno == errno.EBADF
    assert replayed.of(SENT, never)() == [3, 4]
    assert replayed.now_ns() == now
    with pytest.raises(JournalEndError, match="after 5 entries, at clock"):
        replayed.now_ns()


def test_another_source_than_the_recorded_one_is_named() -> None:
    replayed = ReplayInputs([Entry(Source(InputKind.RING_INDEX, 1), 7)])

    with pytest.raises(DivergedError, match="entry 0 is of index of ring 1, and the device asks for index of ring 2"):
        replayed.words(Source(InputKind.RING_INDEX, 2))(memoryview(bytearray(4)).cast("I"), 0)


def test_a_copy_of_another_length_is_another_session() -> None:
    source = Source(InputKind.GUEST_MEMORY, "dma0")

    with pytest.raises(DivergedError, match="entry 0 has 3 bytes of guest memory of dma0, and the device asks for 4"):
        ReplayInputs([Entry(source, b"abc")]).copies(source)(memoryview(bytearray(4)))


def test_memory_of_a_replay_holds_what_was_read_there() -> None:
    source = Source(InputKind.RING_INDEX, 0)
    journal = JournalInputs(LiveInputs())
    memory = journal.of(Source(InputKind.MAPPED), mmap.mmap)(-1, 4096)
    memory[:] = b"\5\0\0\0" * 1024
    view = memoryview(memory)
    words = view.cast("I")
    assert (journal.words(source)(words, 2), journal.copies(source)(view[:2])) == (5, b"\5\0")

    replayed = ReplayInputs(journal.entries)
    again = replayed.of(Source(InputKind.MAPPED), mmap.mmap)(99999, 4096)
    assert again[:] == bytes(4096)
    fresh = memoryview(again)
    assert replayed.words(source)(fresh.cast("I"), 2) == 5
    assert replayed.copies(source)(fresh[:2]) == b"\5\0"
    assert again[:12] == b"\5\0\0\0\0\0\0\0\5\0\0\0"


class Owner:
    generation = 0


def played(inputs: object, turns: int | None) -> tuple[list[str], int]:
    """A loop with work for a thread, until it is told of: what it was told, and the turns it took."""
    told: list[str] = []
    machine = Machine.build(
        Topology(endpoint=(EndpointSection("dma0", "dma-test", 1),)), Environment(inputs, Counters())
    )  # type: ignore[arg-type]
    loop = Loop(Work(machine), inputs, machine.counters, Pace())  # type: ignore[arg-type]
    work = (lambda: "done") if turns is None else never
    loop.submit(Owner(), work, lambda outcome: told.append(outcome.result()))
    count = 0
    while not told if turns is None else count < turns:
        loop.turn()
        count += 1
    loop.close()
    machine.close()
    return told, count


def test_the_work_of_a_thread_is_not_done_again_and_what_came_of_it_is_told() -> None:
    journal = JournalInputs(LiveInputs())
    told, turns = played(journal, None)
    assert told == ["done"]

    replayed = ReplayInputs(journal.entries)
    assert played(replayed, turns) == (["done"], turns)
    assert replayed.position == len(journal.entries)
    assert Entry(Source(InputKind.FINISHED), [WorkOutcome(1, "done")]) in journal.entries
