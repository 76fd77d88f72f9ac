"""A VM whose lab is a small program, and whose guest is a shell of this host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pviommu.lab.console import HOW_TO_LEAVE
from pviommu.testing import vm as module
from pviommu.testing.vm import AGENT, Vm, VmError

pytest_plugins = ["pytester"]

LAB = f"""
import os, sys
print("making things")
print("control socket /nowhere/control", flush=True)
print({HOW_TO_LEAVE!r}, flush=True)
line = b""
while not line.endswith(b"\\n"):
    line += os.read(0, 1)
assert line == b"exec sh /lab/add/guest-agent.sh console\\n", line
os.dup2(1, 9)
os.environ["AGENT"] = str(os.getpid())
os.execvp("sh", ["sh", {str(AGENT)!r}, "console"])
"""
Start = Callable[..., Vm]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Boots a lab that is this Python program."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "pviommu-environment").write_text("export LAB_IOMMU=0000:00:10.0\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dmesg", "stty"):  # those of this host are not to be asked
        (tools / name).write_text("#!/bin/sh\necho kernel says hello\n" if name == "dmesg" else "#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    made: list[Vm] = []

    def make(program: str = LAB, limit_s: float = 60.0) -> Vm:
        made.append(vm := Vm(tmp_path / "results", limit_s))
        vm._command = [sys.executable, "-c", program]
        return vm.__enter__()

    yield make
    for vm in made:
        vm.close()


def test_commands_have_a_status_and_an_output(start: Start) -> None:
    vm = start()

    assert vm.check("echo one; echo two >&2") == "one\ntwo\n"
    assert vm.check("echo $LAB_IOMMU; pwd") == f"0000:00:10.0\n{AGENT.parent}\n"
    said = vm.run("printf 'no newline: \\377'; exit 3")
    assert (said.status, said.output) == (3, "no newline: \N{REPLACEMENT CHARACTER}")
    assert vm.check("true") == ""
    with pytest.raises(AssertionError, match=r"^'echo why; exit 4' ended with status 4 in the guest:\nwhy\n$"):
        vm.check("echo why; exit 4")
    assert vm.control_socket == Path("/nowhere/control")


def test_long_commands_and_long_outputs_come_whole(start: Start) -> None:
    text = "".join(f"line {number} of 'many'\n" for number in range(2000))

    assert start().check(f"cat <<'END'\n{text}END\n") == text


def test_a_command_that_takes_too_long_is_ended(start: Start) -> None:
    vm = start()

    assert vm.run("echo begun; sleep 60", timeout_s=1).status in (124, 143)
    assert vm.check("echo next") == "next\n"


def test_a_guest_that_is_gone_is_told_with_what_was_said_last(start: Start) -> None:
    vm = start()

    with pytest.raises(VmError, match=r"(?s)^it is gone; the lab said last:\n.*making things"):
        vm.run("kill -9 $AGENT")
    [problem] = [text.splitlines()[0] for text in vm.close()]
    assert problem == "`pviommu lab run` ended with status -9; the lab said last:"


def test_output_that_was_changed_on_its_way_is_noticed(start: Start) -> None:
    with pytest.raises(VmError, match="was not received whole"):
        start().run("echo said; echo '@@said AAAA' >&9")


def test_the_life_of_a_vm_is_bounded(start: Start) -> None:
    with pytest.raises(VmError, match=r"^the VM was ended after 0\.5 s; "):
        start("import time\nprint('booting', flush=True)\ntime.sleep(60)", limit_s=0.5)


def test_a_lab_that_fails_says_why(start: Start) -> None:
    with pytest.raises(VmError, match=r"^it is gone; the lab said last:\npviommu lab: no QEMU here$"):
        start("print('pviommu lab: no QEMU here'); raise SystemExit(3)")


def test_an_end_in_order_is_no_problem(start: Start) -> None:
    assert start().close() == []


def test_kernel_log_is_shown_and_the_console_instead_of_one_that_does_not_come(start: Start, tmp_path: Path) -> None:
    vm = start()
    assert vm.log() == ["kernel log:", "kernel says hello"]
    (tmp_path / "results" / "latest").mkdir(parents=True)
    (tmp_path / "results" / "latest" / "console.log").write_text("Kernel panic\n")
    with pytest.raises(VmError):
        vm.run("kill -9 $AGENT")
    assert vm.log()[1:] == ["console:", "Kernel panic"]


# -- the fixture ------------------------------------------------------------------------------------------------------


def test_tests_skip_without_the_option_and_fail_without_the_cache(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    pytester.makepyfile("def test_it(pviommu_vm):\n    pass\n")

    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(skipped=1)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--pviommu-vm")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["pviommu_vm: QEMU and kernel of the lab are not in its cache: `pviommu lab run --only-setup` puts them there"]
    )


def test_what_the_lab_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_toolbox", lambda: object())
    assert module.why_not() is None
