"""Which tables the architectures allow."""

import pytest

from pviommu.engine.formats import arm_stage1, arm_stage2, vtd_second_stage, x86_64


@pytest.mark.parametrize(
    ("granule", "bits", "how", "rule"),
    [
        (12, 24, {}, "must be 25..48"),
        (12, 49, {}, "must be 25..48"),
        (16, 53, {"wide": True}, "must be 25..52"),
        (12, 15, {"small": True}, "must be 16..48"),
        (16, 16, {"small": True}, "must be 17..48"),
    ],
)
def test_the_input_bits_of_a_stage_1_have_limits(granule, bits, how, rule):
    with pytest.raises(ValueError, match=f"stage 1 of {bits} input bits: {rule}"):
        arm_stage1(granule, bits, 0, 48, **how)


@pytest.mark.parametrize(("granule", "bits", "level"), [(12, 16, 3), (12, 24, 2), (14, 24, 3), (16, 17, 3)])
def test_small_tables_begin_further_down(granule, bits, level):
    assert arm_stage1(granule, bits, 0, 48, small=True).levels[0].number == level


@pytest.mark.parametrize(
    ("granule", "start", "machine", "how", "least", "most"),
    # by AArch64.S2InconsistentSL: from one bit that the first level decides to a whole level and 16 tables; but T0SZ is
    # at most 39, or 48 (47 with 64 KiB) with small tables
    [
        (12, 2, 40, {}, 25, 34),
        (12, 1, 40, {}, 31, 43),
        (12, 0, 44, {}, 40, 48),
        (12, 3, 40, {"small": True}, 16, 25),
        (12, 2, 40, {"small": True}, 22, 34),
        (12, -1, 52, {"wide": True}, 49, 52),
        (14, 3, 40, {}, 25, 29),
        (14, 2, 40, {}, 26, 40),
        (14, 1, 42, {}, 37, 48),
        (14, 0, 52, {"wide": True}, 48, 52),
        (16, 3, 40, {}, 25, 33),
        (16, 3, 40, {"small": True}, 17, 33),
        (16, 2, 40, {}, 30, 46),
        (16, 1, 44, {}, 43, 48),
        (16, 1, 44, {"wide": True}, 43, 52),
    ],
)
def test_a_stage_2_translates_what_its_first_level_can_hold(granule, start, machine, how, least, most):
    for bits in (least, most):
        tables = arm_stage2(granule, bits, start, 0, 48, machine_bits=machine, **how)
        assert (tables.levels[0].number, tables.levels[-1].number) == (start, 3)
    for bits in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"stage 2 of {bits} input bits.*they must be {least}..{most}"):
            arm_stage2(granule, bits, start, 0, 48, machine_bits=machine, **how)


@pytest.mark.parametrize(
    ("granule", "bits", "start", "machine", "needed", "how"),
    [
        (12, 44, 0, 42, 44, {}),
        (14, 40, 1, 40, 42, {}),
        (16, 44, 1, 42, 44, {}),
        (12, 52, -1, 48, 52, {"wide": True}),
        (14, 52, 0, 48, 52, {"wide": True}),
    ],
)
def test_small_machines_begin_further_down(granule, bits, start, machine, needed, how):
    with pytest.raises(ValueError, match=f"for machines of {needed} address bits, this one has {machine}"):
        arm_stage2(granule, bits, start, 0, machine, machine_bits=machine, **how)


@pytest.mark.parametrize(
    ("granule", "start", "levels"),
    [(12, 3, "0..2"), (12, -1, "0..2"), (14, 0, "1..3"), (16, 0, "1..3"), (14, 4, "1..3")],
)
def test_a_stage_2_begins_at_some_levels_only(granule, start, levels):
    with pytest.raises(ValueError, match=f"it may begin at levels {levels}"):
        arm_stage2(granule, 40, start, 0, 48)


@pytest.mark.parametrize(
    "make", [lambda bits: arm_stage1(bits, 40, 0, 48), lambda bits: arm_stage2(bits, 40, 1, 0, 48)]
)
def test_there_are_three_granules(make):
    with pytest.raises(ValueError, match=r"pages of 13 bits: must be one of \(12, 14, 16\)"):
        make(13)


@pytest.mark.parametrize(
    ("make", "depth", "least"), [(x86_64, 3, 4), (vtd_second_stage, 2, 3), (vtd_second_stage, 6, 3)]
)
def test_intels_tables_have_a_depth(make, depth, least):
    with pytest.raises(ValueError, match=f"tables of {depth} levels: must be {least}..5"):
        make(depth, 0, 46)
