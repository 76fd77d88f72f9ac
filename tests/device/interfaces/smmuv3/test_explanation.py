"""What is said of an address: what decides about it, read by read, and what is cached otherwise."""

from __future__ import annotations

import pytest

from pviommu.engine import Access
from pviommu.interfaces.smmuv3.explanation import Explained
from smmuv3.events import EventType
from smmuv3.structures import STE_SIZE

from .conftest import CD0, CDS, IOVA, LEAF, OUTSIDE, PAGE, SID, STREAM, STTB, TABLE, TTB, VTCR, Guest


def explained(guest: Guest, iova: int = IOVA, access: Access = Access.WRITE) -> Explained:
    return guest.smmu.explain(STREAM, iova, access)


def test_a_mapped_address_leads_somewhere_and_each_read_is_told(started: Guest) -> None:
    found = explained(started)

    assert (found.event, found.leads_to) == (None, PAGE | 0x560)
    assert found.text == f"it leads to {PAGE | 0x560:#x} by stage 1"
    assert [(seen.what, seen.level) for seen in found.reads] == [
        *(("STE", None), ("CD", None)),
        *(("stage 1", level) for level in range(4)),
    ]
    assert found.reads[0].address == TABLE + SID * STE_SIZE
    assert found.reads[0].fields["S1CONTEXTPTR"] == CDS
    assert found.reads[1].fields["ASID"] == 7
    assert found.reads[-1].address == started.leaf
    assert found.reads[-1].report()["value"] == f"{PAGE | LEAF:016x}"


def test_it_changes_nothing_and_nobody_is_told(started: Guest) -> None:
    started.store_words(started.leaf, 0)

    found = explained(started)

    assert found.event is EventType.F_TRANSLATION
    assert found.text == (
        f"F_TRANSLATION: the address is not mapped: stage 1 read 0000000000000000 at {started.leaf:#x} (level 3)"
    )
    assert started.records() == []
    assert len(started.smmu.caches.streams) == 0


def test_what_is_cached_otherwise_is_named(started: Guest) -> None:
    assert started.put() is None
    started.store_words(started.leaf, PAGE + 0x1000 | LEAF)
    assert explained(started).cached == [f"stage 1: {IOVA:#x} leads to {PAGE | 0x560:#x}"]

    started.ste(0)
    assert explained(started).cached == ["STE"]


def test_a_write_that_is_refused_and_a_read_that_is_not(started: Guest) -> None:
    started.store_words(started.leaf, PAGE | LEAF | 1 << 7)

    assert explained(started).event is EventType.F_PERMISSION
    assert explained(started, access=Access.READ).event is None


@pytest.mark.parametrize(
    ("ste", "event", "text"),
    [
        (0, EventType.C_BAD_STE, f"C_BAD_STE: its stream table entry is illegal: STE at {TABLE + SID * STE_SIZE:#x}"),
        (1, None, "its stream table entry aborts everything"),
        (OUTSIDE | 0xB, EventType.F_CD_FETCH, f"F_CD_FETCH: its context descriptor cannot be read: CD at {OUTSIDE:#x}"),
    ],
)
def test_a_stream_table_entry_that_is_the_reason(started: Guest, ste: int, event: EventType, text: str) -> None:
    started.ste(ste)

    found = explained(started)

    assert (found.event, found.text, found.leads_to) == (event, text, None)


def test_a_table_that_cannot_be_read_is_empty(started: Guest) -> None:
    started.cd(ttb0=OUTSIDE)

    found = explained(started)

    assert found.event is EventType.F_WALK_EABT
    assert found.reads[-1].value == b""
    assert found.text.endswith(f": stage 1 read nothing at {OUTSIDE + 8:#x} (level 0)")


def test_that_nobody_is_told_is_said(started: Guest) -> None:
    started.cd(CD0 & ~(1 << 45))
    started.store_words(started.leaf, 0)

    assert explained(started).text.endswith("; nobody is told")


@pytest.mark.parametrize(
    ("gbpa", "leads_to", "text"),
    [
        (0x80001000, IOVA, "translation is off (CR0.SMMUEN), and addresses pass as they are"),
        (0x80101000, None, "translation is off (CR0.SMMUEN), and everything is aborted"),
    ],
)
def test_while_translation_is_off(guest: Guest, gbpa: int, leads_to: int | None, text: str) -> None:
    guest.driver.set("GBPA", gbpa)

    found = explained(guest)

    assert (found.leads_to, found.text) == (leads_to, text)


def test_both_stages_are_told_apart(make_guest) -> None:
    guest = make_guest(stage2=True).start()
    guest.ste(CDS | 7 << 1 | 1, 0xD6, VTCR, STTB)
    for place in (CDS, TTB, PAGE):
        guest.map(place & ~0x1F_FFFF | 0x7F1, place, root=STTB, bits=44, stop=2)
    missing = explained(guest)
    assert {seen.what for seen in missing.reads} == {"STE", "CD", "stage 1", "stage 2"}
    assert "stage 2 of the address" in missing.text


def test_a_first_level_of_the_stream_table_is_told(started: Guest) -> None:
    started.store_words(TABLE, TABLE + 0x1_0000 | 9)
    started.driver.reset(TABLE, 1 << 16 | 8 << 6 | 16)

    assert [seen.what for seen in explained(started).reads] == ["L1STD", "STE"]
