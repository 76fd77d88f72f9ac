"""The known differences: the rows of the page, and none that excuses more than it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pviommu.differential.comparison import Found
from pviommu.differential.known import DIFFERENCES, FIXES, judge
from pviommu.differential.stimuli import Write, draw

SID = 8 << 32
IOVA = 0x8080604560
PLAIN = next(
    stimulus
    for stimulus in (draw(f"plain/{number}", False) for number in range(500))
    if stimulus.kind == "transactions"
    and not stimulus.scene.changed
    and stimulus.scene.stage1
    and not stimulus.scene.stage2
    and isinstance(stimulus.steps[-1], Write)
    and stimulus.steps[-1].times == 1
)
LAST = len(PLAIN.steps) - 1


def test_each_has_a_row_in_the_table_of_the_page(checkout: Path) -> None:
    page = (checkout / "docs/smmuv3.md").read_text(encoding="utf-8")
    table = page.split("## Where others differ")[1].split("\n\n")[2]
    rows = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert {*FIXES, *DIFFERENCES} <= set(rows)
    others = {"---", "C_BAD_STREAMID", "an access across a page, or not aligned"}  # not drawn
    assert set(rows) == {*FIXES, *DIFFERENCES} | others


@pytest.mark.parametrize(
    ("row", "theirs", "ours"),
    [
        ("fetch address of F_CD_FETCH", (SID | 9, 0, 0x8000_0000, 0), (SID | 9, 0, 0, 0x8000_0000)),
        (
            "stage 2 refuses a lower table of stage 1",
            (SID | 0x10, 1 << 40, IOVA, 0x1000),
            (SID | 0x10, 1 << 40 | 1 << 39, IOVA, 0x1000),
        ),
        (
            "RnW of faults of class TT and CD",
            (SID | 0x13, 1 << 40 | 1 << 39 | 1 << 35, IOVA, 0x1000),
            (SID | 0x13, 1 << 40 | 1 << 39 | 1 << 44, IOVA, 0x1000),
        ),
        (
            "IPA of an event",
            (SID | 0x10, 2 << 40 | 1 << 39, IOVA, IOVA),
            (SID | 0x10, 2 << 40 | 1 << 39, IOVA, IOVA & ~0xFFF),
        ),
        (
            "IPA of a refused first table",
            (SID | 0x10, 1 << 40 | 1 << 39, IOVA, 0x1_0000),
            (SID | 0x10, 1 << 40 | 1 << 39, IOVA, 0x1_3000),
        ),
    ],
)
def test_what_qemu_does_to_an_event_is_undone(row: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    judgement = judge(PLAIN, [Found(LAST, "events", (ours,), (theirs,))])

    assert (judgement.unexplained, judgement.met) == ([], {row})


FAULT = (SID | 0x10, 2 << 40, IOVA, 0)


@pytest.mark.parametrize(
    ("what", "ours", "theirs"),
    [
        ("events", (FAULT,), ()),
        ("events", (FAULT,), ((SID | 0x13, 2 << 40, IOVA, 0),)),
        ("events", (FAULT,), ((SID | 0x10, 2 << 40, IOVA ^ 8, 0),)),
        ("events", (FAULT,), ((SID | 0x10, 2 << 40 | 1 << 35, IOVA, 0),)),
        ("events", (FAULT,), (FAULT, FAULT)),
        ("events", ((SID | 4, 0, 0, 0),), (FAULT,)),
        ("done", True, False),
        ("where it led", True, False),
        ("interrupts", {0}, set()),
        ("active", 0, 1),
        ("CR0", 0xD, 0x5),
        ("CMDQ_CONS", 4, 5),
        ("GERROR", 0, 1),
    ],
)
def test_a_difference_that_no_row_is_about_is_not_excused(what: str, ours: object, theirs: object) -> None:
    found = Found(LAST, what, ours, theirs)

    assert judge(PLAIN, [found]).unexplained == [found]


@pytest.mark.parametrize("opcode", [0x03, 0x12, 0x30, 0x46])
def test_a_command_that_both_have_and_one_stops_at_is_not_excused(opcode: int) -> None:
    found = Found(LAST, "stopped at", bytes([opcode]) + bytes(15), None)

    assert judge(PLAIN, [found]).unexplained == [found]


def test_behind_what_makes_both_sides_differ_nothing_counts() -> None:
    stopped = Found(LAST, "stopped at", bytes([0x40]) + bytes(15), None)
    later = Found(LAST, "consumer", 5, 6)

    judgement = judge(PLAIN, [stopped, later])
    assert (judgement.unexplained, judgement.met) == ([], {"commands without their feature"})
    assert judge(PLAIN, [later, stopped]).unexplained == [later]
