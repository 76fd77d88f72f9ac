"""A served scenario: a real client meets its rules, and the verdict comes at the end."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from pviommu.guest.capabilities import capabilities
from pviommu.guest.fault_rules import FaultRules
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.shared import CapabilityId
from pviommu_abi.slots import Errno
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op

from .guest import Guest, Iommu, Serve, run, spin_until

SCENARIO = """
version = 1
seed = 7

[[rule]]
id = "no-memory"
on = "op.map_pages.pre"
schedule = { nth = 2 }
do = { fail = "ENOMEM" }
expect = { fired = 1 }

[[rule]]
id = "slow"
on = "op.unmap_pages.pre"
do = { delay = "20ms" }

[[rule]]
id = "hang-up"
on = "op.free_context.post"
do = { disconnect = true }
"""


def serve(folder: Path, topology: Path, text: str, *options: str) -> Serve:
    path = folder / "scenario.toml"
    path.write_text(text)
    return Serve(folder, topology, "--scenario", str(path), *options)


def play(folder: Path, unmaps: bool) -> None:
    with Guest(folder, "dma0") as guest:
        guest.start()
        iommu, dma0 = guest.iommu, guest.engines["dma0"]
        ctx = guest.attach("dma0")
        assert CapabilityId.FAULT_RULES in capabilities(iommu.view)
        page = FaultRules(iommu)
        assert iommu.map(ctx, 0x1000, 0x100, 1) == (0, 1)
        assert iommu.map(ctx, 0x1001, 0x101, 1) == (-Errno.ENOMEM, 0)
        assert page.count("no-memory") == (2, 1)
        assert dma0.run(DmaOp.FILL, 8, dst=0x1000000, pattern=1).status == DescriptorStatus.DONE
        if not unmaps:
            return
        assert iommu.unmap(ctx, 0x1000, 1) == (0, 1)  # the rings and the loop go on once it is over
        assert page.count("slow") == (1, 1)
        with contextlib.suppress(ConnectionError):  # it may end before the doorbell is answered
            iommu.submit(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, 1).pack())
        spin_until(lambda: is_gone(iommu), "the end of the connection")


def is_gone(iommu: Iommu) -> bool:
    try:
        iommu.read("STATUS")
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("core", ["python", "auto"])
def test_a_guest_meets_the_rules_and_the_verdict_tells(folder: Path, topology: Path, core: str) -> None:
    events = folder / "events"
    with serve(folder, topology, SCENARIO, "--events", str(events), "--core", core) as server:
        play(folder, unmaps=True)
        assert server.stop() == 0
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["rule"] for line in lines] == ["no-memory", "slow", "hang-up"]
    assert [line["seq"] for line in lines] == [1, 2, 3]


def test_a_rule_that_never_fired_ends_the_server_with_status_5(folder: Path, topology: Path) -> None:
    with serve(folder, topology, SCENARIO) as server:
        play(folder, unmaps=False)
        assert server.stop() == 5
    fired = [line for line in server.lines if line["event"] == "rule-fired"]
    assert [(line["rule"], line["on"], line["action"]) for line in fired] == [("no-memory", "op.map_pages.pre", "fail")]


def test_a_server_that_a_rule_ends_is_gone_at_once(folder: Path, topology: Path) -> None:
    text = '[[rule]]\nid = "crash"\non = "op.alloc_context.pre"\ndo = { crash = true }\n'
    with serve(folder, topology, text) as server:
        with Guest(folder) as guest:
            guest.iommu.start()
            with contextlib.suppress(ConnectionResetError):  # it may be gone before it answers the doorbell
                guest.iommu.submit(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())
            spin_until(lambda: server.process.poll() is not None, "the end of the server")
        assert server.process.returncode == -9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rule]]\nid = "a"\non = "op.map.pre"\n', "line 3: rule a: no probe is 'op.map.pre'"),
        ("version = 3", "line 1: version = 3: must be 1"),
    ],
)
def test_a_wrong_scenario_is_told_and_nothing_is_served(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    done = run("--socket-dir", tmp_path, "--scenario", path)
    assert done.returncode == 2
    assert said in done.stderr
    assert run("--socket-dir", tmp_path, "--events", "x").returncode == 2
