"""Eventfds are installed, replaced, taken away and signalled, and never outlive the table."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vfio_user import InterruptTable, IrqAction, IrqIndex, IrqKind, IrqRequest, RequestError
from vfio_user.interrupts import Vector

MSIX = IrqIndex.MSIX


@pytest.fixture
def table(no_fd_leak: None) -> Iterator[InterruptTable]:
    found = InterruptTable({MSIX: 4, IrqIndex.ERR: 1})
    yield found
    found.close()


@pytest.fixture
def events(no_fd_leak: None) -> Iterator[list[int]]:
    """Four eventfds as the client holds them."""
    found = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(4)]
    yield found
    for fd in found:
        os.close(fd)


def install(table: InterruptTable, start: int, events: list[int]) -> None:
    fds = tuple(os.dup(fd) for fd in events)
    table.set_irqs(IrqRequest(MSIX, start, len(fds), IrqAction.TRIGGER, IrqKind.EVENTFD, fds))


def taken(fd: int) -> int:
    """How often ``fd`` was signalled since the last call."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_trigger_signals_just_the_installed_vector(table: InterruptTable, events: list[int]) -> None:
    install(table, 1, events[:2])
    assert table.trigger(MSIX, 2)
    assert [taken(fd) for fd in events] == [0, 1, 0, 0]


def test_who_signals_by_itself_is_told_the_eventfd(table: InterruptTable, events: list[int]) -> None:
    install(table, 1, events[:2])
    fd = table.eventfd(MSIX, 2)
    assert fd is not None
    os.eventfd_write(fd, 1)
    assert [taken(fd) for fd in events] == [0, 1, 0, 0]
    assert table.eventfd(MSIX, 0) is None


@pytest.mark.parametrize(("index", "vector"), [(MSIX, 3), (MSIX, 4), (MSIX, -1), (IrqIndex.INTX, 0), (77, 0)])
@pytest.mark.row("wire", 35)
def test_trigger_without_eventfd_is_false(table: InterruptTable, index: int, vector: int) -> None:
    assert not table.trigger(index, vector)


@pytest.mark.row("wire", 30)
def test_replacing_closes_the_old_eventfd(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events[:1])
    install(table, 0, events[1:2])
    table.trigger(MSIX, 0)
    assert [taken(fd) for fd in events] == [0, 1, 0, 0]


def test_eventfd_without_descriptors_takes_away_just_these_vectors(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events)
    table.set_irqs(IrqRequest(MSIX, 1, 2, IrqAction.TRIGGER, IrqKind.EVENTFD))
    assert [table.armed(MSIX, vector) for vector in range(4)] == [True, False, False, True]


def test_no_vectors_disables_the_index_and_no_other(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events[:3])
    fd = os.dup(events[3])
    table.set_irqs(IrqRequest(IrqIndex.ERR, 0, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (fd,)))
    table.set_irqs(IrqRequest(MSIX, 0, 0, IrqAction.TRIGGER, IrqKind.NONE))
    assert not any(table.trigger(MSIX, vector) for vector in range(4))
    assert table.trigger(IrqIndex.ERR, 0)


def test_trigger_none_fires_each_vector_once(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events)
    table.set_irqs(IrqRequest(MSIX, 1, 2, IrqAction.TRIGGER, IrqKind.NONE))
    assert [taken(fd) for fd in events] == [0, 1, 1, 0]


def test_trigger_bool_fires_the_marked_vectors_once(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events)
    flags = (True, False, True)
    table.set_irqs(IrqRequest(MSIX, 1, 3, IrqAction.TRIGGER, IrqKind.BOOL, flags=flags))
    assert [taken(fd) for fd in events] == [0, 1, 0, 1]


@pytest.mark.parametrize("action", [IrqAction.MASK, IrqAction.UNMASK])
def test_mask_and_unmask_are_accepted_and_close_what_comes(
    table: InterruptTable, events: list[int], action: IrqAction
) -> None:
    install(table, 0, events[:1])
    table.set_irqs(IrqRequest(MSIX, 0, 1, action, IrqKind.NONE))
    table.set_irqs(IrqRequest(MSIX, 0, 1, action, IrqKind.EVENTFD, (os.dup(events[1]),)))
    table.trigger(MSIX, 0)
    assert [taken(fd) for fd in events] == [1, 0, 0, 0]


@pytest.mark.row("server", 8)
@pytest.mark.row("defect", "D16")
@pytest.mark.row("wire", 35)
def test_full_counter_does_not_block_and_counts_as_pending(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events[:1])
    os.eventfd_write(events[0], 2**64 - 2)
    assert table.trigger(MSIX, 0)
    os.set_blocking(events[0], True)  # the client shares the open file
    assert table.trigger(MSIX, 0)
    assert os.eventfd_read(events[0]) >= 2**64 - 2


@pytest.mark.row("server", 8)
def test_the_flags_of_the_client_are_left_alone(table: InterruptTable, events: list[int]) -> None:
    os.set_blocking(events[0], True)
    install(table, 0, events[:1])
    assert table.trigger(MSIX, 0)
    assert os.get_blocking(events[0])
    assert taken(events[0]) == 1


def test_descriptor_that_is_no_eventfd_is_refused_and_nothing_changes(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events[:1])
    reader, writer = os.pipe()
    os.close(reader)
    fds = (os.dup(events[1]), writer)
    with pytest.raises(RequestError, match="not every descriptor is an eventfd"):
        table.set_irqs(IrqRequest(MSIX, 0, 2, IrqAction.TRIGGER, IrqKind.EVENTFD, fds))
    table.trigger(MSIX, 0)
    assert [taken(fd) for fd in events] == [1, 0, 0, 0]


def test_descriptor_of_which_nothing_is_known_is_refused(
    table: InterruptTable, events: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_path: str) -> str:
        raise PermissionError("no /proc here")

    monkeypatch.setattr(os, "readlink", unreadable)
    with pytest.raises(RequestError, match="not every descriptor is an eventfd"):
        install(table, 0, events[:1])
    assert not table.armed(MSIX, 0)


@pytest.mark.parametrize(("index", "start"), [(MSIX, 4), (IrqIndex.REQ, 0)])
def test_vector_out_of_range_is_refused_and_its_descriptor_closed(
    table: InterruptTable, events: list[int], index: int, start: int
) -> None:
    fds = (os.dup(events[0]),)
    with pytest.raises(RequestError, match=r"it has \d"):
        table.set_irqs(IrqRequest(index, start, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, fds))


@pytest.mark.row("wire", 59)
def test_close_leaves_nothing_to_fire(table: InterruptTable, events: list[int]) -> None:
    install(table, 0, events)
    table.close()
    assert not table.trigger(MSIX, 0)


# -- saved states -----------------------------------------------------------------------------------------------------


def test_what_is_saved_names_vectors_and_no_descriptors(table: InterruptTable, events: list[int]) -> None:
    install(table, 1, events[:2])

    assert table.save() == ((MSIX, 1, False), (MSIX, 2, False))


def test_an_interrupt_of_a_saved_vector_waits_for_its_eventfd(table: InterruptTable, events: list[int]) -> None:
    table.load([Vector(MSIX, 1), Vector(MSIX, 2), Vector(MSIX, 3, True)])

    assert (table.trigger(MSIX, 1), table.trigger(MSIX, 0)) == (True, False)
    assert table.save() == ((MSIX, 1, True), (MSIX, 2, False), (MSIX, 3, True))
    install(table, 0, events)

    assert [taken(fd) for fd in events] == [0, 1, 0, 1]
    assert table.trigger(MSIX, 2)
    assert [taken(fd) for fd in events] == [0, 0, 1, 0]
    assert [each.is_owed for each in table.save()] == [False] * 4


def test_an_interrupt_that_is_owed_comes_at_once_if_the_eventfd_is_there(
    table: InterruptTable, events: list[int]
) -> None:
    install(table, 0, events[:2])

    table.load([Vector(MSIX, 1, True)])

    assert [taken(fd) for fd in events] == [0, 1, 0, 0]


@pytest.mark.parametrize("how", ["vector", "index", "closed"])
def test_a_vector_that_the_client_takes_away_is_waited_for_no_more(table: InterruptTable, how: str) -> None:
    table.load([Vector(MSIX, 1, True)])

    if how == "closed":
        table.close()
    else:
        kind, count = (IrqKind.EVENTFD, 2) if how == "vector" else (IrqKind.NONE, 0)
        table.set_irqs(IrqRequest(MSIX, 0, count, IrqAction.TRIGGER, kind))

    assert table.save() == ()
    assert not table.trigger(MSIX, 1)


@pytest.mark.parametrize("vector", [Vector(MSIX, 4), Vector(MSIX, -1), Vector(IrqIndex.INTX, 0)])
def test_a_vector_that_there_is_not_is_not_loaded(table: InterruptTable, vector: Vector) -> None:
    table.load([Vector(MSIX, 1)])

    with pytest.raises(ValueError, match=f"vector {vector.number} of index {vector.kind:d}: it has"):
        table.load([Vector(MSIX, 2), vector])

    assert table.save() == ((MSIX, 1, False),)


def test_vectors_that_somebody_else_keeps_are_triggered_there(table: InterruptTable, events: list[int]) -> None:
    told: list[tuple[int, int]] = []
    install(table, 1, events[:1])
    table.elsewhere = lambda index, vector: told.append((index, vector)) or vector == 2  # type: ignore[func-returns-value]
    assert [table.trigger(MSIX, vector) for vector in (1, 2, 3)] == [True, True, False]
    assert told == [(MSIX, 2), (MSIX, 3)]
    assert taken(events[0]) == 1
