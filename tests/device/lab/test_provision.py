"""Provisioning: the host's QEMU or a private one, and the root that holds what a run needs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pviommu.lab import provision, roots
from pviommu.lab.apt import MIRROR_VARIABLE, Package, PrivateApt
from pviommu.lab.architecture import ARM64
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress
from pviommu.lab.roots import archives_in

FILES = ("base-files_1_amd64.deb", "linux-image_1_amd64.deb", "qemu_1_amd64.deb")


class FakeHost:
    """A host whose dpkg-deb 'unpacks' a kernel, busybox and QEMU, and whose QEMU has a version."""

    def __init__(self, qemu: str = "11.1.3", *, vfio_user: bool = True) -> None:
        self.qemu = qemu
        self.vfio_user = vfio_user
        self.unpacked: list[str] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        if command[0] == "dpkg-deb" and command[1] == "-x":
            return self._unpack(Path(command[2]), Path(command[3]))
        if "vfio-user-pci,help" in command:
            return Outcome(0 if self.vfio_user else 1, "")
        if command[-1] == "--version" and "qemu" in " ".join(command):
            return Outcome(0, f"QEMU emulator version {self.qemu} (Debian 1:{self.qemu}+ds-1)\n")
        return Outcome(0, "")

    def _unpack(self, file: Path, root: Path) -> Outcome:
        self.unpacked.append(file.name)
        (root / "boot").mkdir(exist_ok=True)
        (root / "usr/bin").mkdir(parents=True, exist_ok=True)
        (root / f"boot/vmlinuz-6.12.1-cloud{'-arm64' if 'arm64' in file.name else ''}").touch()
        (root / "usr/bin/busybox").touch()
        return Outcome(0, "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(provision.shutil, "which", lambda program: None)
    monkeypatch.setattr(roots, "require_tools", lambda run, machine: None)
    monkeypatch.setattr(PrivateApt, "resolve", lambda self, packages: [Package(name, 1) for name in FILES])
    monkeypatch.setattr(
        PrivateApt, "download", lambda self, packages, progress: [self.archives / name for name in FILES]
    )
    return {"XDG_CACHE_HOME": str(tmp_path), MIRROR_VARIABLE: "http://mirror.example/debian"}


def progress() -> Progress:
    return Progress(io.StringIO(), provision.STEPS)


def test_private_root_is_made_once_and_then_found(cache: dict[str, str]) -> None:
    host = FakeHost()
    first = provision.provision(progress(), environment=cache, run=host)
    second = provision.provision(progress(), environment=cache, run=host)
    assert first == second
    assert sorted(host.unpacked) == sorted(FILES)
    assert first.kernel_release == "6.12.1-cloud"
    assert first.qemu_version == "11.1.3"
    assert first.qemu_command[0].startswith(str(first.root))


def test_find_gives_what_was_provided_and_fetches_nothing(cache: dict[str, str]) -> None:
    host = FakeHost()
    assert provision.find_toolbox(environment=cache, run=host) is None
    provided = provision.provision(progress(), environment=cache, run=host)
    assert provision.find_toolbox(environment=cache, run=host) == provided


def test_qemu_for_arm_is_a_layer_of_its_own_that_is_made_on_demand(cache: dict[str, str]) -> None:
    host = FakeHost()
    base = provision.provision(progress(), environment=cache, run=host)
    made = provision.arm_qemu(progress(), environment=cache, run=host)

    assert made == provision.arm_qemu(progress(), environment=cache, run=host)
    assert any(word.endswith("/usr/bin/qemu-system-aarch64") for word in made.command)
    assert not made.command[0].startswith(str(base.root))
    assert made.version == "11.1.3"


def test_guests_of_arm64_get_a_layer_with_their_packages_on_the_hosts_root(
    cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    architectures: list[tuple[str, ...]] = []
    make = PrivateApt.__init__

    def noting(self: PrivateApt, *args: Any, **others: Any) -> None:
        architectures.append(tuple(others["architectures"]))
        make(self, *args, **others)

    def resolve(self: PrivateApt, packages: Sequence[str]) -> list[Package]:
        asked.append(tuple(packages))
        if len(asked) == 1:
            return [Package(name, 1) for name in FILES]
        names = ["busybox-static_1_arm64.deb", "gcc-14_1_arm64.deb", "linux-headers-6.12.1-common_1_all.deb"]
        return [Package(name, 1) for name in (names if len(asked) == 3 else ["gcc-14-aarch64_1_amd64.deb"])]

    def download(self: PrivateApt, packages: Sequence[Package], progress: object) -> list[Path]:
        return [self.archives / package.file_name for package in packages]

    monkeypatch.setattr(PrivateApt, "__init__", noting)
    monkeypatch.setattr(PrivateApt, "resolve", resolve)
    monkeypatch.setattr(PrivateApt, "download", download)

    found = provision.provision(progress(), architecture=ARM64, environment=cache, run=FakeHost())
    base = provision.find_toolbox(environment=cache, run=FakeHost())

    assert base is not None
    assert architectures == [("amd64",), ("amd64", "arm64")]
    assert {"qemu-system-arm/trixie-backports", "gcc-aarch64-linux-gnu"} <= set(asked[1])
    assert {"linux-image-cloud-arm64:arm64", "busybox-static:arm64"} <= set(asked[2])
    assert all(":arm64" in package for package in asked[2])
    added = archives_in(found.root)[len(archives_in(base.root)) :]
    assert added == [  # no compiler that runs on arm64
        "gcc-14-aarch64_1_amd64.deb",
        "busybox-static_1_arm64.deb",
        "linux-headers-6.12.1-common_1_all.deb",
    ]
    assert found.root != base.root
    assert found.qemu_command[-5] == str(found.root / "usr/bin/qemu-system-aarch64")
    assert found.kernel_release == "6.12.1-cloud-arm64"
    assert (found.busybox, found.runnable_busybox) == (found.root / "usr/bin/busybox", base.busybox)


def test_able_qemu_of_the_host_is_used(cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision.shutil, "which", lambda program: "/usr/bin/qemu-system-x86_64")
    toolbox = provision.provision(progress(), environment=cache, run=FakeHost("10.1.0"))
    assert toolbox.qemu_command == ("/usr/bin/qemu-system-x86_64",)
    assert toolbox.versions == {"qemu": "10.1.0", "kernel": "6.12.1-cloud"}


@pytest.mark.parametrize(("version", "vfio_user"), [("7.2.0", True), ("10.0.9", True), ("10.2.0", False)])
def test_host_qemu_that_is_too_old_or_lacks_the_device_is_passed_over(
    cache: dict[str, str], monkeypatch: pytest.MonkeyPatch, version: str, vfio_user: bool
) -> None:
    monkeypatch.setattr(provision.shutil, "which", lambda program: "/usr/bin/qemu-system-x86_64")
    toolbox = provision.provision(progress(), environment=cache, run=FakeHost(version, vfio_user=vfio_user))
    assert toolbox.qemu_command[0].startswith(str(toolbox.root))


def test_named_qemu_that_does_not_exist_is_refused(cache: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem, match="--qemu /no/such: no such program"):
        provision.provision(progress(), qemu="/no/such", environment=cache, run=lambda command: Outcome(127, ""))


def test_named_qemu_that_is_unable_is_refused(cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision.shutil, "which", lambda program: program)
    with pytest.raises(EnvironmentProblem, match=r"is not a QEMU >= 10\.1 with the device vfio-user-pci"):
        provision.provision(progress(), qemu="/old/qemu", environment=cache, run=FakeHost("8.0.0"))


def test_cache_folder_follows_the_environment() -> None:
    assert provision.cache_folder({"HOME": "/home/someone"}) == Path("/home/someone/.cache/pviommu")
    assert provision.cache_folder({"XDG_CACHE_HOME": "/big"}) == Path("/big/pviommu")
