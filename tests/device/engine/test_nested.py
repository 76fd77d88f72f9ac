"""Nested domains: a toy first stage over a paging domain.

The toy's guest has one table of 512 eight-byte entries at an address of the parent domain, which decides 4 KiB pages:
(address | access), 0 for nothing, all ones for a page that must be asked for first.
"""

import pytest

from pviommu.engine import (
    BLOCKED,
    IDENTITY,
    Access,
    Engine,
    EngineUsage,
    ParentRefusal,
    Refusal,
    ReservedFrames,
    Run,
    Stage1Run,
    Stop,
    TranslationFault,
    TranslationPending,
    Wait,
)

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
STREAM = 7
TABLE, ASK = 0x8000, (1 << 64) - 1


class ToyWalker:
    """Reads guest memory, as an interface does, by what the parent says of the table's address."""

    def __init__(self, memory, table):
        self.memory = memory
        self.table = table

    def walk(self, iova, length, access, parent):
        place = self.table + (iova >> 12) * 8
        if iova >> 12 >= 512:
            return Refusal.OUT_OF_APERTURE
        runs = parent(place, 8, R)
        if isinstance(runs, ParentRefusal):
            return runs
        [(gpa, size)] = runs
        entry = int.from_bytes(self.memory[gpa : gpa + size], "little")
        if not entry:
            return Refusal.NOT_MAPPED
        if entry == ASK:
            return Wait.PAGE_REQUEST
        offset = iova & 0xFFF
        return Stage1Run((entry & ~0xFFF) + offset, 0x1000 - offset, Access(entry & 3))


class Nested:
    """A parent, domain 1, that maps dfns 8..0xf to gfns 0x10..0x17; domain 2 on it, with an endpoint in it."""

    def __init__(self):
        self.memory = bytearray(0x20000)
        self.engine = Engine()
        self.engine.set_ram([(0, 0x1F)])
        self.engine.add_endpoint(STREAM)
        self.engine.alloc_paging(1)
        self.engine.map(1, 8, 0x10, 8, RW)
        self.walker = ToyWalker(self.memory, TABLE)
        assert self.engine.alloc_nested(2, 1, self.walker) is None
        assert self.engine.attach(STREAM, 2) is None

    def enter(self, page, ipa, access=RW):
        """The guest writes an entry of its table."""
        place = 0x10000 + page * 8
        self.memory[place : place + 8] = (ipa if ipa == ASK else ipa | access).to_bytes(8, "little")

    def translate(self, iova, length=4, access=R, pasid=None):
        return self.engine.translate(STREAM, iova, length, access, pasid)


@pytest.fixture
def nested():
    return Nested()


def test_both_stages_are_passed_and_adjacent_frames_come_as_one_run(nested):
    for page, ipa in ((1, 0x9000), (2, 0xA000), (3, 0xC000)):
        nested.enter(page, ipa)

    assert list(nested.translate(0x1800, 0x2000)) == [Run(0x11800, 0x1800), Run(0x14000, 0x800)]


def test_what_the_guest_changes_in_its_table_is_seen_at_once(nested):
    nested.enter(1, 0x9000)
    assert list(nested.translate(0x1000)) == [Run(0x11000, 4)]

    nested.enter(1, 0xB000)
    assert list(nested.translate(0x1000)) == [Run(0x13000, 4)]
    nested.enter(1, 0, 0)

    assert nested.translate(0x1000) == TranslationFault(0x1000, Refusal.NOT_MAPPED, R, STREAM, 2)


def test_what_goes_from_the_parent_is_seen_at_once(nested):
    nested.enter(1, 0x9000)
    assert list(nested.translate(0x1000)) == [Run(0x11000, 4)]

    nested.engine.unmap(1, 9, 1)

    assert nested.translate(0x1000) == TranslationFault(0x1000, Refusal.NOT_MAPPED, R, STREAM, 2, None, 0x9000)


def test_each_stage_has_its_permissions(nested):
    nested.enter(1, 0x9000, R)
    nested.enter(2, 0xA000, RW)
    nested.engine.unmap(1, 0xA, 1)
    nested.engine.map(1, 0xA, 0x12, 1, R)

    assert list(nested.translate(0x1000, 0x2000)) == [Run(0x11000, 0x2000)]
    assert nested.translate(0x1000, access=W) == TranslationFault(0x1000, Refusal.NO_PERMISSION, W, STREAM, 2)
    assert nested.translate(0x2010, access=W) == TranslationFault(
        0x2010, Refusal.NO_PERMISSION, W, STREAM, 2, None, 0xA010
    )


def test_the_first_byte_refused_by_either_stage_refuses_the_span(nested):
    nested.enter(1, 0xF000)
    nested.enter(2, 0x10000)

    assert nested.translate(0x1800, 0x1000) == TranslationFault(0x2000, Refusal.NOT_MAPPED, R, STREAM, 2, None, 0x10000)
    assert nested.translate(0x1800, 0x800) == (Run(0x17800, 0x800),)
    assert nested.translate(0x2FF000 - 0x1000, 0x1000).iova == 0x2FE000
    assert nested.translate(512 << 12) == TranslationFault(512 << 12, Refusal.OUT_OF_APERTURE, R, STREAM, 2)


class Long:
    """A first stage in one run, in front of the parent's pages 0xf and 0x10, the latter of which is not there."""

    def walk(self, iova, length, access, parent):
        return Stage1Run(0xF000 + iova, 1 << 40, RW)


def test_a_run_of_the_first_stage_that_the_parent_refuses_in_its_middle_is_refused_there(nested):
    nested.engine.alloc_nested(3, 1, Long())
    nested.engine.attach(STREAM, 3)

    assert list(nested.translate(0x800, 0x800)) == [Run(0x17800, 0x800)]
    assert nested.translate(0x800, 0x1000) == TranslationFault(0x1000, Refusal.NOT_MAPPED, R, STREAM, 3, None, 0x10000)


def test_a_table_that_the_parent_does_not_map_is_told_apart_from_data(nested):
    nested.walker.table = 0x20000

    fault = nested.translate(0x1000)

    assert fault == TranslationFault(0x1000, Refusal.NOT_MAPPED, R, STREAM, 2, None, 0x20008, True)


def test_the_first_stage_is_asked_for_the_bytes_that_are_left_down_to_the_last_one(nested):
    class Bytewise:
        def walk(self, iova, length, access, parent):
            asked.append((iova, length))
            return Stage1Run(0x8000 + iova, 1, RW)

    asked = []
    nested.engine.alloc_nested(3, 1, Bytewise())
    nested.engine.attach(STREAM, 3)

    assert list(nested.translate(0x10, 3)) == [Run(0x10010, 3)]
    assert asked == [(0x10, 3), (0x11, 2), (0x12, 1)]


def test_address_0_of_the_parent_is_an_address(nested):
    class Low:
        def walk(self, iova, length, access, parent):
            return Stage1Run(iova, length, RW)

    nested.engine.map(1, 0, 0x18, 1, RW)
    nested.engine.alloc_nested(3, 1, Low())
    nested.engine.attach(STREAM, 3)

    assert list(nested.translate(0, 4)) == [Run(0x18000, 4)]


def test_a_span_of_the_parent_that_wraps_is_refused_at_its_first_byte(nested):
    class Greedy:
        def walk(self, iova, length, access, parent):
            return parent(0x8000, 1 << 64, R)

    nested.engine.alloc_nested(3, 1, Greedy())
    nested.engine.attach(STREAM, 3)

    fault = nested.translate(0x1000)

    assert fault == TranslationFault(0x1000, Refusal.OUT_OF_APERTURE, R, STREAM, 3, None, 0x8000, True)


@pytest.mark.parametrize(("ipa", "refused"), [(1 << 64, 1 << 64), ((1 << 64) - 2, (1 << 64) - 2), (-4096, -4096)])
def test_an_address_of_the_parent_that_is_none_is_refused(nested, ipa, refused):
    class Wild:
        def walk(self, iova, length, access, parent):
            return Stage1Run(ipa, length, RW)

    nested.engine.alloc_nested(3, 1, Wild())
    nested.engine.attach(STREAM, 3)

    assert nested.translate(0x1000) == TranslationFault(0x1000, Refusal.OUT_OF_APERTURE, R, STREAM, 3, None, refused)


def test_a_page_that_must_be_asked_for_is_pending_and_nothing_is_remembered(nested):
    nested.enter(1, 0x9000)
    nested.enter(2, ASK)

    assert nested.translate(0x1800, 0x1000) == TranslationPending(0x2000, R, STREAM, 2)
    nested.enter(2, 0xB000)

    assert list(nested.translate(0x1800, 0x1000)) == [Run(0x11800, 0x800), Run(0x13000, 0x800)]


def test_a_pasid_may_have_a_first_stage_while_the_rest_has_none(nested):
    nested.enter(1, 0x9000)
    nested.enter(2, ASK)
    nested.engine.attach(STREAM, 2, pasid=4)
    nested.engine.attach(STREAM, IDENTITY)

    assert nested.translate(0x1000) == [Run(0x1000, 4)]
    assert list(nested.translate(0x1000, pasid=4)) == [Run(0x11000, 4)]
    assert nested.translate(0x2000, pasid=4) == TranslationPending(0x2000, R, STREAM, 2, 4)
    assert nested.translate(0x3000, pasid=4) == TranslationFault(0x3000, Refusal.NOT_MAPPED, R, STREAM, 2, 4)


def test_no_bytes_are_always_allowed_and_a_block_comes_first(nested):
    assert list(nested.translate(0x5000, 0)) == []
    nested.engine.block(STREAM)
    assert nested.translate(0x5000) == TranslationFault(0x5000, Refusal.BLOCKED, R, STREAM, 2)


def test_no_bytes_of_the_parent_are_always_there(nested):
    class Curious:
        def walk(self, iova, length, access, parent):
            assert list(parent(1 << 40, 0, R)) == []
            return Refusal.NOT_MAPPED

    nested.engine.alloc_nested(3, 1, Curious())
    nested.engine.attach(STREAM, 3)

    assert nested.translate(0).refusal is Refusal.NOT_MAPPED


def test_a_first_stage_that_makes_no_progress_is_an_error_of_its_interface(nested):
    class Stuck:
        def walk(self, iova, length, access, parent):
            return Stage1Run(0x9000, 0, RW)

    nested.engine.alloc_nested(3, 1, Stuck())
    nested.engine.attach(STREAM, 3)

    with pytest.raises(ValueError, match="stage 1 of domain 3 at 0x1000: a run has at least one byte"):
        nested.translate(0x1000)


def test_a_parent_lives_as_long_as_what_stands_on_it(nested):
    engine = nested.engine

    assert engine.free_domain(1) is Stop.NESTED_ATTACHED
    assert engine.free_domain(2) is Stop.ENDPOINTS_ATTACHED
    engine.attach(STREAM, BLOCKED)
    assert [engine.has_nested(domain) for domain in (1, 2)] == [True, False]
    assert engine.free_domain(2) is None
    assert not engine.has_nested(1)
    assert engine.free_domain(1) is None
    assert (engine.domains(), engine.usage()) == ((), EngineUsage(0, 0, 4096, 0))


def test_reset_drops_nested_domains_with_their_parents(nested):
    nested.engine.reset()

    assert (nested.engine.domains(), nested.engine.usage().pool_pages_used) == ((), 0)
    assert nested.translate(0x1000) == [Run(0x1000, 4)]


def test_only_a_paging_domain_is_a_parent_and_a_number_is_had_once(nested):
    engine = nested.engine

    assert engine.alloc_nested(3, 2, nested.walker) is Stop.NOT_PAGING
    assert engine.alloc_nested(3, IDENTITY, nested.walker) is Stop.NOT_PAGING
    assert engine.alloc_nested(3, 9, nested.walker) is Stop.NO_DOMAIN
    with pytest.raises(ValueError, match="domain 2: exists already"):
        engine.alloc_nested(2, 1, nested.walker)

    assert engine.domains() == (1, 2)
    assert (engine.is_paging(2), engine.has_domain(2)) == (False, True)
    assert engine.map(2, 0, 0, 1, RW).stop is Stop.NOT_PAGING
    assert (engine.lookup(2, 8), list(engine.areas(2)), engine.direct(2)) == (None, [], ())


def test_direct_regions_go_into_the_parent_and_stay_while_one_goes_from_one_child_to_another(nested):
    engine = nested.engine
    engine.add_endpoint(8, [ReservedFrames(0x100, 0x100, "direct")])
    engine.alloc_nested(3, 1, nested.walker)

    assert engine.attach(8, 2) is None
    assert engine.direct(1) == ((0x100, 0x100),)
    used = engine.usage().pool_pages_used
    for domain in (3, 1, 2):
        assert engine.attach(8, domain) is None
        assert (engine.direct(1), engine.usage().pool_pages_used) == (((0x100, 0x100),), used)
    engine.attach(8, IDENTITY)

    assert engine.direct(1) == ()
