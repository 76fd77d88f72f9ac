"""The guest's lines: rounds, facts, marks and their answers, and everything that makes a boot worthless."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pviommu.bench.guest import ANSWER, Conversation, MeasurementError, Plan, Round, VfioMaps, Witness, parse_round

ROUND = (
    "map_ns_median=3905 map_ns_mean=4924.5 unmap_ns_median=2534 unmap_ns_mean=2992 pair_ns_median=6440 "
    "pair_ns_mean=7916 clock_ns_median=40 clock_ns_mean=44 rounds=20000 pages=1 threads=2 elapsed_ns=400000000"
)
READ = Round(3905, 4924.5, 2534, 2992, 6440, 7916, 40, 1, 2, 20000, 400000000)
PLAN = Plan(rounds=1, operations=20000, warm_up=2000, count_operations=100)


class Host:
    """What a conversation asks its host to do."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.done: list[object] = []
        self.totals: list[dict[str, int]] = []
        self.conversation = Conversation(plan, self.done.append, self.counts, self.done.append)

    def counts(self) -> Counter[str]:
        return Counter(self.totals.pop(0))

    def hear(self, *lines: str) -> Conversation:
        for line in lines:
            self.conversation.line(line)
        return self.conversation


COUNTING = ("bench mark count-begin", "bench mark count-empty", "bench mark count-end")


def test_a_round_is_read_by_names_and_other_fields_are_passed_over() -> None:
    assert parse_round(ROUND.split()) == READ


@pytest.mark.parametrize("text", ["", "map_ns_median=1", ROUND.replace("3905", "-1"), ROUND.replace("2992", "x")])
def test_a_round_that_lacks_a_figure_is_refused(text: str) -> None:
    with pytest.raises(MeasurementError, match=r"lacks .*_ns_"):
        parse_round(text.split())


def test_each_mark_is_answered_after_the_counting_was_switched() -> None:
    host = Host()
    host.totals = [{}, {}]
    host.hear(*COUNTING)
    assert host.done == [True, ANSWER, ANSWER, False, ANSWER]


def test_what_the_marks_themselves_cost_is_taken_off() -> None:
    host = Host()
    host.totals = [{"virtio_queue_notify": 2}, {"virtio_queue_notify": 104, "vtd_reg_write": 50}]
    boot = host.hear(*COUNTING).boot
    assert boot.counted
    assert boot.accesses == {"virtio_queue_notify": 1.0, "vtd_reg_write": 0.5}


def test_a_whole_boot_keeps_facts_and_rounds() -> None:
    host = Host()
    host.totals = [{}, {}]
    lines = ("bench fact group_type DMA-FQ", "noise", f"bench round 1 {ROUND}", *COUNTING, "# lab: exit 0")
    boot = host.hear(*lines).finish()
    assert boot.facts == {"group_type": "DMA-FQ"}
    assert boot.rounds == [READ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ((), "without its last line"),
        (("# lab: exit 1",), "with status 1"),
        (("# lab: exit 0",), "1 rounds were asked for, 0 came"),
        ((f"bench round 1 {ROUND}", "# lab: exit 0"), "counting phase"),
    ],
)
def test_a_boot_that_lacks_something_planned_is_refused(lines: tuple[str, ...], problem: str) -> None:
    conversation = Host().hear(*lines)
    with pytest.raises(MeasurementError, match=problem):
        conversation.finish()


@pytest.mark.parametrize("line", ["bench failed no device", "bench mark lunch", "bench round 1 none"])
def test_a_guest_that_gives_up_or_is_not_understood_ends_the_measurement(line: str) -> None:
    with pytest.raises(MeasurementError):
        Host().hear(line)


def test_the_rate_is_that_of_all_threads_together() -> None:
    assert READ.pairs_per_second == 100_000
    assert replace(READ, elapsed_ns=0).pairs_per_second is None


def test_a_witness_is_kept_and_one_for_each_granule_is_waited_for() -> None:
    plan = replace(PLAN, count_operations=0, granules=(1, 16), witness=True)
    host = Host(plan)
    host.hear(*[f"bench round 1 {ROUND}"] * 2, "bench witness pages=1 threads=1 map_ns=300 unmap_ns=200")
    conversation = host.hear("# lab: exit 0")
    assert conversation.boot.witnesses == [Witness(1, 1, 300, 200)]
    with pytest.raises(MeasurementError, match="2 witnesses were asked for, 1 came"):
        conversation.finish()


@pytest.mark.row("driver", 77)
def test_maps_through_vfio_are_kept_and_waited_for() -> None:
    plan = replace(PLAN, rounds=0, count_operations=0, vfio_mib=4)
    conversation = Host(plan).hear("bench vfio pages=1024 map_ns=5000 unmap_ns=700", "# lab: exit 0")
    assert conversation.finish().vfio == [VfioMaps(1024, 5000, 700)]
    with pytest.raises(MeasurementError, match="1 maps through VFIO were asked for, 0 came"):
        Host(plan).hear("# lab: exit 0").finish()


def test_each_granule_has_its_rounds() -> None:
    conversation = Host(replace(PLAN, granules=(1, 16))).hear(f"bench round 1 {ROUND}", "# lab: exit 0")
    with pytest.raises(MeasurementError, match="2 rounds were asked for, 1 came"):
        conversation.finish()


def test_settings_are_shell_assignments_that_the_script_reads() -> None:
    plan = replace(PLAN, granules=(1, 512), threads=2, witness=True)
    text = plan.settings("0000:00:10.0", ("a", "b"), ("posted=0",)).decode()
    assert text.splitlines() == [
        "modules='a b'",
        "options='posted=0'",
        "device='0000:00:10.0'",
        "granules='1 512'",
        "threads='2'",
        "witness='1'",
        "vfio_mib='0'",
        "operations='20000'",
        "rounds='1'",
        "warm_up='2000'",
        "count_operations='100'",
    ]


def test_a_plan_without_rounds_times_no_pairs() -> None:
    assert PLAN.timed_pairs == 22000
    assert replace(PLAN, granules=(1, 16), threads=2).timed_pairs == 88000
    assert Plan(0, 20000, 2000, 0).timed_pairs == 0
