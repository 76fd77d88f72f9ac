"""KVM is used only where a guest really ran under it, and the answer is remembered."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.lab import accelerator
from pviommu.lab.architecture import ARM64
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox


class Host:
    """A host with a KVM device whose guests run, or do not."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, works: bool) -> None:
        self.folder = folder
        self.trials = 0
        self.works = works
        (folder / "kvm").touch()
        (folder / "boot_id").write_text("boot 1\n")
        self.toolbox = Toolbox(folder, ("qemu",), {}, "11.1", folder / "k", "6.12", folder / "b")
        monkeypatch.setattr(accelerator, "kvm_runs_a_guest", self._trial)

    def _trial(self, toolbox: Toolbox) -> bool:
        self.trials += 1
        return self.works

    def choose(self, requested: str) -> str:
        return accelerator.choose_accelerator(
            requested,
            self.toolbox,
            self.folder,
            Progress(io.StringIO(), 1),
            device=self.folder / "kvm",
            boot_id=self.folder / "boot_id",
        )


def test_kvm_is_chosen_after_one_trial_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=True)
    assert [host.choose("auto"), host.choose("auto"), host.choose("kvm")] == ["kvm", "kvm", "kvm"]
    assert host.trials == 1


def test_tcg_is_chosen_after_one_trial_that_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=False)
    assert [host.choose("auto"), host.choose("auto")] == ["tcg", "tcg"]
    assert host.trials == 1


def test_a_guest_of_another_architecture_is_emulated_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, monkeypatch, works=True)
    host.toolbox = replace(host.toolbox, architecture=ARM64)
    assert host.choose("auto") == "tcg"
    with pytest.raises(EnvironmentProblem, match="--accel kvm: this host's processor runs no guest of arm64"):
        host.choose("kvm")
    assert host.trials == 0


def test_reboot_of_the_host_asks_for_a_new_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=False)
    host.choose("auto")
    (tmp_path / "boot_id").write_text("boot 2\n")
    host.works = True
    assert host.choose("auto") == "kvm"


def test_tcg_on_request_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=True)
    assert host.choose("tcg") == "tcg"
    assert host.trials == 0


def test_no_device_means_tcg_without_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=True)
    (tmp_path / "kvm").unlink()
    assert host.choose("auto") == "tcg"
    assert host.trials == 0


def test_kvm_on_request_is_refused_where_no_guest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, monkeypatch, works=False)
    with pytest.raises(EnvironmentProblem, match=r"--accel kvm: .* cannot run a guest here; .*--accel tcg"):
        host.choose("kvm")
