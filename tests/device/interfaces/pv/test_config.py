import pytest

from pviommu.engine import EngineConfig
from pviommu.interfaces.pv.config import MAX_ENDPOINTS, IommuConfig
from pviommu.interfaces.pv.contexts import DefaultPolicy


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_contexts": 0}, r"max_contexts 0: must be 1\.\.65535"),
        ({"max_contexts": 0x10000}, r"max_contexts 65536: must be 1\.\.65535"),
        ({"rings": 0}, "rings 0: must be 1..8"),
        ({"rings": 9}, "rings 9: must be 1..8"),
        ({"max_nr_pages": 0}, "max_nr_pages 0: must be 1..4294967295"),
        ({"max_nr_pages": 1 << 32}, "max_nr_pages 4294967296"),
        ({"engine": EngineConfig(pool_pages=1 << 32)}, "pool_pages 4294967296: must be 1..4294967295"),
        ({"streams": (1, 1)}, "a stream of its own"),
        ({"reserved": {3: ()}}, "reserved regions of stream 3: not one of"),
        ({"streams": tuple(range(MAX_ENDPOINTS + 1))}, "257 endpoints: at most 256"),
    ],
)
def test_a_configuration_out_of_bounds_is_refused_with_its_rule(fields, text):
    with pytest.raises(ValueError, match=text):
        IommuConfig(**fields)


@pytest.mark.parametrize("contexts", [1, 0xFFFF])
def test_the_least_and_the_most_contexts_are_accepted(contexts):
    assert IommuConfig(max_contexts=contexts).max_contexts == contexts


def test_by_default_there_are_255_contexts_besides_one_that_is_identity():
    config = IommuConfig()
    assert (config.max_contexts, config.default_policy) == (255, DefaultPolicy.IDENTITY)


def test_the_most_endpoints_are_accepted():
    assert len(IommuConfig(streams=tuple(range(MAX_ENDPOINTS))).streams) == MAX_ENDPOINTS
