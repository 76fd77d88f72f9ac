"""A real guest on the IOMMU: the lab's verdict and what it rests on."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from .conftest import CYCLES

if TYPE_CHECKING:
    from conftest import LabRun

SHOWN = {
    "driver and capabilities": (
        "pviommu binds to the PV-IOMMU",
        "its capabilities are those of the server",
        "the groups list the MSI windows as reserved and nothing else",
    ),
    "DMA API": (
        "the groups are of type DMA-FQ",
        "copies 1 byte",
        "copies 4 MiB",
        "copies 1 byte between unaligned addresses",
        "copies across a page boundary",
        "copies across a 2 MiB boundary of device addresses",
        "reaches a coherent page",
        "scattered pages become one run of device addresses",
        "reaches memory through a device address above 4 GiB",
        "reaches a guest frame above 4 GiB",
    ),
    "isolation": (
        "DMA to an address never mapped is refused",
        "DMA to an address unmapped a moment ago is refused",
        "a write through a read-only mapping is refused",
        "one unmapped page in the middle refuses the whole request",
        "DMA to the MSI window is refused",
    ),
    "late DMA": (
        "DMA after unmap is refused once the flush queue is flushed",
        "maps and unmaps do not leave the guest: at most one doorbell in 64 of them",
        "no byte is written after unmap while an engine never stops writing",
        "an address that is handed out again leads to the new page only",
    ),
    "storms": (
        "a storm on all CPUs and engines copies every byte to its place",
        "lines of faults are rate-limited, and lost events are one line",
    ),
    "group types": (
        "the type of a group in use stays as it is",
        "a group of type DMA refuses late DMA at once",
        "a group of type identity is not translated",
        "a group of type DMA-FQ refuses late DMA in time",
        "a group is back at type DMA-FQ, and nothing is left over",
    ),
    "beside and behind ports": (
        "a NIC that is not behind the IOMMU stays unmanaged",
        "the DMA of that NIC works",
        "an engine behind a root port is in its group alone",
        "its faults carry its bus",
        "it works after its port is removed and found again",
    ),
    "network cards": ("two network cards are translated",),
    "takeover": (
        "a function whose driver came first stays untranslated",
        "pviommu-takeover --dry-run names them and changes nothing",
        "pviommu-takeover has them translated",
        "pviommu-takeover finds nothing more to do",
        "pviommu-takeover refuses what it cannot take over",
    ),
    "partial results": (
        "map over a live page keeps it and counts the prefix",
        "DMA reaches the prefix and the old target",
        "unmap stops at a hole and counts",
    ),
    "contexts": (
        "two contexts lead one address to different pages",
        "reattach moves the engine at once",
        "free with an engine attached is EBUSY and changes nothing",
        "free with the flag moves the engine to context 0",
        "contexts run out with ENOSPC and come back",
        "a blocked engine reaches nothing until it is attached",
        "an unbound engine reaches nothing until it is bound and attached",
    ),
    "pool": (
        "the pool runs out with ENOMEM behind the exact prefix",
        "reserve sets pool pages aside and gives them back",
        "a context maps from its reserve when the pool is out",
        "the reserve of a context ends with it",
        "reserve without context, with padding or beyond the pool is refused",
        "a storm of faults fills the event ring, and the lost ones are counted",
    ),
    "posted": ("a posted map is seen by the DMA that follows it",),
    "xen-2024": (
        "more pages than max_nr_pages is E2BIG",
        "lookup is exact and leaves gfn alone on error",
    ),
    "xen-v7": (
        "an unknown profile is refused",
        "an unknown kind of tables is refused",
        "the driver binds with profile xen-v7",
        "xen-v7 adds to the counts that it is given",
        "xen-v7 refuses page sizes but 4096",
        "xen-v7 init a second time is EACCES and changes nothing",
        "xen-v7 query agrees with the capability area after init",
        "xen-v7 maps any number of pages",
        "xen-v7 unmap of the reserved window is EADDRNOTAVAIL",
        "xen-v7 remote_cmd works on a structure in memory",
        "xen-v7 nested and pasid operations are EOPNOTSUPP",
        "the driver binds with profile xen-2024 again",
    ),
    "batch": (
        "a batch maps each element, and DMA sees it",
        "a batch stops at the first fault with EFAULT",
        "a batch unmaps, and stops at a hole",
        "a batch of many elements is carried out whole",
        "a posted batch is seen by the DMA that follows it",
        "a batch outside of memory is EFAULT, a wrong one EINVAL",
        "call works on a structure in memory",
    ),
    "lifecycle": (
        "rmmod says that pviommu is busy",
        f"{CYCLES} times unbind, unload, load and bind, with DMA each time",
        f"nothing leaked in {CYCLES} cycles",
        "engines work after remove and rescan",
        "drivers that bind while the PV-IOMMU is unbound find it there or gone",
        "functions that are found while the PV-IOMMU is unbound do no harm",
        "a reset behind the driver's back is one line, and nothing hangs",
        "engines that were there before the PV-IOMMU work behind it",
        "suspend is refused, and DMA works afterwards",
        "the kernel has nothing to complain about",
    ),
}

STRICT_SHOWN = {
    "strict mode": (
        "the groups are of type DMA",
        "DMA after unmap is refused at once",
        "nothing is written after unmap while the engine never stops writing",
        "a long storm on all CPUs and engines copies every byte to its place",
        "a group is back at type DMA, and nothing is left over",
    ),
    "the other profile first": (
        "the driver binds with profile xen-2024",
        "the driver binds with profile xen-v7 again",
    ),
    "lifecycle": (
        f"{CYCLES} times unbind, unload, load and bind, with DMA each time",
        f"nothing leaked in {CYCLES} cycles",
        "the kernel has nothing to complain about",
    ),
    "a server that is stopped": (
        "DMA goes on after that moment",
        "nothing was given up for it",
        "maps wait for the device or end with an error",
        "the driver gives the device up once or not at all",
        "after a reload of the drivers everything works again",
    ),
    "a second kernel, in passthrough mode": (
        "the second kernel finds nothing that the first one left",
        "the groups are of type identity",
        "device addresses are those of the memory",
        "fills an unaligned dma_map_single buffer untranslated",
    ),
    "a server that is gone": (
        "maps end with an error and not with a hang",
        "a scattered map ends with an error",
        "no coherent memory is handed out",
        "the driver gives the lost device up once",
        "the drivers of a lost device can be unloaded",
        "no driver binds to a lost device",
    ),
}

DRIVER_ROWS = (
    pytest.param(
        "an unbound engine reaches nothing until it is bound and attached", marks=pytest.mark.row("driver", 20)
    ),
    pytest.param("a blocked engine reaches nothing until it is attached", marks=pytest.mark.row("driver", 21)),
    pytest.param(
        "drivers that bind while the PV-IOMMU is unbound find it there or gone", marks=pytest.mark.row("driver", 24)
    ),
    pytest.param(
        "functions that are found while the PV-IOMMU is unbound do no harm", marks=pytest.mark.row("driver", 25)
    ),
    pytest.param(
        "a reset behind the driver's back is one line, and nothing hangs", marks=pytest.mark.row("driver", 26)
    ),
)

FAULT_STORMS = 2
"""One for each profile."""

REFUSED_IN_STORM = 6 * 256
EVENT_RING = 256


def expect_passed(run: LabRun) -> None:
    assert run.status == 0, f"{run.output}\n--- end of the console\n{run.console[-3000:]}"
    assert run.results["verdict"] == "passed"
    assert run.results["tests"]["failed"] == 0
    assert run.results["tests"]["skipped"] == 0


@pytest.mark.row("wire", 61)
def test_lab_passes(lab_run: LabRun) -> None:
    expect_passed(lab_run)


def test_strict_lab_passes(strict_run: LabRun) -> None:
    expect_passed(strict_run)


@pytest.mark.parametrize("topic", STRICT_SHOWN)
def test_strict_guest_has_shown(strict_run: LabRun, topic: str) -> None:
    assert set(STRICT_SHOWN[topic]) <= strict_run.passed


@pytest.mark.parametrize("topic", SHOWN)
def test_guest_has_shown(lab_run: LabRun, topic: str) -> None:
    assert set(SHOWN[topic]) <= lab_run.passed


def test_a_line_says_what_came_through_between_the_network_cards(lab_run: LabRun) -> None:
    [line] = [name for name in lab_run.passed if name.startswith("network cards: ")]
    frames, received = (int(word) for word in re.findall(r"\d+", line))
    assert frames > 20  # at 64 KiB each
    assert received > 1 << 20


@pytest.mark.parametrize("group", ["operations of the PV-IOMMU", "operations of the PV-IOMMU under xen-v7"])
def test_each_profile_has_shown_what_all_do(lab_run: LabRun, group: str) -> None:
    shared = ("isolation", "partial results", "contexts", "pool", "posted", "batch")

    assert {name for topic in shared for name in SHOWN[topic]} <= lab_run.passed_in(group)


TABLE = (
    *(f"the driver's table is what an array of its pages is, seed {seed}" for seed in (1, 2, 3)),
    "the driver's table refuses what it cannot hold",
)


@pytest.mark.row("driver", 50)
@pytest.mark.parametrize("name", TABLE)
def test_table_of_the_driver_is_right_in_the_guest_too(lab_run: LabRun, name: str) -> None:
    assert name in lab_run.passed


SENT = "VFIO by type1, with tables of the device"


@pytest.mark.row("driver", 54)
@pytest.mark.parametrize(
    "name",
    [
        "a map that cannot fail is not waited for, and DMA sees it",
        "a map over a live one is EEXIST and changes nothing",
        "a map past the page pool is ENOMEM and leaves nothing, and unmapping makes room",
    ],
)
def test_maps_for_user_space_are_posted_or_exact(strict_run: LabRun, name: str) -> None:
    assert name in strict_run.passed_in(SENT)


@pytest.mark.row("driver", 54)
def test_a_map_that_fails_half_way_is_undone(lab_run: LabRun) -> None:
    assert "a map from memory into what is none is undone whole" in lab_run.passed


def test_an_unmap_waits_for_the_device(lab_run: LabRun, strict_run: LabRun) -> None:
    """Linux 6.12 calls iotlb_sync() in any case, Linux 7 only if something was unmapped."""
    for run in (lab_run, strict_run):
        assert "the device is waited for after each unmap that is not deferred" in run.passed


@pytest.mark.row("driver", 56)
def test_pages_of_the_reserved_window_are_noted_only(lab_run: LabRun) -> None:
    assert "a domain notes pages of the reserved window and maps those beside it" in lab_run.passed


def test_pages_of_interrupt_controllers_keep_their_addresses(lab_run: LabRun, strict_run: LabRun) -> None:
    for run in (lab_run, strict_run):
        assert "pages of interrupt controllers keep their addresses" in run.passed


@pytest.mark.row("space", 43)
def test_ranges_and_regions_reach_user_space_as_the_device_has_them(lab_run: LabRun, strict_run: LabRun) -> None:
    """Lines of sysfs; the IOVA range capability of VFIO_IOMMU_GET_INFO; the list of IOMMU_IOAS_IOVA_RANGES."""
    ranges = {"the IOVA ranges are those of the device", "the IOVA ranges are two, split by the MSI window"}
    for run, interfaces in ((lab_run, ["type1"]), (strict_run, ["type1", "iommufd"])):
        assert {
            "its capabilities are those of the server",
            "the groups list the MSI windows as reserved and nothing else",
            *(f"without interrupt remapping, {interface} asks for a decision" for interface in interfaces),
        } <= run.passed
        for interface in interfaces:
            assert ranges <= run.passed_in(f"VFIO by {interface}")


@pytest.mark.row("driver", 55)
@pytest.mark.parametrize(
    "name",
    [
        "unmapping everything gives all pages of the pool back",
        "pool pages that one address space does not need any more are there for another",
    ],
)
def test_pool_pages_of_user_space_come_back(strict_run: LabRun, name: str) -> None:
    assert name in strict_run.passed_in(SENT)


@pytest.mark.row("driver", 80)
@pytest.mark.parametrize(
    "name",
    [
        "maps and unmaps in tables of the guest send nothing",
        "tables of the guest refuse what the device would refuse",
        "a map is told to nobody, and DMA sees it",
        "tables are memory of the guest, and of no pool",
        "a whole BAR is mapped, and DMA reaches it",
    ],
)
def test_tables_of_the_guest_need_no_device_for_a_map(lab_run: LabRun, name: str) -> None:
    assert name in lab_run.passed


@pytest.mark.row("driver", 81)
@pytest.mark.parametrize("group", ["operations of the PV-IOMMU", "operations of the PV-IOMMU under {}"])
def test_nothing_is_written_after_a_strict_unmap_in_tables_of_either_kind(
    lab_run: LabRun, strict_run: LabRun, group: str
) -> None:
    name = "no byte is written after unmap while an engine never stops writing"
    assert name in lab_run.passed_in(group.format("xen-v7"))
    assert name in strict_run.passed_in(group.format("xen-2024"))


@pytest.mark.row("driver", 81)
def test_dma_after_unmap_is_refused_in_tables_of_either_kind(lab_run: LabRun, strict_run: LabRun) -> None:
    for run, profile, name in (
        (lab_run, "xen-v7", "DMA after unmap is refused once the flush queue is flushed"),
        (strict_run, "xen-2024", "DMA after unmap is refused at once"),
    ):
        assert name in run.passed_in(f"DMA after unmap under {profile}, with tables of the device")
    assert "tables of domains are those of the guest" in lab_run.passed & strict_run.passed


@pytest.mark.row("driver", 82)
@pytest.mark.parametrize(
    "name",
    [
        "a part of a map of 2 MiB goes, the rest stays, and 2 MiB come again",
        "a part of a map of 1 GiB goes, and the rest stays",
    ],
)
def test_a_part_of_a_large_map_goes_alone_in_tables_of_either_kind(lab_run: LabRun, name: str) -> None:
    assert name in lab_run.passed_in("operations of the PV-IOMMU")
    assert name in lab_run.passed_in("operations of the PV-IOMMU under xen-v7")


@pytest.mark.row("driver", 84)
def test_what_is_written_is_noted_in_tables_of_the_guest(lab_run: LabRun) -> None:
    assert "what is written is noted in the tables of the guest, page by page" in lab_run.passed


@pytest.mark.row("driver", 86)
def test_a_kind_of_tables_that_does_not_exist_is_refused(lab_run: LabRun) -> None:
    assert "an unknown kind of tables is refused" in lab_run.passed


@pytest.mark.parametrize("name", DRIVER_ROWS)
def test_guest_has_shown_a_row_of_the_driver(lab_run: LabRun, name: str) -> None:
    assert name in lab_run.passed


@pytest.mark.row("driver", 23)
def test_endpoints_are_shut_down_before_a_pv_iommu_that_was_found_after_them(lab_run: LabRun) -> None:
    """A test has the PV-IOMMU found last; the engines' driver tells what came of its DMA when the machine goes down."""
    assert "engines that were there before the PV-IOMMU work behind it" in lab_run.passed
    said = [line for line in lab_run.console.splitlines() if "DMA at shutdown" in line]
    assert [line.rsplit(" ", 1)[1] for line in said] == ["works", "works"], said


def test_server_counts_what_the_guest_did(lab_run: LabRun) -> None:
    counts = lab_run.results["counts"]

    xen = ("alloc_context", "free_context", "reattach_device", "map_pages", "unmap_pages")
    for op in (*xen, "lookup_page", "init", "remote_cmd", "bind", "batch", "call", "reserve"):
        assert counts["ops"][op] > 0, op
    assert counts["pages_mapped"] >= counts["pages_unmapped"] > 0
    assert counts["dma_bytes"] > 4 << 20
    assert counts["faults"] > FAULT_STORMS * REFUSED_IN_STORM
    assert counts["events_lost"] == FAULT_STORMS * (REFUSED_IN_STORM - EVENT_RING)
    assert counts["slots_posted"] > 0
    assert counts["interrupts"] > 0


def test_server_is_left_with_nothing(lab_run: LabRun) -> None:
    counts = lab_run.results["counts"]

    assert (counts["contexts"], counts["pool_pages_used"]) == (0, 0)


def test_server_reported_no_error_and_no_exception(lab_run: LabRun) -> None:
    records = [json.loads(line) for line in (lab_run.folder / "server.jsonl").read_text().splitlines()]

    assert [record for record in records if record["level"] in ("error", "critical") or "traceback" in record] == []


def test_results_are_complete(lab_run: LabRun) -> None:
    for name in ("results.json", "junit.xml", "console.log", "server.jsonl", "qemu-command.txt"):
        assert (lab_run.folder / name).stat().st_size > 0, name
    assert {"pviommu", "python", "qemu", "kernel", "accelerator"} <= lab_run.results["versions"].keys()
