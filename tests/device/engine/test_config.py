import pytest

from pviommu.engine import EngineConfig, ReservedFrames


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"pool_pages": 0}, "pool_pages 0: must be at least 1"),
        ({"aperture_bits": 31}, r"aperture_bits 31: must be 32\.\.48"),
        ({"aperture_bits": 49}, r"aperture_bits 49: must be 32\.\.48"),
        ({"iotlb_entries": 0}, "iotlb_entries 0: must be at least 1"),
        (
            {"reserved": (ReservedFrames(5, 4, "msi"),)},
            r"reserved region 0x5\.\.0x4 \(msi\): first must not exceed last",
        ),
        ({"reserved": (ReservedFrames(-1, 4, "msi"),)}, "first must not exceed last"),
        ({"reserved": (ReservedFrames(5, 1 << 52, "msi"),)}, "frames below 0x10000000000000"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_name_value_and_rule(fields, text):
    with pytest.raises(ValueError, match=text):
        EngineConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"pool_pages": 1, "iotlb_entries": 1},
        {"aperture_bits": 48},
        {"aperture_bits": 32, "reserved": (ReservedFrames(0, 0, "msi"), ReservedFrames(5, (1 << 52) - 1, "msi"))},
    ],
)
def test_the_bounds_themselves_are_allowed(fields):
    config = EngineConfig(**fields)

    assert {name: getattr(config, name) for name in fields} == fields


def test_the_defaults_reserve_the_msi_window_below_a_39_bit_aperture():
    config = EngineConfig()

    assert config.aperture_frames == 1 << 27
    assert config.reserved == ((0xFEE00, 0xFEEFF, "msi"),)
    assert config.pool_pages == 4096


def direct(first, last, kind="direct"):
    return ReservedFrames(first, last, kind)


@pytest.mark.parametrize(
    ("regions", "text"),
    [
        ([direct(1, 1, "msi")], r"endpoint 7, reserved region 0x1\.\.0x1: kind 'msi' is not known"),
        ([direct(5, 4)], r"0x5\.\.0x4: first must not exceed last"),
        ([direct(-1, 4)], "first must not exceed last"),
        ([direct(0, 1 << 27)], "below the aperture's end 0x8000000"),
        ([direct(4, 6), direct(6, 8)], r"0x6\.\.0x8: overlaps 0x4\.\.0x6 \(direct\)"),
        ([direct(6, 8), direct(4, 6)], r"0x4\.\.0x6: overlaps 0x6\.\.0x8 \(direct\)"),
        ([direct(0xFEEFF, 0xFEF00)], r"overlaps 0xfee00\.\.0xfeeff \(msi\)"),
    ],
)
def test_a_region_that_an_endpoint_cannot_have_is_refused_with_its_rule(regions, text):
    with pytest.raises(ValueError, match=text):
        EngineConfig().check_direct(7, regions)


def test_direct_regions_may_touch_each_other_and_fill_the_aperture_to_its_end():
    EngineConfig().check_direct(7, [direct(0, 4), direct(5, 5), direct(0xFEF00, (1 << 27) - 1)])
