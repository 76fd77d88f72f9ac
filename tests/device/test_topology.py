"""Topology files: what is read from them, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu.counters import Counters
from pviommu.endpoints.options import Options
from pviommu.endpoints.xor import Xor, XorOptions
from pviommu.engine import ReservedFrames
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.contexts import DefaultPolicy
from pviommu.interfaces.smmuv3.config import SmmuConfig
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.toml_places import line_of
from pviommu.topology import MsiSection, Topology, TopologyError, load

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "qemu-configs").glob("*.toml"))
RESERVED = "[[endpoint.reserved]]\nstart = {}\nsize = {}\n"
ENDPOINT = '[[endpoint]]\nname = "dma0"\nkind = "dma-test"\nstream = 1\n'
MSI = "[[msi]]\nstart = {:#x}\nsize = {:#x}\n"
SMMU = '[[smmu]]\nname = "smmu0"\n'
BEHIND = ENDPOINT + 'smmu = "smmu0"\nstream-id = 8\n'
XOR = '[[endpoint]]\nname = "x"\nkind = "xor"\nstream = 1\n'


def test_an_empty_file_is_a_pviommu_without_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")

    topology = load(path)

    assert topology == Topology()
    config = topology.iommu_config()
    assert (config.instance, config.rings, config.max_nr_pages, config.streams) == (1, 4, 262144, ())
    assert (config.max_contexts, config.engine.pool_pages, config.engine.aperture_bits) == (255, 4096, 39)


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
    assert (config.max_contexts, config.engine.pool_pages, config.engine.aperture_bits) == (3, 64, 48)
    assert config.default_policy is DefaultPolicy.BLOCKED
    assert (config.identity.vendor, config.identity.device) == (0x1AF4, 0x10FF)
    assert config.streams == (9,)
    assert dict(config.fixed_bindings) == {9: 0x000102FF}
    assert dict(config.reserved) == {9: (ReservedFrames(0x7D000, 0x7D001, "direct"),)}
    assert (config.allowed, config.remote_cmd) == (False, False)


def test_every_key_of_an_smmu_reaches_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "smmu.toml"
    path.write_text(
        '[[smmu]]\nname = "smmu0"\naddress-bits = 48\nssid-bits = 8\nstage2 = true\ncache-entries = 3\nstrict = true\n'
        "msi = true\n"
        'vendor-id = 0x1af4\ndevice-id = 0x10ff\n[[smmu]]\nname = "smmu1"\n' + BEHIND
    )

    topology = load(path)
    first, second = topology.smmu

    assert first.config() == SmmuConfig(
        address_bits=48, ssid_bits=8, stage2=True, cache_entries=3, strict=True, msi=True
    )
    assert (first.identity().vendor, first.identity().device) == (0x1AF4, 0x10FF)
    assert second.config() == SmmuConfig()
    assert topology.kinds() == {"iommu": "iommu", "smmu0": "smmuv3", "smmu1": "smmuv3", "dma0": "dma-test"}
    assert (topology.streams_behind("smmu0"), topology.streams_behind("smmu1")) == ({1: 8}, {})
    assert topology.iommu_config().streams == ()


ITS, GICV2M = ReservedFrames(0x8080, 0x809F, "msi"), ReservedFrames(0x8020, 0x8020, "msi")


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", (ReservedFrames(0xFEE00, 0xFEEFF, "msi"),)),
        (MSI.format(0x8080000, 0x20000), (ITS,)),
        (MSI.format(0x8020000, 0x1000) + MSI.format(0x8080000, 0x20000), (GICV2M, ITS)),
        ("msi = []\n", ()),
    ],
)
def test_msi_windows_are_reserved_everywhere(tmp_path: Path, text: str, windows: tuple[ReservedFrames, ...]) -> None:
    path = tmp_path / "windows.toml"
    path.write_text(text + SMMU)

    topology = load(path)

    assert topology.iommu_config().engine.reserved == windows
    machine = Machine.build(topology, Environment(LiveInputs(), Counters()))
    assert machine.iommu.engine.config.reserved == windows
    machine.close()


def test_windows_of_the_command_line_are_in_place_of_the_topologys(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_text(MSI.format(0x8020000, 0x1000))

    topology = load(path)

    assert topology.changed().windows() == (GICV2M,)
    assert topology.changed(msi=[MsiSection.parse("0x08080000+131072")]).windows() == (ITS,)
    with pytest.raises(ValueError, match="9 MSI windows: at most 8"):
        topology.changed(msi=[MsiSection(number << 12, 4096) for number in range(9)])
    with pytest.raises(ValueError, match="start 0x1000 size 0x1000 overlaps another window, from 0x0 on"):
        topology.changed(msi=[MsiSection(0, 8192), MsiSection(4096, 4096)])
    path.write_text(ENDPOINT + RESERVED.format(0x8090000, 4096))
    with pytest.raises(ValueError, match=r"overlaps 0x8080..0x809f \(msi\)"):
        load(path).changed(msi=[MsiSection(0x8080000, 0x20000)])


@pytest.mark.parametrize(
    "text", ["", "its", "0x8080000", "0x8080000-0x809ffff", "+4096", "1+0x1000", "0x1000+0", "-1+4096"]
)
def test_a_window_that_cannot_be_is_named_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be (START\+SIZE, as 0x08080000\+0x20000|multiples of 4096)"):
        MsiSection.parse(text)


@pytest.mark.parametrize(("line", "key"), [("key = 7\n", 7), ("", 0x5A)])
def test_options_of_an_endpoint_reach_it(tmp_path: Path, line: str, key: int) -> None:
    path = tmp_path / "options.toml"
    path.write_text(ENDPOINT + XOR.replace("= 1", "= 2") + line)

    topology = load(path)

    assert topology.endpoint[1].options == XorOptions(key=key)
    machine = Machine.build(topology, Environment(LiveInputs(), Counters()))
    assert machine.endpoints["x"].region_read(0, 0, 4) == key.to_bytes(4, "little")
    machine.close()


class Wanting(Options, frozen=True, kw_only=True):
    """One option that must be given, of any whole number."""

    block_size: int


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 1: endpoint[0]: the key block-size is missing"),
        ("block-size = 1.5\n", "line 5: endpoint[0].block-size = 1.5: must be a whole number"),
        (
            "block_size = 1\n",
            "line 5: endpoint[0]: unknown key block_size; known are name, kind, stream, sbdf,",
        ),
    ],
)
def test_an_option_without_a_default_must_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    path = tmp_path / "wanting.toml"
    path.write_text(XOR + line)
    monkeypatch.setattr(Xor, "OPTIONS", Wanting)

    with pytest.raises(TopologyError) as caught:
        load(path)

    assert message in str(caught.value)


@pytest.mark.row("server", 124)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[iommu\n", "Expected ']' at the end of a table declaration (at line 1, column 7)"),
        ("contexts = 3\n", "line 1: unknown key contexts; known are iommu, endpoint"),
        ("[iommu]\n\npool_pages = 3\n", "line 3: iommu: unknown key pool_pages; known are name, instance, contexts,"),
        ('[iommu]\ncontexts = "many"\n', "line 2: iommu.contexts = 'many': must be a whole number, 1 to 65535"),
        ("[iommu]\ncontexts = 0\n", "line 2: iommu.contexts = 0: must be a whole number, 1 to 65535"),
        ("iommu.contexts = 0\n", "line 1: iommu.contexts = 0: must be a whole number, 1 to 65535"),
        ("iommu = { rings = 2, contexts = 0 }\n", "line 1: iommu.contexts = 0: must be a whole number, 1 to 65535"),
        ('[iommu]\nname = """a\nb"""\n', "iommu.name = 'a\\nb': must be 1 to 32 characters a-z"),
        ("iommu = 3\n", "line 1: iommu = 3: must be a table, as { key = value }, with the keys name, "),
        ("endpoint = 3\n", "line 1: endpoint = 3: must be at most 256 tables"),
        ('[iommu]\ndefault-policy = "open"\n', 'iommu.default-policy = \'open\': must be "blocked" or "identity"'),
        ("[iommu]\nallowed = 1\n", "line 2: iommu.allowed = 1: must be true or false"),
        ('# two\n[[endpoint]]\nname = "dma0"\nstream = 1\n', "line 2: endpoint[0]: the key kind is missing"),
        ('[iommu]\nname = "../up"\n', "line 2: iommu.name = '../up': must be 1 to 32 characters a-z, 0-9 and -"),
        (f'[iommu]\nname = "{"a" * 33}"\n', "must be 1 to 32 characters a-z, 0-9 and -"),
        ('[iommu]\nname = "a\\n"\n', "name 'a\\n': must be 1 to 32 characters a-z, 0-9 and -"),
        ('[iommu]\nname = "dma0"\n' + ENDPOINT, "line 4: name 'dma0': used twice, but names must be unique"),
        (ENDPOINT.replace("dma-test", "gpu"), "line 3: endpoint dma0: kind 'gpu': must be one of dma-test, template"),
        (ENDPOINT.replace("= 1", "= -1"), "line 4: endpoint[0].stream = -1: must be a whole number, 0 to 4294967294"),
        (ENDPOINT.replace("= 1", "= 0xffffffff"), "stream = 4294967295 (0xffffffff): must be a whole number, 0 to"),
        (
            ENDPOINT + ENDPOINT.replace("dma0", "dma1"),
            "line 8: endpoint dma1: stream 1 is that of dma0, but streams must be unique",
        ),
        (ENDPOINT + 'sbdf = "00:5"\n', "line 5: endpoint[0].sbdf = '00:5': must be segment (optional), bus,"),
        (ENDPOINT + 'sbdf = "00:20.0"\n', "endpoint[0].sbdf = '00:20.0': must be segment (optional), bus,"),
        (
            ENDPOINT + 'sbdf = "ffff:ff:1f.7"\n',
            "line 5: endpoint dma0: sbdf 'ffff:ff:1f.7' must not be 0xffffffff, which means unbound",
        ),
        (
            ENDPOINT
            + 'sbdf = "00:05.0"\n'
            + ENDPOINT.replace("dma0", "dma1").replace("= 1", "= 2")
            + 'sbdf = "0000:00:05.0"\n',
            "line 10: endpoint dma1: sbdf 0000:00:05.0 is that of dma0",
        ),
        (ENDPOINT + RESERVED.format(1, 4096), "line 6: endpoint[0].reserved[0].start = 1: must be a multiple of 4096"),
        (ENDPOINT + RESERVED.format(0, 0), "line 7: endpoint[0].reserved[0].size = 0: must be a multiple of 4096"),
        (
            ENDPOINT + ENDPOINT.replace("dma0", "dma1").replace("= 1", "= 2") + 2 * RESERVED.format(0, 1),
            "line 11: endpoint[1].reserved[0].size = 1: must be a multiple of 4096, 0x1000 to 0x1000000000000",
        ),
        (ENDPOINT + RESERVED.format(1 << 39, 4096), "both must be frames below the aperture's end"),
        (ENDPOINT + RESERVED.format(-4096, 4096), "line 6: endpoint[0].reserved[0].start = -4096: must be a multiple"),
        (ENDPOINT + RESERVED.format(0xFEE00000, 4096), "overlaps 0xfee00..0xfeeff (msi)"),
        (ENDPOINT + RESERVED.format(0, 8192) + RESERVED.format(4096, 4096), "overlaps 0x0..0x1 (direct)"),
        (ENDPOINT + 65 * RESERVED.format(0, 4096), "reserved regions: at most 64 in all"),
        (ENDPOINT + RESERVED.format(0, 4096) + 'kind = "soft"\n', "reserved[0].kind = 'soft': must be \"direct\""),
        (XOR + "key = 256\n", "line 5: endpoint[0].key = 256: must be a whole number, 0 to 255"),
        (XOR + 'key = "7"\n', "line 5: endpoint[0].key = '7': must be a whole number, 0 to 255"),
        (
            XOR + "keys = 7\n",
            "line 5: endpoint[0]: unknown key keys; known are name, kind, stream, sbdf, reserved, smmu, stream-id, "
            "ats, pri, pasid-bits, key",
        ),
        (XOR + "options = { key = 7 }\n", "line 5: endpoint[0]: unknown key options; known are name, kind, stream,"),
        (ENDPOINT + XOR.replace("= 1", "= 2") + "key = true\n", "line 9: endpoint[1].key = true: must be a whole"),
        (ENDPOINT + "key = 7\n", "line 5: endpoint[0]: unknown key key; known are name, kind, stream, sbdf, reserved"),
        ('[[endpoint]]\nname = "x"\nstream = 1\nkey = 7\n', "line 1: endpoint[0]: the key kind is missing"),
        (
            XOR.replace('"xor"', '"gpu"') + "key = 7\n",
            "line 3: endpoint x: kind 'gpu': must be one of dma-test, template, virtio-net, xor",
        ),
        ("[iommu]\nvendor-id = 0\n", "line 2: iommu.vendor-id = 0: must be a whole number, 0x1 to 0xfffe"),
        ("[iommu]\ndevice-id = 0xffff\n", "iommu.device-id = 65535 (0xffff): must be a whole number, 0x1 to 0xfffe"),
        ("[iommu]\ninstance = -1\n", "iommu.instance = -1: must be a whole number, 0 to 4294967295"),
        ("[iommu]\npool-pages = 0\n", "iommu.pool-pages = 0: must be a whole number, 1 to 4294967295"),
        ("[iommu]\naperture-bits = 31\n", "iommu.aperture-bits = 31: must be a whole number, 32 to 48"),
        (ENDPOINT + 'smmu = "s"\n', "line 5: endpoint dma0: smmu 's': there is no [[smmu]]"),
        (SMMU + ENDPOINT + 'smmu = "s"\n', "line 7: endpoint dma0: smmu 's': must be one of smmu0"),
        (SMMU + ENDPOINT + 'smmu = "smmu0"\n', "line 7: endpoint dma0: behind an SMMU it needs a stream-id"),
        (SMMU + ENDPOINT + "stream-id = 1\n", "line 7: endpoint dma0: stream-id is for endpoints with smmu"),
        (SMMU + BEHIND + 'sbdf = "00:05.0"\n', "line 9: endpoint dma0: sbdf is for endpoints behind the PV-IOMMU"),
        (SMMU + BEHIND + RESERVED.format(0, 4096), "endpoint dma0: reserved is for endpoints behind the PV-IOMMU"),
        (
            SMMU + BEHIND + BEHIND.replace('"dma0"', '"dma1"').replace("stream = 1", "stream = 2"),
            "line 14: endpoint dma1: stream-id 8 is that of dma0, but they must be unique",
        ),
        (ENDPOINT + "ats = true\n", "line 5: endpoint dma0: ats is for endpoints with smmu"),
        (ENDPOINT + "pri = true\n", "line 5: endpoint dma0: pri is for endpoints with smmu"),
        (SMMU + BEHIND + "ats = true\n", "line 9: endpoint dma0: ats true: smmu0 has no ats"),
        (SMMU + "ats = true\n" + BEHIND + "pri = true\n", "line 10: endpoint dma0: pri true: it has no ats"),
        (
            SMMU + "ats = true\n" + BEHIND + "ats = true\npri = true\n",
            "line 11: endpoint dma0: pri true: smmu0 has no priq-bits",
        ),
        (ENDPOINT + "pasid-bits = 1\n", "line 5: endpoint dma0: pasid-bits is for endpoints with smmu"),
        (SMMU + "ssid-bits = 3\n" + BEHIND + "pasid-bits = 4\n", "pasid-bits 4: smmu0 has ssid-bits 3"),
        (SMMU + "priq-bits = 5\n", "line 3: smmu smmu0: priq-bits 5: must be 0 without ats"),
        (SMMU + "ats = true\npriq-bits = 20\n", "smmu[0].priq-bits = 20: must be a whole number, 0 to 19"),
        (SMMU + SMMU, "line 4: name 'smmu0': used twice, but names must be unique"),
        (SMMU.replace("smmu0", "iommu"), "line 2: name 'iommu': used twice, but names must be unique"),
        (SMMU + ENDPOINT.replace("dma0", "smmu0"), "line 4: name 'smmu0': used twice, but names must be unique"),
        (
            SMMU.replace("smmu0", "Smmu"),
            "smmu[0].name = 'Smmu': must be 1 to 32 characters a-z, 0-9 and -, not beginning with -",
        ),
        (SMMU + "address-bits = 43\n", "line 3: smmu[0].address-bits = 43: must be 32 or 36 or 40 or 42 or 44 or 48"),
        (
            MSI.format(0x8020800, 4096),
            "line 2: msi[0].start = 134350848 (0x8020800): must be a multiple of 4096, 0x0 to",
        ),
        (MSI.format(0x8020000, 0), "line 3: msi[0].size = 0: must be a multiple of 4096, 0x1000 to"),
        (
            MSI.format(0xFFFFFFFFF000, 0x2000),
            "line 2: msi: start 0xfffffffff000 size 0x2000 must end at 0x1000000000000",
        ),
        ("[[msi]]\nstart = 0\n", "line 1: msi[0]: the key size is missing"),
        (
            MSI.format(0x8080000, 0x20000) + MSI.format(0x8090000, 0x1000),
            "line 5: msi: start 0x8090000 size 0x1000 overlaps another window, from 0x8080000 on",
        ),
        (9 * MSI.format(0, 4096), "msi = an array of 9: must be at most 8 tables"),
        (
            MSI.format(0x8080000, 0x20000) + ENDPOINT + RESERVED.format(0x8090000, 4096),
            "overlaps 0x8080..0x809f (msi)",
        ),
        ("[iommu]\nrings = 9\n", "iommu.rings = 9: must be a whole number, 1 to 8"),
        ("[iommu]\nmax-pages-per-op = 0\n", "iommu.max-pages-per-op = 0: must be a whole number, 1 to 4294967295"),
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

    with pytest.raises(TopologyError, match="line 1: endpoint = an array of 257: must be at most 256 tables"):
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


@pytest.mark.row("server", 125)
def test_a_shipped_topology_is_found_by_its_name_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    for path in CONFIGURATIONS:
        assert load(Path(path.stem)) == load(path)

    (tmp_path / "blocked").write_text("[iommu]\nrings = 1\n")
    assert load(Path("blocked")).iommu.rings == 1  # the user's own file comes first
    with pytest.raises(
        TopologyError,
        match="no-such: No such file or directory; shipped are blocked, lab, lab-cards, lab-smmu, net, one-",
    ):
        load(Path("no-such"))


def test_lines_within_arrays_of_arrays_are_those_of_the_last_element() -> None:
    text = "[[a]]\n[[a.b]]\nx = 1\n[[a.b]]\nx = 2\n[[a]]\n[[a.b]]\n'x' = 3\n[a.c]\ny.z = 4\n"

    places = {("a", 0, "b", 1, "x"): 5, ("a", 1, "b", 0, "x"): 8, ("a", 1, "c", "y", "z"): 10, ("a", 1, "nothing"): 6}
    assert {place: line_of(text, place) for place in places} == places
    assert line_of(text, ("nothing",)) is None
