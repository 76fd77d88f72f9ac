import errno
import os
import resource
import subprocess
import sys

import pytest

from pviommu.counters import Counters
from pviommu.host.descriptors import (
    FEWEST_FILES,
    MOST_FILES,
    RESERVE,
    DescriptorsError,
    check_count,
    raise_limit,
    share_out,
)
from pviommu.inputs import LiveInputs
from pviommu.pci.function import Environment
from pviommu.process.backend import BackendError, _build
from pviommu.topology import EndpointSection, Topology
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest, RequestError


class Function:
    def __init__(self, descriptors):
        self.descriptors = descriptors


def topology(endpoints):
    return Topology(endpoint=tuple(EndpointSection(f"dma{n}", "dma-test", n) for n in range(endpoints)))


def built(endpoints):
    return _build(topology(endpoints), Environment(LiveInputs(), Counters()), None)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def limit():
    """Sets the soft limit of open files; the old one comes back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.row("server", 1)
def test_the_soft_limit_becomes_the_hard_one(limit):
    limit(1024)
    hard = raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_what_is_left_is_shared_out_within_bounds():
    functions = [Function(20), Function(10)]
    fixed = RESERVE + 30 + 4
    assert share_out(functions, fixed + 4 * 100) == 100
    assert share_out(functions, fixed + 4 * FEWEST_FILES) == FEWEST_FILES
    assert share_out(functions, 1 << 20) == MOST_FILES


@pytest.mark.row("server", 1)
def test_a_limit_below_the_need_is_refused_with_both_and_how_to_raise_it():
    need = RESERVE + 34 + 4 * FEWEST_FILES
    with pytest.raises(DescriptorsError) as refused:
        share_out([Function(20), Function(10)], need - 1)
    said = str(refused.value)
    assert f"2 functions of the topology need {need} open files" in said
    assert f"hard limit of this process is {need - 1}" in said
    assert f"ulimit -n {need}" in said
    with pytest.raises(DescriptorsError, match="257 functions of the topology need at least"):
        check_count(257, 1024)


@pytest.mark.row("server", 1)
def test_what_a_machine_needs_covers_what_its_functions_have_open():
    """All vectors armed, all files mapped: the accounts must not be lower than what the kernel counts."""
    before = descriptors()
    machine = built(3)
    functions = list(machine.functions())
    for function in functions:
        for index in IrqIndex:
            for vector in range(function.irq(index).count):
                event = (os.eventfd(0),)
                function.set_irqs(IrqRequest(index, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, event))
    assert descriptors() - before <= sum(function.descriptors for function in functions)
    machine.close()


@pytest.mark.row("server", 1)
def test_the_back_end_hands_out_what_is_left():
    machine = built(3)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    expected = share_out(list(machine.functions()), hard)
    assert {function.memory.policy.max_files for function in machine.functions()} == {expected}
    machine.close()


@pytest.mark.row("server", 1)
def test_a_machine_that_cannot_be_made_is_an_error_of_the_environment(monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENFILE, "Too many open files in system")

    monkeypatch.setattr(os, "memfd_create", no_room)
    with pytest.raises(BackendError, match="cannot be made: Too many open files in system"):
        built(1)


@pytest.mark.row("server", 1)
def test_serve_refuses_what_does_not_fit_with_status_3(tmp_path):
    path = tmp_path / "many.toml"
    path.write_text("".join(f'[[endpoint]]\nname = "d{n}"\nkind = "dma-test"\nstream = {n}\n' for n in range(60)))
    limited = 'ulimit -n 1024 && exec "$@"'
    command = [sys.executable, "-m", "pviommu", "serve", str(path), "--socket-dir", str(tmp_path), "--core", "python"]
    done = subprocess.run(
        ["sh", "-c", limited, "sh", *command], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("pviommu: the 61 functions of the topology need ")
    assert "1024" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.row("server", 12)
def test_another_machine_s_memory_refuses_its_client_as_a_whole_and_in_one_line(make_driver, caplog):
    driver = make_driver()
    driver.plug_ram()
    engine = driver.machine.endpoints["dma0"]
    engine.disconnected()
    other = driver.more_ram(0x10000)
    for page in range(3):
        with pytest.raises(RequestError, match="has other memory there"):
            engine.dma_map(DmaMapping(page << 12, 4096, page << 12, True, True, os.dup(other)))
    os.close(other)
    with pytest.raises(RequestError, match=r"dma0: .* has other memory there") as refused:
        engine.describe()
    assert refused.value.errno == errno.EBUSY
    assert caplog.text.count("client refused") == 1
    engine.disconnected()
    engine.describe()
