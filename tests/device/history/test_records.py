"""The ring of records."""

import pytest

from pviommu.engine import Stop
from pviommu.history.records import NOBODY, STOPS, History, Kind, entry_of


def add(history, count):
    return [history.add(1000 * place, Kind.MAP, 1, dfn=place, nr=1, done=1) for place in range(count)]


def test_records_have_numbers_without_gaps_and_come_last_one_first():
    history = History(8)

    assert add(history, 3) == [0, 1, 2]
    assert [(record.number, record.dfn, record.time_ns) for record in history.back()] == [
        (2, 2, 2000),
        (1, 1, 1000),
        (0, 0, 0),
    ]


@pytest.mark.parametrize("size", [1, 3, 256, 300])
def test_the_oldest_ones_go(size):
    history = History(size)
    add(history, 1000)

    kept = list(history.back())
    assert [record.number for record in kept] == list(range(999, 999 - size, -1))
    assert all(record.dfn == record.number for record in kept)
    assert history.oldest == 1000 - size


def test_those_before_a_number_are_found():
    history = History(8)
    add(history, 5)

    assert [record.number for record in history.back(2)] == [1, 0]
    assert [record.number for record in history.back(99)] == [4, 3, 2, 1, 0]


def test_those_of_one_page_are_found_among_many_in_bounded_steps():
    history = History(2000)
    add(history, 1500)
    history.add(0, Kind.RESET, 0)
    history.add(0, Kind.UNMAP, 3, dfn=600, nr=100)

    steps = list(history.on_page(700 - 1))
    assert [record.number for records in steps for record in records] == [1501, 1500, 699]
    assert len(steps) > 5
    assert [record.number for records in history.on_page(699, least=1000) for record in records] == [1501, 1500]
    assert [record.number for records in history.on_page(699, 1500) for record in records] == [699]


def test_what_goes_while_it_is_read_is_left_out():
    history = History(600)
    add(history, 600)
    reading = history.back()
    seen = [next(reading).number for _ in range(256)]  # what was read at once
    add(history, 500)

    seen += [record.number for record in reading]
    assert seen[:256] == list(range(599, 343, -1))
    assert seen[256:] == []  # 500 to 599 are left of the first ones, and those were read


def test_every_field_of_a_record_is_kept():
    history = History(2)
    number = history.add(
        *(5, Kind.UNMAP, 7),
        dfn=(1 << 64) - 1,
        gfn=9,
        nr=10,
        done=3,
        before=entry_of((9, 3)),
        after=12,
        access=3,
        stop=STOPS.index(Stop.MAPPED),
        stream=4,
        ring=2,
    )
    history.complete(number, 0xFFFFFFFE, 77, -17)

    assert next(history.back()) == (
        *(0, 5, (1 << 64) - 1, 9, 10, 3, 9 << 2 | 3, 12, 7, 4, 2),
        *(0xFFFFFFFE, 77, -17, 0, Kind.UNMAP, 3, STOPS.index(Stop.MAPPED), 0),
    )


def test_a_record_that_is_gone_is_not_completed():
    history = History(2)
    add(history, 3)
    history.complete(0, 1, 2, 3)

    assert [(record.number, record.slot, record.result) for record in history.back()] == [(2, 0, 0), (1, 0, 0)]


def test_every_stop_of_the_engine_has_a_number():
    assert set(Stop) <= set(STOPS)


def test_a_history_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a history of 0 operations: must be 1 or more"):
        History(0)


def test_nobody_is_no_ring_and_no_stream():
    history = History(1)
    add(history, 1)

    assert (next(history.back()).ring, next(history.back()).stream) == (NOBODY, NOBODY)
