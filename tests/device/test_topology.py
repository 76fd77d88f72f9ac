"""Topology files: what is read from them, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu.engine import DefaultPolicy, ReservedRegion
from pviommu.topology import Topology, TopologyError, load

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "qemu-configs").glob("*.toml"))
RESERVED = "[[endpoint.reserved]]\nstart = {}\nsize = {}\n"
ENDPOINT = '[[endpoint]]\nname = "dma0"\nkind = "dma-test"\nstream = 1\n'


def test_an_empty_file_is_a_pviommu_without_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")

    topology = load(path)

    assert topology == Topology()
    config = topology.iommu_config()
    assert (config.instance, config.rings, config.max_nr_pages, config.streams) == (1, 4, 262144, ())
    assert (config.engine.max_contexts, config.engine.pool_pages, config.engine.aperture_bits) == (255, 4096, 39)


def test_every_key_reaches_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "full.toml"
    path.write_text(
        '[iommu]\nname = "iommu"\ninstance = 7\ncontexts = 3\npool-pages = 64\nmax-pages-per-op = 256\n'
        'aperture-bits = 48\ndefault-policy = "blocked"\nrings = 2\nvendor-id = 0x1af4\ndevice-id = 0x10ff\n'
        "allowed = false\nremote-cmd = false\n"
        '[[endpoint]]\nname = "dma0"\nkind = "dma-test"\nstream = 9\nsbdf = "0001:02:1f.7"\n'
        '[[endpoint.reserved]]\nstart = 0x7d000000\nsize = 0x2000\nkind = "direct"\n'
    )

    config = load(path).iommu_config()

    assert (config.instance, config.rings, config.max_nr_pages) == (7, 2, 256)
    assert (config.engine.max_contexts, config.engine.pool_pages, config.engine.aperture_bits) == (3, 64, 48)
    assert config.engine.default_policy is DefaultPolicy.BLOCKED
    assert (config.identity.vendor, config.identity.device) == (0x1AF4, 0x10FF)
    assert config.streams == (9,)
    assert dict(config.fixed_bindings) == {9: 0x000102FF}
    assert dict(config.reserved) == {9: (ReservedRegion(0x7D000, 0x7D001, "direct"),)}
    assert (config.allowed, config.remote_cmd) == (False, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[iommu\n", "Expected ']'"),
        ("contexts = 3\n", "unknown field `contexts`"),
        ("[iommu]\npool_pages = 3\n", "unknown field `pool_pages`"),
        ('[iommu]\ncontexts = "many"\n', "Expected `int`, got `str`"),
        ('[iommu]\ndefault-policy = "open"\n', "Invalid enum value 'open'"),
        ('[[endpoint]]\nname = "dma0"\nstream = 1\n', "missing required field `kind`"),
        ('[iommu]\nname = "../up"\n', "name '../up': must be 1 to 32 of a-z, 0-9 and -"),
        (f'[iommu]\nname = "{"a" * 33}"\n', "must be 1 to 32 of a-z, 0-9 and -"),
        ('[iommu]\nname = "dma0"\n' + ENDPOINT, "name 'dma0': used twice, each names a socket"),
        (ENDPOINT.replace("dma-test", "gpu"), "endpoint dma0: kind 'gpu' is none of dma-test, template"),
        (ENDPOINT.replace("= 1", "= -1"), "endpoint dma0: stream -1 must be 0..4294967294"),
        (ENDPOINT.replace("= 1", "= 0xffffffff"), "endpoint dma0: stream 4294967295 must be 0..4294967294"),
        (ENDPOINT + ENDPOINT.replace("dma0", "dma1"), "streams (1, 1): each endpoint needs a stream of its own"),
        (ENDPOINT + 'sbdf = "00:5"\n', "endpoint dma0: sbdf '00:5' must look like 0000:00:05.0"),
        (ENDPOINT + 'sbdf = "00:20.0"\n', "endpoint dma0: sbdf '00:20.0' must look like 0000:00:05.0"),
        (
            ENDPOINT
            + 'sbdf = "00:05.0"\n'
            + ENDPOINT.replace("dma0", "dma1").replace("= 1", "= 2")
            + 'sbdf = "0000:00:05.0"\n',
            "two endpoints are fixed to one sbdf",
        ),
        (ENDPOINT + RESERVED.format(1, 4096), "dma0: reserved start 0x1 size 0x1000 must be multiples of 4096"),
        (ENDPOINT + RESERVED.format(0, 0), "dma0: reserved start 0x0 size 0x0 must be multiples of 4096"),
        (ENDPOINT + RESERVED.format(1 << 39, 4096), "both must be frames below the aperture's end"),
        (ENDPOINT + RESERVED.format(-4096, 4096), "first must not exceed last"),
        (ENDPOINT + RESERVED.format(0xFEE00000, 4096), "overlaps 0xfee00..0xfeeff (msi)"),
        (ENDPOINT + RESERVED.format(0, 8192) + RESERVED.format(4096, 4096), "overlaps 0x0..0x1 (direct)"),
        (ENDPOINT + 65 * RESERVED.format(0, 4096), "reserved regions: at most 64 in all"),
        (ENDPOINT + RESERVED.format(0, 4096) + 'kind = "soft"\n', "Invalid enum value 'soft'"),
        ("[iommu]\nvendor-id = 0\n", "iommu: vendor-id 0x0 must be 0x1..0xfffe"),
        ("[iommu]\ndevice-id = 0xffff\n", "iommu: device-id 0xffff must be 0x1..0xfffe"),
        ("[iommu]\ninstance = -1\n", "iommu: instance -1 must be a 32-bit number"),
        ("[iommu]\ncontexts = 0\n", "max_contexts 0: must be 1..65535"),
        ("[iommu]\npool-pages = 0\n", "pool_pages 0: must be at least 1"),
        ("[iommu]\naperture-bits = 31\n", "aperture_bits 31: must be 32..48"),
        ("[iommu]\nrings = 9\n", "rings 9: must be 1..8"),
        ("[iommu]\nmax-pages-per-op = 0\n", "max_nr_pages 0: must be 1..4294967295"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_rule(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)

    with pytest.raises(TopologyError) as caught:
        load(path)

    assert str(caught.value).startswith(f"topology {path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_endpoints_than_the_capability_area_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text("".join(ENDPOINT.replace("dma0", f"dma{n}").replace("= 1", f"= {n}") for n in range(257)))

    with pytest.raises(TopologyError, match="257 endpoints: at most 256 are possible"):
        load(path)


def test_bytes_that_are_no_text_are_a_topology_error(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(TopologyError, match=f"topology {path}: "):
        load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=f"cannot read topology {tmp_path}/absent: No such file or directory"):
        load(tmp_path / "absent")
    with pytest.raises(TopologyError, match=f"cannot read topology {tmp_path}: Is a directory"):
        load(tmp_path)
