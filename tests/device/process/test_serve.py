import argparse
import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pviommu.exit_status import ExitStatus
from pviommu.process import serve
from pviommu.topology import EndpointSection, IommuSection, ReservedSection, Topology


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_capabilities_name_every_function_and_its_socket():
    topology = Topology(IommuSection(name="iommu1"), (EndpointSection("dma7", "dma-test", 7),))
    assert serve.capabilities(topology)["functions"] == [
        {"name": "iommu1", "kind": "iommu", "socket": "iommu1.sock"},
        {"name": "dma7", "kind": "dma-test", "stream": 7, "socket": "dma7.sock"},
    ]


def test_driver_capabilities_follow_the_topology():
    topology = Topology(
        IommuSection(instance=3, contexts=9, pool_pages=77, max_pages_per_op=256, aperture_bits=32, rings=1)
    )
    assert serve.driver_capabilities(topology) == [
        "instance 3",
        "profiles xen-2024 xen-v7 batch-2014",
        "page_sizes 0x40201000",
        "max_nr_pages 256",
        "max_contexts 9",
        "pool_pages 77",
        "rings 1",
        "aperture_bits 32",
        "default_policy identity",
        "table_formats vtd-ss x86-64",
        "iova_range 0x0 0xfedfffff",
        "iova_range 0xfef00000 0xffffffff",
        "reserved 0xfee00000 0xfeefffff msi global",
    ]


def test_reserved_regions_of_endpoints_are_told_with_their_stream():
    region = ReservedSection(0x7D000000, 0x100000)
    lines = serve.driver_capabilities(Topology(endpoint=(EndpointSection("dma0", "dma-test", 5, reserved=(region,)),)))
    assert "reserved 0x7d000000 0x7d0fffff direct stream 5" in lines


def test_limits_of_the_command_line_replace_those_of_the_topology(capsys, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("[iommu]\ncontexts = 4\npool-pages = 64\nrings = 2\n")
    assert serve.main(parse(path, "--contexts", 9, "--pool-pages", 100, "--print-capabilities")) == 0
    lines = json.loads(capsys.readouterr().out)["driver_capabilities"]
    assert {"max_contexts 9", "pool_pages 100", "rings 2"} <= set(lines)
    assert serve.main(parse(path, "--contexts", 9, "--print-capabilities")) == 0
    assert "pool_pages 64" in json.loads(capsys.readouterr().out)["driver_capabilities"]


def test_a_device_without_guest_tables_tells_no_formats():
    lines = serve.driver_capabilities(Topology(IommuSection(guest_tables=False)))
    assert not any(line.startswith("table_formats") for line in lines)


def test_msi_windows_of_the_command_line_replace_those_of_the_topology(capsys):
    assert serve.main(parse("--msi", "0x08080000+0x20000", "--msi", "0x08020000+4096", "--print-capabilities")) == 0
    lines = json.loads(capsys.readouterr().out)["driver_capabilities"]
    assert [line for line in lines if line.startswith(("iova_range", "reserved"))] == [
        "iova_range 0x0 0x801ffff",
        "iova_range 0x8021000 0x807ffff",
        "iova_range 0x80a0000 0x7fffffffff",
        "reserved 0x8020000 0x8020fff msi global",
        "reserved 0x8080000 0x809ffff msi global",
    ]


def test_a_blocked_default_policy_is_told():
    lines = serve.driver_capabilities(Topology(IommuSection(default_policy="blocked")))
    assert "default_policy blocked" in lines


def test_print_capabilities_prints_json_and_ends_with_0(capsys):
    assert serve.main(parse("--print-capabilities")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["type"], told["abi"], told["profiles"]) == ("pviommu", 1, ["xen-2024", "xen-v7"])
    assert told["features"] == ["profile_xen_2024", "posted", "profile_xen_v7", "batch_2014", "guest_tables"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/nonexistent/topology.toml"], "cannot read topology /nonexistent/topology.toml"),
        (["--fd", "nobody=1"], "--fd nobody=1: must be NAME=N with NAME one of iommu"),
        (["--fd", "iommu=x"], "--fd iommu=x: must be NAME=N"),
        (["--fd", "iommu=99999"], "--fd iommu=99999: Bad file descriptor"),
        (["--contexts", "65536"], "max_contexts 65536: must be 1..65535"),
        (["--pool-pages", "0"], "pool_pages 0: must be at least 1"),
        (["--spin-us", "-1"], "--spin-us -1: must not be negative"),
        (["--history", "-1"], "--history -1: must not be negative"),
        (["--history", str(1 << 40)], "--history 1099511627776: must be 16777216 at most"),
    ],
)
def test_a_bad_argument_is_status_2_in_one_line(capsys, arguments, text):
    assert serve.main(parse(*arguments)) == ExitStatus.USAGE
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


def test_a_host_with_another_memory_order_is_status_3(capsys, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert serve.main(parse()) == ExitStatus.ENVIRONMENT
    assert "aarch64" in capsys.readouterr().err


def test_the_defaults_are_the_documented_ones():
    args = parse()
    assert (args.topology, args.socket_dir, args.log_format) == (None, Path("."), "text")
    assert args.spin_us == 100
    assert args.core == "auto"


def test_a_native_core_that_is_not_built_is_status_3_and_says_how_to_build_it(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert serve.main(parse("--core", "native")) == ExitStatus.ENVIRONMENT
    assert "pviommu build-core" in capfd.readouterr().err


def test_a_tap_that_may_not_be_made_is_status_3_in_one_line_that_says_what_to_do(capfd, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("pviommu.net.tap._open_tap", refuse)
    path = tmp_path / "tap.toml"
    path.write_text('[[endpoint]]\nname = "net0"\nkind = "virtio-net"\nstream = 1\nlink = "tap"\ntap = "tap7"\n')
    assert serve.main(parse(path, "--core", "python", "--socket-dir", tmp_path)) == ExitStatus.ENVIRONMENT
    said = capfd.readouterr().err
    assert "net0: link tap tap7: Operation not permitted (making one needs CAP_NET_ADMIN: run as root" in said
    assert said.count("\n") == 1


def test_updates_of_tables_without_the_native_core_are_status_3_and_say_how_to_build_it(capfd, tmp_path):
    path = tmp_path / "smmu.toml"
    path.write_text('[[smmu]]\nname = "smmu0"\nhttu = "access"\n')
    assert serve.main(parse(path, "--core", "python", "--socket-dir", tmp_path)) == ExitStatus.ENVIRONMENT
    said = capfd.readouterr().err
    assert "httu 1: only the native core can update tables that the guest writes to (pviommu build-core)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("topology", [[], ["lab"]])
def test_printing_capabilities_loads_neither_the_device_nor_the_protocol(topology):
    program = (
        f"import sys; from pviommu.cli import main; status = main(['serve', '--print-capabilities', *{topology}]); "
        "slow = {'pviommu.interfaces.pv.function', 'pviommu.host.server', 'vfio_user', 'construct', 'pviommu.inputs', "
        "'pviommu.engine.engine', 'pviommu.engine.results', 'pviommu.interfaces.pv.bindings', "
        "'pviommu.interfaces.pv.contexts', 'pviommu.endpoints.endpoint', 'pviommu.dma', 'pviommu.pci.config_space', "
        "'pviommu.pci.shared_memory', 'json', 'shutil'}; "
        "loaded = slow & set(sys.modules); "
        "sys.exit(status or ' '.join(sorted(loaded)) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
