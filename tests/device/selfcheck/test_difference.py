"""What a difference says."""

from __future__ import annotations

import pytest

from pviommu.selfcheck.difference import Difference, require


def test_equal_things_are_no_difference() -> None:
    require("ring", "counts", (1, 2), (1, 2))


def test_a_difference_names_the_path_what_was_compared_and_both_sides() -> None:
    with pytest.raises(Difference) as caught:
        require("ring", "payload", b"\x01", b"\x02")

    assert str(caught.value) == "ring: payload: expected 01, found 02"
    assert (caught.value.path, caught.value.what) == ("ring", "payload")


def test_long_values_are_cut() -> None:
    with pytest.raises(Difference, match=r"a\.\.\. \(1002 characters\)") as caught:
        require("ring", "text", "a" * 1000, None)

    assert len(str(caught.value)) < 500
