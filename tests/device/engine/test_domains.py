import pytest

from pviommu.engine import BLOCKED, IDENTITY, MAX_DOMAIN, NestedDomain, Stop
from pviommu.engine.clone import Clone
from pviommu.engine.core import PythonCore
from pviommu.engine.domains import Domains
from pviommu.engine.pool import Pool
from pviommu.engine.ranges import FrameRanges


def new_domains(pool_pages=16):
    pool = Pool(pool_pages)
    return Domains(PythonCore(), pool, 1 << 27, FrameRanges()), pool


def test_a_domain_needs_a_pool_page_and_returns_it():
    domains, pool = new_domains(pool_pages=1)
    assert domains.alloc(5) is None

    assert domains.alloc(6) is Stop.POOL_EXHAUSTED
    domains.free(5)

    assert pool.used == 0
    assert list(domains) == []


@pytest.mark.parametrize("number", [-1, IDENTITY, BLOCKED, 5, 6, MAX_DOMAIN + 1])
def test_a_number_out_of_bounds_or_in_use_is_refused(number):
    domains, pool = new_domains()
    domains.alloc(5)
    domains.nested[6] = NestedDomain(5, None)

    with pytest.raises(ValueError, match=f"domain {number}: "):
        domains.alloc(number)

    assert (list(domains), pool.used) == ([5, 6], 1)


def test_the_bounds_themselves_can_be_had():
    domains, _ = new_domains()

    assert [domains.alloc(number) for number in (MAX_DOMAIN, 1)] == [None, None]

    assert list(domains) == [1, MAX_DOMAIN]


def test_what_a_nested_domain_stands_on_is_known_and_no_page_is_charged_for_it():
    domains, pool = new_domains()
    domains.alloc(5)
    domains.alloc(7)
    domains.nested[6] = NestedDomain(5, None)

    assert [domains.beneath(number) for number in (5, 6, 7, 8)] == [5, 5, 7, None]
    assert [domains.has_children(number) for number in (5, 6, 7)] == [True, False, False]
    domains.free(6)

    assert (list(domains), domains.has_children(5), pool.used) == ([5, 7], False, 2)


def test_clones_are_listed_in_the_order_of_their_numbers():
    domains, _ = new_domains()
    for number in (3, 2, 1):
        domains.alloc(number)
    clones = {number: Clone(domains.paging[number].table) for number in (1, 3)}
    for number, clone in clones.items():
        domains.paging[number].clone = clone

    assert domains.clones() == [(1, clones[1]), (3, clones[3])]
