"""Random histories: what they are, how they are compared, and that the model answers all of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pviommu.bench.players import build_player
from pviommu.interfaces.iommufd.commands import COMMANDS
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest

from ..device.vfio_run.test_running import cache
from .differences import KNOWN, Difference, compare, known
from .generator import BITMAP, KINDS, histories, history
from .players import on_the_model

__all__ = ["cache"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "vfio-user-space.md"


def test_a_history_is_the_same_for_the_same_name() -> None:
    assert history("devices-1-2", 50) == history("devices-1-2", 50)
    assert history("devices-1-2", 50)[1:] != history("devices-1-3", 50)[1:]
    names = [line.split()[1] for line in histories(7, 5, 1) if line.startswith("history ")]
    assert names == ["spaces-7-0", "devices-7-1", "compat-7-2", "type1-7-3", "spaces-7-4"]


def test_the_first_difference_of_each_history_is_found() -> None:
    lines = ["history a", "close 0", "close 1", "history b", "close 0", "history c", "close 0"]
    model = ["history a", "1", "2", "history b", "3", "history c", "4"]
    kernel = ["history a", "x", "y", "history b", "3", "history c", "z"]

    found = list(compare(lines, model, kernel))

    assert found == [Difference("a", 1, "close 0", "1", "x"), Difference("c", 1, "close 0", "4", "z")]
    assert known(found[0]) is None


def test_only_more_dirty_pages_of_type1_are_known() -> None:
    line = f"peek {BITMAP:x} 28"
    assert known(Difference("a", 1, line, "28 003c", "28 f03c")) == "dirty pages of type1"
    for difference in (
        Difference("a", 1, line, "28 f03c", "28 003c"),
        Difference("a", 1, f"peek {BITMAP + 8:x} 28", "28 003c", "28 f03c"),
    ):
        assert known(difference) is None


@pytest.mark.parametrize("row", KNOWN)
def test_what_is_known_to_differ_is_said(row: str) -> None:
    table = DOCUMENT.read_text().partition("## Where it differs from Linux")[2]
    assert f"| {row} |" in table


@pytest.mark.usefixtures("cache")
def test_the_model_answers_all_of_them_and_most_requests_succeed_somewhere(tmp_path: Path) -> None:
    lines = histories(3, 6 * len(KINDS), 150)
    answers = on_the_model(lines, build_player(tmp_path))

    made: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    results: Counter[str] = Counter()
    for line, answer in zip(lines, answers, strict=True):
        what, *words = line.split()
        result = answer.split()[0]
        if what == "history":
            assert answer == line
        if what in ("call", "value"):
            made[words[1]] += 1
            succeeded[words[1]] += not result.startswith("E")
            results[result] += 1
    every = {f"{command.request:x}" for command in COMMANDS.values()}
    every.add(f"{VfioRequest.IOMMU_DIRTY_PAGES:x}")
    assert every <= set(made)
    # what the guest's driver has not, or nobody without a virtual IOMMU, or with an IOMMU, cannot succeed
    never = {f"{0x3B00 + number:x}" for number in (0x8B, 0x8C, 0x8D, 0x90, 0x91, 0x93, 0x94, 0x95)}
    assert {name for name in made if succeeded[name]} >= every - never
    assert {"EINVAL", "ENOENT", "EEXIST", "EFAULT", "EOPNOTSUPP", "EBUSY", "E2BIG", "EOVERFLOW"} <= set(results)
