"""Conditions on what probes are told."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pviommu.documents import WrongValueError
from pviommu.faults.catalogue import PROBES
from pviommu.faults.where import Where, number_range

MAP, TRANSLATE = PROBES["op.map_pages"], PROBES["dma.translate"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, (3, 3)),
        ("0x10", (16, 16)),
        ("0x1000..0x1fff", (0x1000, 0x1FFF)),
        ("5..", (5, (1 << 64) - 1)),
        ("..5", (0, 5)),
        (" 1 .. 2 ", (1, 2)),
    ],
)
def test_numbers_and_ranges(value: Any, expected: tuple[int, int]) -> None:
    assert number_range(value) == expected


@pytest.mark.parametrize("value", ["", "..", "5..2", -1, True, 1.5, "x", "1-2", "1 << 64", 1 << 64])
def test_what_is_no_range(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a number or a range"):
        number_range(value)


@pytest.mark.parametrize(
    ("dfn", "holds"),
    [((0xF00, 0xFFF), False), ((0xFFF, 0x1000), True), ((0x1FFF, 0x3000), True), ((0x2000, 0x2000), False)],
)
def test_spans_need_only_overlap(dfn: tuple[int, int], holds: bool) -> None:
    assert Where({"dfn": "0x1000..0x1fff"}, [MAP]).holds({"dfn": dfn}) is holds


def test_all_conditions_must_hold_and_what_is_not_told_holds_none() -> None:
    where = Where({"ctx": 3, "nr": "2.."}, [MAP])

    assert where.holds({"ctx": 3, "nr": 2})
    assert not where.holds({"ctx": 3, "nr": 1})
    assert not where.holds({"nr": 2})
    assert where.broken({"ctx": 4, "nr": 1}) == ["ctx", "nr"]


@pytest.mark.parametrize("given", ["00:05.0", "0000:00:05.0", "*:05.?", "0000:00:*"])
def test_a_device_is_named_with_or_without_its_segment(given: str) -> None:
    where = Where({"device": given}, [TRANSLATE])

    assert where.holds({"device": "0000:00:05.0"})
    assert not where.holds({"device": "0001:00:06.0"})


def test_a_key_that_no_probe_tells_is_an_error_with_those_that_are() -> None:
    with pytest.raises(WrongValueError, match="where has no key iova here, but ctx, dfn, gfn, nr, flags, function"):
        Where({"iova": 1}, [MAP])
    Where({"iova": 1}, [MAP, TRANSLATE])  # one of them does


@pytest.mark.parametrize(
    "value", ["010", "010..", "9" * 5000, "0.." + "9" * 5000, "\u0663", "0x" + "f" * 50_000, [[1]]]
)
def test_what_python_would_refuse_to_read_is_told_like_the_rest_and_briefly(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a number or a range") as error:
        number_range(value)

    assert len(str(error.value)) < 250


def test_a_text_of_blanks_is_refused_at_once() -> None:
    before = time.process_time()

    with pytest.raises(ValueError, match="must be a number or a range"):
        number_range(" " * 60_000 + "x")

    assert time.process_time() - before < 0.1  # by trying each blank in turn it took seconds


def test_a_pattern_of_names_has_a_largest_size() -> None:
    with pytest.raises(WrongValueError, match="must have at most 256 characters"):
        Where({"device": "*a" * 200}, [TRANSLATE])
