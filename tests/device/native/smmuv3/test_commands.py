"""Commands that C carries out, beside Python's."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pviommu.engine import Access
from pviommu.engine.walk import Leaf
from pviommu.interfaces.smmuv3.caches import Tag, number_of
from pviommu.interfaces.smmuv3.commands import Commands
from pviommu.interfaces.smmuv3.queues import MAX_LOOKED_AT, Consumed
from smmuv3.commands import COMMAND, Completion, Opcode, cfgi, sync, tlbi

from ...interfaces.smmuv3.conftest import COMMANDS, OUTSIDE, PAGE, RAM, RAM_SIZE
from .test_translation import Pair, told

RW = Access.READ | Access.WRITE
WORD = 0x4600_0000
TAGS = [Tag(vmid, asid) for vmid in (0, 3) for asid in (None, 7, 9)]
PAGES = [*range(24), 1 << 20, (1 << 52) - 1]
TLBIS = [
    *(Opcode.TLBI_NH_ALL, Opcode.TLBI_NH_ASID, Opcode.TLBI_NH_VA, Opcode.TLBI_NH_VAA),
    *(Opcode.TLBI_S12_VMALL, Opcode.TLBI_S2_IPA, Opcode.TLBI_NSNH_ALL),
]
INVALIDATIONS = st.builds(
    lambda opcode, page, vmid, asid, granule, ttl, num, scale: tlbi(
        opcode, page << 12, vmid=vmid, asid=asid, granule=granule, ttl=ttl, num=num, scale=scale
    ),
    st.sampled_from(TLBIS),
    st.sampled_from(PAGES),
    st.sampled_from([0, 3]),
    st.sampled_from([7, 9]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1, 31]),
    st.sampled_from([0, 0, 1, 3, 20, 27, 31]),
)
SYNCS = st.builds(
    lambda kind, address, data: COMMAND.pack(Opcode.SYNC | kind << 12 | data << 32, address),
    st.integers(0, 3),
    st.sampled_from([0, 0, WORD, WORD + 4, OUTSIDE, RAM + RAM_SIZE, COMMANDS + 32, (1 << 44) | WORD, (1 << 52) - 4]),
    st.integers(0, (1 << 32) - 1),
)
OTHERS = st.one_of(
    st.sampled_from([cfgi(Opcode.CFGI_STE, 8), cfgi(Opcode.CFGI_CD, 8, ssid=0), cfgi(Opcode.CFGI_CD_ALL, 8)]),
    st.binary(min_size=16, max_size=16),
)


def fill(guest):
    """Translations of both stages, of some VMIDs, ASIDs and sizes."""
    for stage in (guest.smmu.caches.stage1, guest.smmu.caches.stage2):
        for tag in TAGS:
            for page in PAGES:
                stage.add(tag, page << 12, Leaf(PAGE + (page << 12) & (1 << 44) - 1, 12, RW, 12, 3, 0))
            stage.add(tag, 5 << 21, Leaf(0x4020_0000, 21, RW, 21, 2, 0))


def kept(guest):
    """What is left of them."""
    addresses = [*(page << 12 for page in PAGES), 5 << 21]
    return [
        (number, tag, address)
        for number, stage in enumerate((guest.smmu.caches.stage1, guest.smmu.caches.stage2))
        for tag in TAGS
        for address in addresses
        if stage.remembered.find(number_of(tag), number_of(tag), address, Access.READ)
    ]


def state(guest):
    names = ("CMDQ_CONS", "GERROR")
    return kept(guest), [guest.driver.get(name) for name in names], guest.load(WORD, 8), guest.load(COMMANDS, 4096)


@pytest.mark.row("smmu", 41)
@settings(deadline=None, max_examples=80)
@given(
    has_stage2=st.booleans(),
    has_msi=st.booleans(),
    budget=st.sampled_from([1, 3, 256]),
    commands=st.lists(st.one_of(INVALIDATIONS, INVALIDATIONS, SYNCS, OTHERS), max_size=30),
)
@example(True, True, 256, [tlbi(Opcode.TLBI_NH_VA, 0, asid=7, granule=2, ttl=1)])
@example(True, True, 256, [tlbi(Opcode.TLBI_NH_VA, PAGES[-1] << 12, asid=7, granule=1, num=1)])
@example(True, True, 256, [tlbi(Opcode.TLBI_NH_VA, 1 << 63, vmid=3, asid=7, granule=3, num=31, scale=31)])
def test_both_cores_do_the_same_turn_by_turn(native_library, has_stage2, has_msi, budget, commands):
    pair = Pair(native_library, stage2=has_stage2, msi=has_msi, commands_per_turn=budget, cache_entries=1024)
    try:
        for guest in pair.guests:
            guest.start()
            fill(guest)
            first = guest.driver.get("CMDQ_PROD")
            for number, command in enumerate(commands):
                guest.driver.put(first + number, command)
            guest.driver.set("CMDQ_PROD", first + len(commands))
        while pair.same(lambda guest: guest.smmu.work()):
            pair.same(state)
        pair.same(state)
        pair.same(told)
    finally:
        pair.close()


PLAIN = [tlbi(Opcode.TLBI_NH_ASID, asid=7), tlbi(Opcode.TLBI_NSNH_ALL), sync(), sync(Completion.SEV)]
RANGES = [tlbi(Opcode.TLBI_NH_VA, 0, asid=7, granule=1, num=3), tlbi(Opcode.TLBI_NH_VA, 0, asid=7, granule=1, ttl=3)]


@pytest.fixture
def pythons(monkeypatch):
    """The opcodes of the commands that Python carries out."""
    seen, call = [], Commands.__call__

    def spy(self, first, second):
        seen.append(first & 0xFF)
        return call(self, first, second)

    monkeypatch.setattr(Commands, "__call__", spy)
    return seen


@pytest.mark.row("smmu", 41)
def test_plain_invalidations_and_syncs_are_no_work_of_python(make_guest, pythons):
    guest = make_guest(msi=True).start()
    pythons.clear()

    guest.issue(*PLAIN, *RANGES, sync(Completion.IRQ), sync(Completion.IRQ, WORD, 1), *PLAIN)
    assert pythons == []
    guest.issue(*PLAIN, cfgi(Opcode.CFGI_STE, 8), *PLAIN)

    assert pythons == [Opcode.CFGI_STE]
    assert guest.interrupts == [2]


@pytest.mark.parametrize("between", [sync(Completion.IRQ), cfgi(Opcode.CFGI_CD, 8)], ids=["told", "of Python"])
def test_a_turn_that_c_and_python_share_has_a_limit_too(make_guest, between):
    guest = make_guest(strict=True).start()
    known, entry = guest.smmu.caches.stage1, Leaf(PAGE, 12, RW, 12, 3, 0)
    for number in range(MAX_LOOKED_AT // 2):
        known.add(Tag(0, 7), number << 12, entry)
    large = tlbi(Opcode.TLBI_NH_VA, 1 << 40, asid=7, granule=1, num=31, scale=20)
    guest.driver.issue(*[large, between] * 20)

    looked_at, is_going_on = [0], True
    while is_going_on:
        is_going_on = guest.smmu.work()
        looked_at.append(guest.smmu.caches.looked_at())

    assert guest.driver.get("CMDQ_CONS") == guest.driver.get("CMDQ_PROD")
    assert max(after - before for before, after in pairwise(looked_at)) <= 3 * MAX_LOOKED_AT


@pytest.mark.row("smmu", 41)
def test_where_a_rule_stands_before_commands_python_carries_out_all(make_guest):
    guest = make_guest().start()
    seen = []
    carry_out = guest.smmu.commands.carry_out

    def lose(first, second):
        seen.append(first & 0xFF)
        return Consumed.DONE if first & 0xFF == Opcode.TLBI_NSNH_ALL else carry_out(first, second)

    fill(guest)
    guest.smmu.commands.carry_out = lose
    guest.issue(*PLAIN)
    assert seen == [0x11, 0x30, 0x46, 0x46, 0x46]
    assert len(guest.smmu.caches.stage1) > 0

    guest.smmu.commands.carry_out = carry_out
    guest.issue(*PLAIN)
    assert len(seen) == 5
    assert len(guest.smmu.caches.stage1) == 0


def test_commands_that_the_parent_takes_away_are_an_abort_at_the_first_of_them(native_library):
    pair = Pair(native_library)
    try:
        for guest in pair.guests:
            guest.start()
            guest.driver.issue(*[PLAIN[0]] * 100)  # with those of the reset 104 of 256
            guest.driver.drain()
            for number in range(20):
                guest.driver.put(104 + number, PLAIN[0])
            guest.engine.unmap(1, COMMANDS >> 12, 1)
            guest.driver.set("CMDQ_PROD", 124)
            assert not guest.smmu.work()
        cons, error = pair.same(lambda guest: (guest.driver.get("CMDQ_CONS"), guest.driver.get("GERROR")))
        assert (cons, error) == (2 << 24 | 104, 1)
    finally:
        pair.close()
