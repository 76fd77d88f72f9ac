"""Charts: well-formed, to scale, with every label."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pviommu.bench.plot import ChartBar, bar_chart

SVG = "{http://www.w3.org/2000/svg}"


def bars_of(chart: str) -> list[float]:
    """Widths of the rectangles that stand for parts."""
    found = ElementTree.fromstring(chart).iter(f"{SVG}rect")
    return [float(one.get("width", 0)) for one in found if one.get("height") == "15"]


def test_parts_are_to_scale() -> None:
    found = bars_of(bar_chart("t", "us", ("map", "unmap"), [ChartBar("a", (1, 3), 4, 4), ChartBar("b", (2, 0), 2, 2)]))
    assert found[1] == pytest.approx(3 * found[0], abs=0.1)
    assert found[2] == pytest.approx(2 * found[0], abs=0.1)


def test_texts_are_escaped_and_all_there() -> None:
    chart = bar_chart("map & unmap", "us", ("<map>",), [ChartBar("a<b", (1,), 0.5, 2)])
    texts = [one.text for one in ElementTree.fromstring(chart).iter(f"{SVG}text")]
    assert {"map & unmap", "us", "<map>", "a<b", "1 (0.50-2)"} <= set(texts)


def test_a_whisker_far_beyond_all_bars_leaves_them_their_length() -> None:
    [disturbed] = bars_of(bar_chart("t", "us", ("map",), [ChartBar("a", (1,), 1, 100)]))
    [calm] = bars_of(bar_chart("t", "us", ("map",), [ChartBar("a", (1,), 1, 1)]))
    assert disturbed > calm / 2
    assert "(1-100)" in bar_chart("t", "us", ("map",), [ChartBar("a", (1,), 1, 100)])


@pytest.mark.parametrize("bars", [[], [ChartBar("a", (0, 0), 0, 0)], [ChartBar("a", (1e6,), 0, 1e6)]])
def test_nothing_and_extremes_make_a_chart_too(bars: list[ChartBar]) -> None:
    assert ElementTree.fromstring(bar_chart("t", "us", (), bars)).tag == f"{SVG}svg"
