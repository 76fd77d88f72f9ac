"""The machines that histories run on."""

from __future__ import annotations

from random import Random

import pytest

from pviommu.selfcheck.settings import RAM, SHADOWED_BYTES, Setting


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_machines_differ_from_seed_to_seed(profile: str) -> None:
    drawn = {Setting.drawn(Random(seed), profile) for seed in range(50)}

    assert len(drawn) > 30
    assert {setting.identity for setting in drawn} == {True, False}


def test_pools_of_v7_are_what_an_arena_order_can_say() -> None:
    pools = {Setting.drawn(Random(seed), "xen-v7").pool_pages for seed in range(50)}

    assert all(pool & (pool - 1) == 0 for pool in pools)
    with pytest.raises(ValueError, match="pool_pages 24: must be a power of two"):
        Setting(profile="xen-v7", pool_pages=24)


def test_all_ram_that_stays_is_shadowed() -> None:
    assert max(part.stop for part in RAM) << 12 == SHADOWED_BYTES
