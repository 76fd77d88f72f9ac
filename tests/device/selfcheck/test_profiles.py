"""What guests must see, in numbers that are written down here once more."""

from __future__ import annotations

import errno
import struct

import pytest

from pviommu.selfcheck.operations import Alloc, Attach, Batch, Lookup, Map, Unmap
from pviommu.selfcheck.oracle import BatchOutcome
from pviommu.selfcheck.profiles import ERRNO, Interface, Seen, interface
from pviommu.selfcheck.settings import Setting

SEEN = Seen(lambda: (1, 2, 24, 3), 1, {1: {}})
DONE = (0, None, None)


@pytest.fixture
def old() -> Interface:
    return interface(Setting(profile="xen-2024", max_nr_pages=256))


@pytest.fixture
def new() -> Interface:
    return interface(Setting(profile="xen-v7"))


@pytest.mark.parametrize(
    ("kind", "stop", "before", "after"),
    [
        ("map", "MAPPED", errno.EADDRINUSE, errno.EADDRINUSE),
        ("map", "NOT_RAM", errno.EPERM, errno.ENOENT),
        ("map", "RESERVED", errno.EADDRINUSE, errno.EADDRNOTAVAIL),
        ("map", "POOL_EXHAUSTED", errno.ENOMEM, errno.ENOMEM),
        ("map", "NO_DOMAIN", errno.EINVAL, errno.EINVAL),
        ("map", "OUT_OF_APERTURE", errno.ERANGE, errno.ERANGE),
        ("unmap", "NOT_MAPPED", errno.ENOENT, errno.ENOENT),
        ("unmap", "RESERVED", errno.ENOENT, errno.EADDRNOTAVAIL),
        ("attach", "NO_ENDPOINT", errno.ENOENT, errno.ENODEV),
        ("attach", "NO_DOMAIN", errno.ENOENT, errno.ENOENT),
        ("alloc", "NO_FREE_CONTEXT", errno.ENOSPC, errno.ENOSPC),
        ("free", "ENDPOINTS_ATTACHED", errno.EBUSY, errno.EBUSY),
        ("bind", "BOUND", errno.EEXIST, errno.EEXIST),
    ],
)
def test_each_profile_has_its_errno(kind: str, stop: str, before: int, after: int) -> None:
    assert (ERRNO["xen-2024"][kind][stop], ERRNO["xen-v7"][kind][stop]) == (before, after)


def test_the_2024_profile_assigns_the_count_of_pages(old: Interface) -> None:
    given = old.submission(Map(1, 0x100, 0x10, 5)).payload

    result, payload = old.expected(Map(1, 0x100, 0x10, 5), given, 0, (2, "MAPPED", 0x102), SEEN)

    assert result == -98
    assert payload == struct.pack("<HHIQQII16x", 5, 1, 3, 0x10, 0x100, 5, 2)


def test_the_2024_profile_leaves_the_count_alone_without_a_context(old: Interface) -> None:
    given = old.submission(Unmap(9, 0x100, 5)).payload

    assert old.expected(Unmap(9, 0x100, 5), given, 0, (0, "NO_DOMAIN", None), SEEN) == (-22, given)


def test_the_v7_profile_adds_to_the_count_of_pages(new: Interface) -> None:
    given = new.submission(Map(1, 0x100, 0x10, 5)).payload

    result, payload = new.expected(Map(1, 0x100, 0x10, 5), given, 0, (2, "MAPPED", 0x102), SEEN)

    assert result == -98
    assert payload == struct.pack("<HHIQQIIII8x", 1, 0, 0, 0x10, 0x100, 3, 4096, 5, 0xAAAA + 2)


def test_in_v7_a_reserved_page_outranks_a_frame_that_is_not_ram(new: Interface, old: Interface) -> None:
    answer = (0, "NOT_RAM", 0xFEE00)

    assert (new.errno("map", answer), old.errno("map", answer)) == (-99, -1)


def test_sizes_are_limited_in_2024_only(old: Interface, new: Interface) -> None:
    assert (old.refuses(Map(9, 0, 0, 257)), old.refuses(Unmap(9, 0, 257))) == (7, 7)
    assert (new.refuses(Map(9, 0, 0, 257)), new.refuses(Unmap(9, 0, 257))) == (0, 0)


def test_unknown_access_bits_are_refused_before_a_size(old: Interface) -> None:
    assert old.refuses(Map(1, 0, 0, 257, 4)) == 22


@pytest.mark.parametrize(
    ("op", "outcome", "expected"),
    [
        (Lookup(9, 0), "NOT_MAPPED", -22),
        (Lookup(0, 0), (0, 3), -2),
        (Lookup(1, 0), "NOT_MAPPED", -2),
        (Lookup(1, 0), (5, 3), 0),
        (Attach(0x28, 1), DONE, 0),
        (Alloc(), (0, "NO_FREE_CONTEXT", None), -28),
    ],
)
def test_results_of_2024(old: Interface, op: Lookup | Attach | Alloc, outcome: object, expected: int) -> None:
    assert old.expected(op, old.submission(op).payload, 0, outcome, SEEN)[0] == expected


def test_a_batch_that_stops_is_a_fault_and_counts_what_was_done(old: Interface) -> None:
    op = Batch(1, False, ((1, 1, 3), (2, 2, 3), (3, 3, 3)))
    outcome = BatchOutcome((DONE, (0, "MAPPED", 2)))

    result, payload = old.expected(op, bytes(48), 0, outcome, SEEN)

    assert (result, payload) == (-14, struct.pack("<QIIHHI24x", 0, 0, 0, 0, 0, 1))


def test_a_profile_initialises_itself_if_it_must(old: Interface, new: Interface) -> None:
    assert old.set_up == ()
    assert [submission.payload[:8] for submission in new.set_up] == [struct.pack("<II", 4, 5)]
