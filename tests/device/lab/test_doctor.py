"""What the doctor says of machines that lack one thing or another."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pviommu.lab import doctor
from pviommu.lab.accelerator import remembered_trial
from pviommu.lab.doctor import Finding, Host, Status, examine
from pviommu.lab.processes import Outcome
from pviommu.lab.provision import Toolbox

MEMORY = "MemTotal: 24000000 kB\nMemAvailable:   {kib} kB\n"


@dataclass
class Machine:
    """A machine with a Debian that has apt and nothing else; ``fails`` are words of commands that do not work."""

    folder: Path
    fails: tuple[str, ...] = ()
    kib: int = 16 << 20
    machine: str = "x86_64"
    backends: str = "user"
    open_url: Callable[[str], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, command: Sequence[str]) -> Outcome:
        if any(word in self.fails for word in command):
            return Outcome(1, "refused")
        if "indextargets" in command:
            return Outcome(0, "Packages http://mirror.example/debian trixie Debian\n")
        return Outcome(0, f"Available netdev backend types:\n{self.backends}\n")

    @property
    def findings(self) -> dict[str, Finding]:
        """Findings by their subjects."""
        information = self.folder / "meminfo"
        information.write_text(MEMORY.format(kib=self.kib))
        host = Host(
            run=self.run,
            environment={"XDG_CACHE_HOME": str(self.folder / "cache"), **self.environment},
            machine=self.machine,
            memory_information=information,
            kvm=self.folder / "kvm",
            open_url=self.open_url,
            libvfio_user="libvfio-user-no-such.so",
        )
        return {finding.subject: finding for finding in examine(host)}

    @property
    def missing(self) -> set[str]:
        """Subjects without which no run can work."""
        return {subject for subject, finding in self.findings.items() if finding.status is Status.MISSING}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(doctor, "require_tools", lambda run, machine: real_tools(run, machine, keyring))
    monkeypatch.setattr("shutil.which", lambda program: None)
    return Machine(tmp_path)


real_tools = doctor.require_tools


@pytest.fixture
def toolbox(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Toolbox:
    """What the machine has in its cache: everything for Debian's kernel."""
    root = machine.folder / "root"
    made = Toolbox(root, (str(root / "qemu"),), {}, "11.1.3", root / "vmlinuz", "6.12.107", root / "busybox")
    monkeypatch.setattr(doctor, "find_toolbox", lambda **options: made)
    return made


def test_fresh_debian_lacks_nothing_and_fetches_the_rest(machine: Machine) -> None:
    findings = machine.findings

    assert machine.missing == set()
    later = {subject for subject, finding in findings.items() if finding.status is Status.LATER}
    assert {"QEMU", "packages", "compiler", "kernel debian", "kernel lab-debug"} <= later
    assert findings["packages"].text == "about 150 MB from http://mirror.example/debian"
    assert findings["kernel lab"].how == "pviommu lab run --kernel lab --only-setup"


def test_nothing_is_made(machine: Machine) -> None:
    assert machine.findings
    assert not (machine.folder / "cache").exists()


@pytest.mark.usefixtures("toolbox")
def test_filled_cache_needs_no_apt(machine: Machine) -> None:
    machine.fails = ("apt-get",)
    findings = machine.findings

    assert machine.missing == set()
    assert findings["QEMU"] == Finding(Status.OK, "QEMU", "11.1.3 with vfio-user-pci, in the cache")
    assert findings["kernel debian"].text == "Linux 6.12.107"
    assert findings["kernel debian-7"].status is Status.LATER
    assert findings["Debian packages"].status is Status.NOTE


@pytest.mark.parametrize(
    ("fails", "subject", "how"),
    [
        ("apt-get", "Debian packages", "install the package apt"),
        ("indextargets", "Debian packages", "set PVIOMMU_DEBIAN_MIRROR"),
        ("unshare", "change of root", "allow user namespaces"),
    ],
)
def test_what_is_missing_comes_with_how_to_get_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fails: str, subject: str, how: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    machine.fails = (fails,)

    assert machine.missing == {subject}
    assert machine.findings[subject].how.startswith(how)


def test_other_processors_are_refused(machine: Machine) -> None:
    machine.machine = "aarch64"

    assert "machine" in machine.missing


@pytest.mark.usefixtures("toolbox")
def test_qemu_without_the_user_network_is_noted(machine: Machine) -> None:
    machine.backends = "socket"

    assert machine.findings["QEMU"].status is Status.NOTE
    assert "without the user network" in machine.findings["QEMU"].text


def test_machine_without_kvm_or_with_little_memory_is_slower_not_refused(machine: Machine) -> None:
    machine.kib = 1 << 20
    findings = machine.findings

    assert machine.missing == set()
    assert findings["KVM"].text == f"there is no {machine.folder}/kvm: TCG is used"
    assert (findings["memory"].status, findings["memory"].text) == (Status.NOTE, "1.0 GiB available")


@pytest.mark.parametrize(("said", "status"), [("yes", Status.OK), ("no", Status.NOTE)])
def test_trial_of_kvm_is_remembered(
    machine: Machine, toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch, said: str, status: Status
) -> None:
    (machine.folder / "kvm").touch()
    assert machine.findings["KVM"].text.endswith("the first run tries whether a guest runs under it")
    monkeypatch.setattr(doctor.accelerator, "remembered_trial", lambda toolbox, cache: said == "yes")

    assert machine.findings["KVM"].status is status
    assert remembered_trial(toolbox, machine.folder) is None


@pytest.mark.parametrize("there", [False, True])
def test_full_disk_matters_while_there_is_something_to_fetch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, there: bool
) -> None:
    if there:
        request.getfixturevalue("toolbox")
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=1_000_000))

    assert machine.missing == (set() if there else {"cache"})


def test_network_is_asked_only_when_told_to(machine: Machine) -> None:
    assert "mirror" not in machine.findings
    asked: list[str] = []
    machine.open_url = asked.append

    assert machine.findings["mirror"].status is Status.OK
    assert asked == ["http://mirror.example/debian/dists/trixie/InRelease"]


def test_mirror_that_does_not_answer_is_missing_while_there_is_something_to_fetch(machine: Machine) -> None:
    def refuse(address: str) -> None:
        raise OSError("no route")

    machine.open_url = refuse

    assert machine.missing == {"mirror"}


@pytest.mark.parametrize(
    ("machine_name", "status", "verdict"), [("x86_64", 0, "can work here"), ("riscv64", 3, "cannot work here")]
)
def test_status_says_whether_a_run_can_work(machine: Machine, machine_name: str, status: int, verdict: str) -> None:
    (machine.folder / "meminfo").write_text(MEMORY.format(kib=16 << 20))
    host = Host(machine.run, {"XDG_CACHE_HOME": str(machine.folder)}, machine_name, machine.folder / "meminfo")
    out = io.StringIO()

    assert doctor.main(argparse.Namespace(network=False, qemu=None), out=out, host=host) == status
    assert f"pviommu lab run {verdict}" in out.getvalue()


def test_this_machine_is_described() -> None:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    out = io.StringIO()
    doctor.main(parser.parse_args([]), out=out)

    assert "Python" in out.getvalue()


def test_libvfio_user_is_no_condition_and_how_to_get_it_is_said(machine: Machine) -> None:
    assert machine.findings["libvfio-user"] == Finding(
        Status.NOTE,
        "libvfio-user",
        "libvfio-user-no-such.so: none is installed, and LIBVFIO_USER names none",
        "build one: pviommu build-libvfio-user",
    )


def test_a_named_libvfio_user_that_cannot_be_used_is_said_with_the_reason(machine: Machine) -> None:
    machine.environment = {"LIBVFIO_USER": str(machine.folder / "no.so")}
    finding = machine.findings["libvfio-user"]
    assert (finding.status, finding.text) == (Status.NOTE, f"{machine.folder}/no.so: LIBVFIO_USER names no file")
