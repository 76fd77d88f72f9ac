"""The plugin that pytest finds once pviommu is installed (docs/pytest.md): fixtures, a marker and reports.

Nothing of pviommu is imported before a test asks for it: other test runs shall not notice that the plugin is there.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from .faults.scenario import Scenario
    from .interfaces.pv.ring_core import DeviceCore
    from .testing.local import Device
    from .testing.server import RunningServer
    from .testing.subject import Subject
    from .testing.vm import Vm
    from .topology import Topology

__all__ = [
    "pviommu_core",
    "pviommu_device",
    "pviommu_server",
    "pviommu_topology",
    "pviommu_vm",
    "pviommu_vm_options",
    "pviommu_vm_session",
    "pviommu_wire",
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
]

_MARKER = (
    "scenario(rules): rules of docs/faults.md for the pviommu_ fixtures of the test: the name of a .toml or .json file "
    "beside the test or below the root folder, TOML text of more than one line, or a dict. The test fails unless the "
    "rules do what they are expected to"
)
_CORES = ("auto", "native", "python")


_KEY = pytest.StashKey["list[Subject]"]()
"""What the fixtures of a test gave to it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pviommu", "pviommu: a paravirtual IOMMU to test against")
    group.addoption(
        "--pviommu-topology",
        metavar="FILE",
        default="lab",
        help="topology of devices, servers and VMs: a file, or a name of `pviommu topology list`; default: lab",
    )
    group.addoption(
        "--pviommu-core",
        choices=_CORES,
        default="auto",
        help="what devices and servers are made of; default: auto, devices Python, the same each time, and servers "
        "native if that was built",
    )
    group.addoption(
        "--pviommu-patience",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="the longest that anything is waited for in a running server; default: 10",
    )
    group.addoption(
        "--pviommu-vm", action="store_true", help="boot the lab's guest for tests that use it; otherwise these skip"
    )
    group.addoption(
        "--pviommu-vm-timeout",
        metavar="SECONDS",
        type=float,
        default=600.0,
        help="when the guest is killed, counted from its start; default: 600",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    for option in ("--pviommu-patience", "--pviommu-vm-timeout"):
        if not 0 < config.getoption(option) < math.inf:
            raise pytest.UsageError(f"{option} {config.getoption(option):g}: give a number of seconds above 0")
    if config.getoption("--pviommu-topology") != "lab":
        from .topology import TopologyError

        try:
            _topology(config.getoption("--pviommu-topology"))
        except TopologyError as error:
            raise pytest.UsageError(f"--pviommu-topology: {error}") from None


def _topology(name: str | Path) -> Topology:
    from .topology import load

    return load(Path(name))


# -- rules, verdicts, reports -----------------------------------------------------------------------------------------


def _fail(text: str) -> NoReturn:
    """Fail the test by one text, without a trace of what is not the user's."""
    raise pytest.fail.Exception(text, pytrace=False) from None


def _subjects(item: pytest.Item) -> list[Subject]:
    return item.stash.setdefault(_KEY, [])


def _scenario(request: pytest.FixtureRequest) -> tuple[Scenario, str | None]:
    """That of the test's marker, and what to call it; one without rules if there is no marker."""
    from .faults.scenario import Scenario
    from .testing.marker import MarkerError, scenario_of

    marker = request.node.get_closest_marker("scenario")
    if marker is None:
        return Scenario(), None
    if sum(mark.name == "scenario" for mark in request.node.own_markers) > 1:
        _fail("the test has more than one marker scenario: rules of one test are in one scenario")
    folders = (request.path.parent, request.config.rootpath)
    try:
        return scenario_of(marker.args, marker.kwargs, folders)
    except MarkerError as error:
        _fail(f"@pytest.mark.{error}" if str(error).startswith("scenario(") else str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    subjects = _subjects(item)
    if not subjects and item.get_closest_marker("scenario"):
        _fail(
            "@pytest.mark.scenario: the test uses no fixture that takes rules: pviommu_device, pviommu_wire, "
            "pviommu_server or pviommu_vm"
        )
    problems = [problem for subject in subjects for problem in subject.problems()]
    if problems:
        _fail("\n".join(problems))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when != "teardown":  # in which they have gone
        for subject in _subjects(item):
            for what, text in (("state", subject.report), ("log", lambda subject=subject: "\n".join(subject.log()))):
                if said := _said(text):
                    report.sections.append((f"pviommu {subject.name}: {what}", said))
    return report


def _said(text: Callable[[], str]) -> str:
    try:
        return text()
    except Exception as error:  # what failed the test is not to be hidden by what is to explain it
        return f"it cannot be shown: {error!r}"


@contextlib.contextmanager
def _used(request: pytest.FixtureRequest, subject: Subject, name: str | None) -> Iterator[None]:
    """The test is about ``subject``, too. ``name``: of the scenario whose rules it has."""
    subjects = _subjects(request.node)
    subject.begin(name)
    subjects.append(subject)
    try:
        yield
    finally:
        subjects.remove(subject)


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pviommu_topology(request: pytest.FixtureRequest) -> Topology | Path | str:
    """What devices and servers of the test are made by: the name or file of a topology, or for devices a
    pviommu.topology.Topology. It is what --pviommu-topology says; a fixture of this name in your conftest.py or test
    file says it for the tests there.
    """
    name: str = request.config.getoption("--pviommu-topology")
    return name


@pytest.fixture
def pviommu_core(request: pytest.FixtureRequest) -> str:
    """What devices and servers of the test are made of, "native", "python" or "auto": what --pviommu-core says. A
    fixture of this name in your conftest.py or test file says it for the tests there.
    """
    name: str = request.config.getoption("--pviommu-core")
    return name


@pytest.fixture
def pviommu_device(
    request: pytest.FixtureRequest, pviommu_topology: Topology | Path | str, pviommu_core: str
) -> Iterator[Device]:
    """A device in the process of the test, in virtual time and without a socket, and a Python guest on it (.guest)
    whose ring and DMA test engines are on. Has the rules of the marker scenario.
    """
    yield from _device(request, pviommu_topology, pviommu_core, over_the_wire=False)


@pytest.fixture
def pviommu_wire(
    request: pytest.FixtureRequest, pviommu_topology: Topology | Path | str, pviommu_core: str
) -> Iterator[Device]:
    """As pviommu_device, but the guest reaches the device by sockets and vfio-user messages. Still in one process and
    in virtual time.
    """
    yield from _device(request, pviommu_topology, pviommu_core, over_the_wire=True)


def _device(
    request: pytest.FixtureRequest, topology: Topology | Path | str, core: str, *, over_the_wire: bool
) -> Iterator[Device]:
    from .testing.local import Device
    from .topology import Topology, TopologyError

    scenario, name = _scenario(request)
    if not isinstance(topology, Topology):
        try:
            topology = _topology(topology)
        except TopologyError as error:
            _fail(f"pviommu_topology: {error}")
    with Device(topology, scenario, _core(core), over_the_wire=over_the_wire) as device, _used(request, device, name):
        yield device


def _check_core(name: str) -> None:
    if name not in _CORES:
        _fail(f"pviommu_core: {name!r} must be one of {', '.join(_CORES)}")


def _core(name: str) -> DeviceCore | None:
    """None: Python's."""
    _check_core(name)
    if name != "native":
        return None
    from .native.build import LibraryError
    from .native.core import native_core

    try:
        return native_core()
    except LibraryError as error:
        _fail(f"pviommu_core native: {error}")


@pytest.fixture
def pviommu_server(
    request: pytest.FixtureRequest, pviommu_topology: Path | str, pviommu_core: str
) -> Iterator[RunningServer]:
    """A running `pviommu serve`: its folder with a socket for each function (.folder), its control socket
    (.control_socket, .call()), guests that connect to it (.connected()). Has the rules of the marker scenario. If the
    test fails, the end of its log is shown.
    """
    from .lab.problems import RunError, UsageError
    from .testing.server import RunningServer
    from .topology import TopologyError, find

    scenario, name = _scenario(request)
    patience: float = request.config.getoption("--pviommu-patience")
    if not isinstance(pviommu_topology, str | Path):
        _fail("pviommu_topology: a server takes the name or file of a topology, no object")
    _check_core(pviommu_core)
    path = find(Path(pviommu_topology))
    with tempfile.TemporaryDirectory(prefix="pviommu-") as folder:  # pytest's own are too long for sockets
        try:
            server = RunningServer(path, pviommu_core, Path(folder), scenario, patience)
            server.start()
        except TopologyError as error:
            _fail(f"pviommu_topology: {error}")
        except (UsageError, RunError) as error:
            _fail(f"pviommu_server: {error}")
        with server:
            with _used(request, server, name):
                yield server
            problems = server.stop()
    if problems:
        _fail("\n".join(problems))


@pytest.fixture(scope="session")
def pviommu_vm_options() -> list[str]:
    """Further options of `pviommu lab run` for the VM, such as ["--add", "program"]: none. A fixture of this name and
    scope in your conftest.py says others.
    """
    return []


@pytest.fixture(scope="session")
def pviommu_vm_session(
    request: pytest.FixtureRequest, pviommu_vm_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vm]:
    """The VM of all tests of the run, for fixtures of session scope: rules and reports come with pviommu_vm."""
    config = request.config
    if not config.getoption("--pviommu-vm"):
        pytest.skip("it boots a VM: needs --pviommu-vm")
    from .testing.vm import Vm, VmError, why_not

    if reason := why_not():
        _fail(f"pviommu_vm: {reason}")
    topology = ["--topology", config.getoption("--pviommu-topology")]
    results, limit = tmp_path_factory.mktemp("pviommu-vm"), config.getoption("--pviommu-vm-timeout")
    vm = Vm(results, limit, [*topology, *map(str, pviommu_vm_options)])
    try:
        vm.__enter__()
    except VmError as error:
        _fail(f"pviommu_vm: {error}")
    try:
        yield vm
    finally:
        problems = vm.close()
    if problems:
        _fail("\n".join(problems))


@pytest.fixture
def pviommu_vm(request: pytest.FixtureRequest, pviommu_vm_session: Vm) -> Iterator[Vm]:
    """The lab's guest, booted once for all tests if --pviommu-vm was given: commands in it (.run(), .check()) and the
    control socket of its server (.call()). Has the rules of the marker scenario while the test runs. If the test fails,
    the guest's kernel log is shown, or its console if it does not answer.
    """
    scenario, name = _scenario(request)
    with _used(request, pviommu_vm_session, None):
        if name is not None:
            pviommu_vm_session.load(scenario, name)
        yield pviommu_vm_session
        pviommu_vm_session.unload()
