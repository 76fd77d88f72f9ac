import pytest

from pviommu.engine import EngineConfig, ReservedRegion


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_contexts": 0}, r"max_contexts 0: must be 1\.\.65535"),
        ({"max_contexts": 0x10000}, r"max_contexts 65536: must be 1\.\.65535"),
        ({"pool_pages": 0}, "pool_pages 0: must be at least 1"),
        ({"aperture_bits": 31}, r"aperture_bits 31: must be 32\.\.48"),
        ({"aperture_bits": 49}, r"aperture_bits 49: must be 32\.\.48"),
        ({"iotlb_entries": 0}, "iotlb_entries 0: must be at least 1"),
        (
            {"reserved": (ReservedRegion(5, 4, "msi"),)},
            r"reserved region 0x5\.\.0x4 \(msi\): first must not exceed last",
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_name_value_and_rule(fields, text):
    with pytest.raises(ValueError, match=text):
        EngineConfig(**fields)


def test_the_defaults_reserve_the_msi_window_below_a_39_bit_aperture():
    config = EngineConfig()

    assert config.aperture_frames == 1 << 27
    assert config.reserved == ((0xFEE00, 0xFEEFF, "msi"),)
    assert (config.max_contexts, config.pool_pages) == (255, 4096)
