"""The pytest plugin as others have it: pytest runs within tests, on files that are written for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pviommu.native import core
from pviommu.testing import local, marker, server, vm

from ..native.conftest import make_library

pytest_plugins = ["pytester"]

LOADED = (local, marker, server, vm, core)
"""What tests within would import, and each of them anew."""
EXAMPLES = Path(__file__).parents[3] / "examples" / "pytest"
SECOND_MAP = """
[[rule]]
id = "second-map"
on = "op.map_pages.pre"
schedule = { nth = 2 }
do = { fail = "ENOMEM" }
"""
MAPS = """
def maps(guest, times):
    ctx = guest.attach("dma0")
    return [guest.map(ctx, 16 * place, 0x100, 2)[0] for place in range(times)]
"""


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    """Run tests that have ``second-map.toml`` beside them and ``maps(guest, times)`` among them."""
    (pytester.path / "second-map.toml").write_text(SECOND_MAP)
    pytester.makepyfile(f"import pytest\n{MAPS}\n{source}")
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", *options)


# -- the examples of docs/pytest.md -----------------------------------------------------------------------------------


@pytest.fixture
def examples(pytester: pytest.Pytester) -> pytest.Pytester:
    """In the folder of a run."""
    shutil.copytree(EXAMPLES, pytester.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return pytester


def test_examples_pass(examples: pytest.Pytester) -> None:
    result = examples.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", "-rs")

    result.assert_outcomes(passed=8, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*test_vm.py:*: it boots a VM: needs --pviommu-vm"])


def test_the_example_that_fails_shows_the_state_of_the_iommu(examples: pytest.Pytester) -> None:
    result = examples.runpytest_inprocess("-p", "no:cacheprovider", "fails.py")

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            ">       assert done.status == DescriptorStatus.DONE",
            "*-- pviommu device: state --*",
            "  #1: WRITE of 12288 bytes at 0x12000, stream 1, context 1: NOT_MAPPED",
            "    why    use after unmap: context 1 had it until * ago, unmap of 2 pages at 0x12000 (operation 5, *",
            "    now    not mapped",
            "    below  iova 0x10000, 0x2000 bytes -> gfn 0x200 for READ|WRITE, 0 bytes away",
            "  1        paging    2      0       1",
            "  dfn 0x10, 2 pages -> gfn 0x200 for READ|WRITE (iova 0x10000)",
            "  1       dma0  dma-test  0000:00:05.0  1        no       no",
            "  #5 * ago: unmap, context 1, dfn 0x12, 2 of 2 pages, slot 4 of ring 0",
            "guest: 1 DMA FAULT, 5 done",
            "scenario second-map.toml: rule second-map: it fired never, expected 1: once its conditions were met, *",
            "    FAIL second-map (op.map_pages.pre): fired 0 of 1, expected 1",
        ]
    )


def test_reports_come_from_other_processes(examples: pytest.Pytester) -> None:
    result = examples.runpytest_inprocess("-p", "no:cacheprovider", "-n1", "fails.py")

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*-- pviommu device: state --*"])


# -- rules and verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        pytest.param('"second-map.toml"', id="file"),
        pytest.param('pathlib.Path("second-map.toml")', id="path"),
        pytest.param(repr(SECOND_MAP), id="text"),
        pytest.param(
            '{"rule": [{"id": "second-map", "on": "op.map_pages.pre", "schedule": {"nth": 2}, '
            '"do": {"fail": "ENOMEM"}}]}',
            id="dict",
        ),
    ],
)
def test_rules_come_as_a_file_as_text_or_as_a_dict(pytester: pytest.Pytester, source: str) -> None:
    result = run(
        pytester,
        f"""
import pathlib

@pytest.mark.scenario({source})
@pytest.mark.parametrize("fixture", ["pviommu_device", "pviommu_wire"])
def test_it(request, fixture):
    assert maps(request.getfixturevalue(fixture).guest, 3) == [0, -12, 0]

def test_without():
    pass
""",
    )
    result.assert_outcomes(passed=3)


def test_a_file_below_the_root_is_found_and_a_nearer_marker_counts(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("below")
    (pytester.path / "second-map.toml").write_text(SECOND_MAP)
    (folder / "test_it.py").write_text(
        f"""
import pytest
{MAPS}
@pytest.mark.scenario("not-there.toml")
class TestIt:
    @pytest.mark.scenario("second-map.toml")
    def test_it(self, pviommu_device):
        assert maps(pviommu_device.guest, 2) == [0, -12]
"""
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_verdict_fails_the_test_itself(pytester: pytest.Pytester) -> None:
    """And not its clean-up, so that xfail and the like mean it."""
    result = run(
        pytester,
        """
@pytest.mark.scenario("second-map.toml")
def test_fails(pviommu_device):
    maps(pviommu_device.guest, 1)

@pytest.mark.xfail(strict=True)
@pytest.mark.scenario("second-map.toml")
def test_is_expected_to_fail(pviommu_device):
    maps(pviommu_device.guest, 1)

@pytest.mark.scenario("second-map.toml")
def test_fails_by_itself(pviommu_device):
    assert maps(pviommu_device.guest, 1) == [5]
""",
    )
    result.assert_outcomes(failed=2, xfailed=1)
    result.stdout.fnmatch_lines(["E       assert ?0? == ?5?"])
    result.stdout.no_fnmatch_line("*teardown*")


def test_rules_that_a_test_loads_are_judged_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from pathlib import Path
from pviommu.faults.scenario import load

@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fixture", ["pviommu_device", "pviommu_wire"])
def test_it(request, fixture, times):
    device = request.getfixturevalue(fixture)
    device.load(load(Path("second-map.toml")), "second")
    maps(device.guest, times)
""",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["scenario second: rule second-map: it fired never, expected once or more*"])


def test_rules_that_a_test_replaces_are_judged_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.scenario("second-map.toml")
def test_never_fired(pviommu_device):
    pviommu_device.load({"rule": [{"id": "maps", "on": "op.map_pages.pre"}]})
    maps(pviommu_device.guest, 1)

@pytest.mark.scenario({"rule": [{"id": "lie", "on": "op.unmap_pages.apply", "do": {"lie": True}}]})
def test_did_harm(pviommu_device):
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")
    guest.map(ctx, 0x10, 0x100, 1)
    guest.unmap(ctx, 0x10, 1)
    pviommu_device.load({})
    guest.refused("dma0", 0x10000)
    assert guest.harm
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["scenario second-map.toml: rule second-map: it fired never, expected once or more*"])


def test_harm_fails_a_test_unless_a_rule_may_do_it(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_fails(pviommu_device):
    guest = pviommu_device.guest
    guest.map(guest.attach("dma0"), 0x10, 0x100, 1)
    guest.refused("dma0", 0x10000)

@pytest.mark.scenario({"rule": [{"id": "lie", "on": "op.unmap_pages.apply", "do": {"lie": True}}]})
def test_passes(pviommu_device):
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")
    guest.map(ctx, 0x10, 0x100, 1)
    guest.unmap(ctx, 0x10, 1)
    guest.refused("dma0", 0x10000)
    assert guest.harm
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["harm: DMA to 0x10000, which is not mapped, is done"])


def test_the_report_names_the_rule_that_had_to_do_with_a_fault(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.scenario("second-map.toml")
def test_it(pviommu_device):
    guest = pviommu_device.guest
    maps(guest, 2)
    guest.dma("dma0", 2, 8, dst=0x10000)
    assert False
""",
    )
    result.stdout.fnmatch_lines(
        [
            "last events of 1:",
            "  #1 *: second-map: fail at op.map_pages.pre, *",
            "    why    rule second-map (fail at op.map_pages.pre) acted on this page * ago; it is 57344 bytes past *",
            "    rule   second-map: fail at op.map_pages.pre, * ago",
        ]
    )


def test_a_report_that_cannot_be_made_says_so(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(pviommu_device):
    pviommu_device.machine = pviommu_device._answers = None
    assert 1 == 2
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       assert 1 == 2", "it cannot be shown: AttributeError(*"])


# -- a server ---------------------------------------------------------------------------------------------------------


def test_a_server_and_its_end(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import os, signal

@pytest.mark.scenario("second-map.toml")
def test_fails(pviommu_server):
    assert maps(pviommu_server.connected(), 2) == [0, 0]

@pytest.mark.scenario({"rule": [{"id": "it", "on": "op.alloc_context.pre", "do": {"crash": True}}]})
def test_crashes_and_says_so(pviommu_server):
    with pytest.raises(Exception):
        pviommu_server.connected().usage() and pviommu_server.guests[0].alloc_context()
    assert pviommu_server.wait_for_end() == -signal.SIGKILL

def test_kills_it(pviommu_server):
    pviommu_server.kill()

def test_dies(pviommu_server):
    os.kill(int((pviommu_server.folder / "server.pid").read_text()), signal.SIGKILL)
    assert pviommu_server.process.wait(10) == -signal.SIGKILL
""",
        "--pviommu-patience=1",
    )
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_dies*",
            "the server ended unexpectedly with status -9: *",
            "*-- pviommu server: state --*",
            "    ok   second-map (op.map_pages.pre): fired 1 of 2, *",
            "  #1 *: second-map: fail at op.map_pages.pre, *",
            "*-- pviommu server: log --*",
            '*"event": "listening"*',
        ]
    )


# -- what it is told --------------------------------------------------------------------------------------------------


def test_fixtures_say_what_a_test_is_made_of(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from pviommu.topology import EndpointSection, IommuSection, Topology

class TestObject:
    @pytest.fixture
    def pviommu_topology(self):
        return Topology(IommuSection(name="mine"), (EndpointSection("one", "dma-test", 7, "0000:00:09.1"),))

    def test_it(self, pviommu_device, pviommu_wire):
        for guest in (pviommu_device.guest, pviommu_wire.guest):
            ctx = guest.attach("one")
            assert guest.map(ctx, 0x10, 0x100, 1) == (0, 1)
            guest.fill("one", 0x10000, 0x100000, 64, 5)
        assert pviommu_device.call("endpoints")["endpoints"][0]["sbdf"] == "0000:00:09.1"

    def test_no_object_for_a_process(self, pviommu_server):
        pass

class TestName:
    @pytest.fixture
    def pviommu_topology(self):
        return "nowhere"

    def test_device(self, pviommu_device):
        pass

    def test_server(self, pviommu_server):
        pass

class TestCore:
    @pytest.fixture
    def pviommu_core(self):
        return "c++"

    def test_it(self, pviommu_device):
        pass

    def test_server(self, pviommu_server):
        pass

def test_topology_of_the_option(pviommu_topology, pviommu_device):
    assert pviommu_topology == "one-engine"
    assert list(pviommu_device.guest.engines) == ["dma0"]
""",
        "--pviommu-topology=one-engine",
    )
    result.assert_outcomes(passed=2, errors=5)
    result.stdout.fnmatch_lines(
        [
            "pviommu_topology: a server takes the name or file of a topology, no object",
            "pviommu_topology: cannot read topology nowhere: No such file or directory; shipped are *lab*",
            "pviommu_topology: cannot read topology nowhere: No such file or directory; shipped are *lab*",
            "pviommu_core: 'c++' must be one of auto, native, python",
            "pviommu_core: 'c++' must be one of auto, native, python",
        ]
    )
    result.stdout.no_fnmatch_line("Traceback*")


def test_a_device_may_have_the_native_core(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history has real time, and the report no time that is not over yet."""
    library = make_library(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(core, "native_core", lambda: core.NativeCore(library))
    result = run(
        pytester,
        """
@pytest.mark.parametrize("fixture", ["pviommu_device", "pviommu_wire"])
def test_it(request, fixture):
    device = request.getfixturevalue(fixture)
    assert maps(device.guest, 2) == [0, 0]
    assert device.machine.iommu.engine.core_name == "native"
    assert all(each["ago_ns"] >= 0 for each in device.call("operations")["operations"])
""",
        "--pviommu-core=native",
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        ('"not-there.toml"', "scenario('not-there.toml'): there is no such file: looked for *not-there.toml"),
        ('"second-map"', "scenario('second-map'): give one argument: the name of a .toml or .json file, *"),
        ("", "scenario(): give one argument: *"),
        ('"a.toml", "b.toml"', "scenario('a.toml', 'b.toml'): give one argument: *"),
        ('file="a.toml"', "scenario(file='a.toml'): give one argument: *"),
        ("7", "scenario(7): int is no scenario: give one argument: *"),
        ("(lambda d: d.update(a=d) or d)({})", "scenario({'a': {...}}): *: give one argument: *"),
        ('{"rule": [object()]}', "scenario({'rule': *}): *: give one argument: *"),
    ],
)
def test_a_wrong_marker_is_named_with_the_rule(pytester: pytest.Pytester, mark: str, says: str) -> None:
    result = run(pytester, f"@pytest.mark.scenario({mark})\ndef test_it(pviommu_device):\n    pass\n")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"@pytest.mark.{says}".replace("[", "[[]")])
    result.stdout.no_fnmatch_line("*During handling*")


def test_an_included_scenario_is_taken_by_its_name(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.scenario("slow-completion")
def test_it(pviommu_device):
    pviommu_device.guest.attach("dma0")
""",
    )
    result.stdout.fnmatch_lines(["scenario slow-completion: rule *"])


def test_wrong_rules_are_named_with_their_place(pytester: pytest.Pytester) -> None:
    (pytester.path / "wrong.toml").write_text(SECOND_MAP.replace("map_pages", "map_pagse"))
    result = run(
        pytester,
        """
@pytest.mark.scenario("wrong.toml")
def test_file(pviommu_device):
    pass

@pytest.mark.scenario('''[[rule]]
id = "it"
on = "op.map_pages.pre"
do = { fial = "ENOMEM" }
''')
def test_text(pviommu_device):
    pass

@pytest.mark.scenario({"rule": [{"id": "it", "on": "op.map_pages.pre", "do": {"fail": "EVERY"}}]})
def test_dict(pviommu_device):
    pass
""",
    )
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "scenario *wrong.toml: line 4: *no probe is 'op.map_pagse.pre': *",
            "scenario of the marker: line 4: *fial*",
            "scenario of the marker: rule[[]0[]].do.fail: *EVERY*",
        ]
    )


def test_rules_for_nobody_and_rules_twice_are_wrong(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.scenario("second-map.toml")
def test_nobody():
    pass

@pytest.mark.scenario("second-map.toml")
@pytest.mark.scenario("second-map.toml")
def test_twice(pviommu_device):
    pass
""",
    )
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "the test has more than one marker scenario: rules of one test are in one scenario",
            "@pytest.mark.scenario: the test uses no fixture that takes rules: pviommu_device, *",
        ]
    )


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--pviommu-topology=nowhere", "*--pviommu-topology: cannot read topology nowhere: *; shipped are *lab*"),
        ("--pviommu-core=c++", "*--pviommu-core: invalid choice: 'c++' *"),
        ("--pviommu-patience=0", "*--pviommu-patience 0: give a number of seconds above 0"),
        ("--pviommu-patience=nan", "*--pviommu-patience nan: give a number of seconds above 0"),
        ("--pviommu-vm-timeout=inf", "*--pviommu-vm-timeout inf: give a number of seconds above 0"),
        ("--pviommu-vm-timeout=-1", "*--pviommu-vm-timeout -1: give a number of seconds above 0"),
    ],
)
def test_a_wrong_option_ends_pytest(pytester: pytest.Pytester, option: str, says: str) -> None:
    result = run(pytester, "def test_it():\n    pass\n", option)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])


def test_pytest_lists_all_of_it(pytester: pytest.Pytester) -> None:
    markers = pytester.runpytest_inprocess("--markers")
    markers.stdout.fnmatch_lines(["@pytest.mark.scenario(rules): rules of docs/faults.md for the pviommu_ fixtures *"])

    fixtures = pytester.runpytest_inprocess("--fixtures").stdout.str()
    listed = fixtures[fixtures.index("fixtures defined from pviommu.pytest_plugin") :]
    for name in ("topology", "core", "device", "wire", "server", "vm_options [session scope]", "vm"):
        assert f"\npviommu_{name} -- " in listed
    assert "no docstring available" not in listed.split("\n---")[0]

    options = pytester.runpytest_inprocess("--help").stdout.str()
    for name in ("topology=FILE", "core={auto,native,python}", "patience=SECONDS", "vm-timeout=SECONDS", "vm "):
        assert f"--pviommu-{name}" in options


# -- others -----------------------------------------------------------------------------------------------------------


def test_runs_that_do_not_use_it_load_nothing(tmp_path: Path) -> None:
    """So that neither their time nor a measurement of coverage is disturbed."""
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    code = f"""
import sys, pytest
assert pytest.main(["-q", "-p", "no:cacheprovider", {str(tmp_path)!r}]) == 0
ours = ("pviommu", "pviommu_abi", "vfio_user", "wire_layout", "msgspec", "construct")
print(sorted(name for name in sys.modules if name.partition(".")[0] in ours))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "['pviommu', 'pviommu.pytest_plugin']"
