"""What is said of refused DMA in which a rule had a part."""

from __future__ import annotations

from typing import Any

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.history.faults import FaultLog
from pviommu.history.records import History

from .conftest import Faulty, Load, scenario

MAP, UNMAP = "op.map_pages.apply", "op.unmap_pages.apply"


def with_history(faulty: Faulty) -> tuple[FaultLog, int]:
    """Its log of faults, and a context that dma0 is in."""
    faults = faulty.driver.iommu.keep_history(History(64))
    return faults, faulty.driver.attached()


def refused(faulty: Faulty, faults: FaultLog, iova: int) -> dict[str, Any]:
    with pytest.raises(DmaRefusedError):
        faulty.driver.dma_write("dma0", iova, b"x")
    said = faults.kept[-1].explanation
    assert said is not None
    return said.report()


@pytest.mark.parametrize("place", ["dma.translate.pre", "dma.translate.post"])
def test_a_request_that_a_rule_refused(load: Load, place: str) -> None:
    faulty = load({"id": "no", "on": place, "do": {"fail": "NOT_MAPPED"}, "schedule": {"times": 1}})
    faults, ctx = with_history(faulty)
    assert faulty.driver.map(ctx, 0x10, 0x100, 1)[0] == 0

    said = refused(faulty, faults, 0x10000)
    assert (said["cause"], said["text"]) == (
        "refused-by-rule",
        f"rule no (fail at {place}) refused it; it is mapped: gfn 0x100, for READ|WRITE",
    )
    assert [(act["rule"], act["action"], act["on"]) for act in said["rules"]] == [("no", "fail", place)]

    later = refused(faulty, faults, 0x200000)  # for want of a map: the rule is through
    assert (later["cause"], later["rules"]) == ("never-mapped", [])


def test_a_write_that_a_rule_cut_off(load: Load) -> None:
    faulty = load({"id": "cut", "on": "dma.write.apply", "do": {"partial": 2, "then": "ABORTED"}})
    faults, ctx = with_history(faulty)
    assert faulty.driver.map(ctx, 0x10, 0x100, 1)[0] == 0
    with pytest.raises(DmaRefusedError):
        faulty.driver.dma_write("dma0", 0x10000, b"four")

    said = faults.kept[-1].explanation
    assert said is not None
    assert said.cause.value == "refused-by-rule"
    assert said.text.startswith("rule cut (partial at dma.write.apply) refused it; ")


def test_a_map_that_a_rule_only_said_was_made(load: Load) -> None:
    faulty = load({"id": "liar", "on": MAP, "do": {"lie": True}, "where": {"dfn": "0x10..0x1f"}})
    faults, ctx = with_history(faulty)
    assert faulty.driver.map(ctx, 0x10, 0x100, 4)[0] == 0
    assert faulty.driver.map(ctx, 0x30, 0x100, 1)[0] == 0
    assert faulty.driver.unmap(ctx, 0x30, 1)[0] == 0

    said = refused(faulty, faults, 0x12000)
    assert said["cause"] == "changed-by-rule"
    assert said["text"].startswith("rule liar (lie at op.map_pages.apply) acted on this page ")
    assert f"ago; context {ctx} has never mapped it" in said["text"]
    assert refused(faulty, faults, 0x30000)["cause"] == "unmapped"


def test_a_translation_that_a_rule_kept_in_the_iotlb(load: Load) -> None:
    faulty = load({"id": "kept", "on": "iotlb.invalidate.apply", "do": {"drop": True}, "schedule": {"after": 4}})
    faults, ctx = with_history(faulty)
    faulty.faults.load(scenario({"id": "kept", "on": "iotlb.invalidate.apply", "do": {"drop": True}}))
    faulty.driver.iommu.probes.rebind()
    assert faulty.driver.map(ctx, 0x10, 0x100, 1, 1)[0] == 0  # to be read only
    assert faulty.driver.dma_read("dma0", 0x10000, 1) == b"\0"
    assert faulty.driver.unmap(ctx, 0x10, 1)[0] == 0
    assert faulty.driver.map(ctx, 0x10, 0x100, 1)[0] == 0

    said = refused(faulty, faults, 0x10000)  # as the entry before did not allow it
    assert said["cause"] == "stale-by-rule"
    assert "rule kept (drop at iotlb.invalidate.apply) acted on this page " in said["text"]


def test_a_rule_about_an_earlier_context_of_the_number_is_not_to_blame(load: Load) -> None:
    faulty = load({"id": "liar", "on": MAP, "do": {"lie": True}, "schedule": {"times": 1}})
    faults, ctx = with_history(faulty)
    assert faulty.driver.map(ctx, 0x10, 0x100, 1)[0] == 0
    assert refused(faulty, faults, 0x10000)["cause"] == "changed-by-rule"
    assert faulty.driver.free(ctx, 1) == 0
    faulty.driver.inputs.time += 1000
    assert faulty.driver.attached() == ctx

    assert refused(faulty, faults, 0x10000)["cause"] == "never-mapped"


def test_a_history_goes_on_when_rules_come_and_go(load: Load) -> None:
    faulty = load()
    faults, ctx = with_history(faulty)
    history = faults.explainer.history
    assert history is not None
    driver = faulty.driver
    before = history.count
    for number, rules in enumerate(([{"id": "a", "on": "table.*.pre"}, {"id": "b", "on": "dma.translate.pre"}], [])):
        faulty.faults.load(scenario(*rules))
        driver.iommu.probes.rebind()
        assert driver.map(ctx, 0x10, 0x100, 1)[0] == 0
        assert history.count == before + 2 * number + 1
        assert driver.unmap(ctx, 0x10, 1)[0] == 0
    said = refused(faulty, faults, 0x10000)
    assert said["cause"] == "unmapped"
    assert [each["operation"] for each in said["operations"]] == ["unmap", "map", "unmap", "map", "attach"]
