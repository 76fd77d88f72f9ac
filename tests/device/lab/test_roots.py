"""Private roots: whole or absent, one maker at a time, and layers that hold only what their base lacks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.lab import roots
from pviommu.lab.apt import MIRROR_VARIABLE, Package, PrivateApt
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress

ENVIRONMENT = {MIRROR_VARIABLE: "http://mirror.example/debian"}


class FakeHost:
    """Its mirror has an archive for each package and one that all of them need; dpkg-deb writes a file for each."""

    def __init__(self) -> None:
        self.unpacked: list[str] = []
        self.unpack_fails = False
        self.interrupted = False
        self.downloaded: list[str] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        if list(command[:2]) != ["dpkg-deb", "-x"]:
            return Outcome(0, "")
        file, root = Path(command[2]), Path(command[3])
        if self.unpack_fails:
            return Outcome(2, "dpkg-deb: error: No space left on device\n")
        self.unpacked.append(file.name)
        (root / "usr/bin").mkdir(parents=True, exist_ok=True)
        (root / "usr/share/doc").mkdir(parents=True, exist_ok=True)
        (root / f"usr/bin/{file.name}").write_text(file.name)
        return Outcome(0, "")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    def resolve(apt: PrivateApt, packages: Sequence[str]) -> list[Package]:
        return [Package(f"{name}_1_amd64.deb", 1) for name in ("libc6", *packages)]

    def download(apt: PrivateApt, archives: Sequence[Package], progress: object) -> list[Path]:
        for archive in archives:
            if not (apt.archives / archive.file_name).exists():
                (apt.archives / archive.file_name).write_text(archive.file_name)
                fake.downloaded.append(archive.file_name)
                if fake.interrupted:
                    raise KeyboardInterrupt
        return [apt.archives / archive.file_name for archive in archives]

    fake = FakeHost()

    monkeypatch.setattr(roots, "require_tools", lambda run, machine: None)
    monkeypatch.setattr(PrivateApt, "resolve", resolve)
    monkeypatch.setattr(PrivateApt, "download", download)
    return fake


def make(folder: Path, host: FakeHost, *packages: str, base: Path | None = None) -> Path:
    progress = Progress(io.StringIO(), roots.STEPS)
    return roots.private_root(folder, packages, progress, ENVIRONMENT, host, base=base)


def test_root_is_made_once_and_then_found(tmp_path: Path, host: FakeHost) -> None:
    first = make(tmp_path, host, "gcc")

    assert make(tmp_path, host, "gcc") == first
    assert sorted(host.unpacked) == ["gcc_1_amd64.deb", "libc6_1_amd64.deb"]
    assert roots.archives_in(first) == ["libc6_1_amd64.deb", "gcc_1_amd64.deb"]


def test_base_files_are_unpacked_first(tmp_path: Path, host: FakeHost) -> None:
    make(tmp_path, host, "gcc", "base-files")

    assert host.unpacked[0] == "base-files_1_amd64.deb"


def test_failed_unpacking_leaves_no_root_behind(tmp_path: Path, host: FakeHost) -> None:
    host.unpack_fails = True
    with pytest.raises(EnvironmentProblem, match="No space left"):
        make(tmp_path, host, "gcc")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "lock"]


def test_remains_of_a_killed_run_are_removed(tmp_path: Path, host: FakeHost) -> None:
    remains = tmp_path / "making-dead/root"
    remains.mkdir(parents=True)
    make(tmp_path, host, "gcc")

    assert not remains.parent.exists()


@pytest.mark.row("server", 114)
def test_an_interrupted_download_goes_on_where_it_was_and_leaves_nothing_once_the_root_is_complete(
    tmp_path: Path, host: FakeHost
) -> None:
    host.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, host, "gcc")
    assert host.downloaded == ["libc6_1_amd64.deb"]

    host.interrupted = False
    root = make(tmp_path, host, "gcc")

    assert host.downloaded == ["libc6_1_amd64.deb", "gcc_1_amd64.deb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", root.name]


def test_cache_folder_that_cannot_be_made_is_an_environment_problem(tmp_path: Path, host: FakeHost) -> None:
    (tmp_path / "pviommu").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match="cannot be filled"):
        make(tmp_path / "pviommu", host, "gcc")


def test_layer_fetches_only_what_its_base_lacks_and_has_all_of_it(tmp_path: Path, host: FakeHost) -> None:
    base = make(tmp_path, host, "gcc")
    host.unpacked.clear()
    layer = make(tmp_path, host, "flex", base=base)

    assert host.unpacked == ["flex_1_amd64.deb"]
    assert (layer / "usr/bin/gcc_1_amd64.deb").samefile(base / "usr/bin/gcc_1_amd64.deb")
    assert roots.archives_in(layer) == ["libc6_1_amd64.deb", "gcc_1_amd64.deb", "flex_1_amd64.deb"]
    assert roots.archives_in(base) == ["libc6_1_amd64.deb", "gcc_1_amd64.deb"]


def test_layer_starts_with_working_folders_of_its_own_and_without_documents(tmp_path: Path, host: FakeHost) -> None:
    base = make(tmp_path, host, "gcc")
    (base / "build/work").mkdir()
    (base / "usr/share/doc/gcc").mkdir()
    layer = make(tmp_path, host, "flex", base=base)

    assert list((layer / "build").iterdir()) == []
    assert not (layer / "usr/share/doc/gcc").exists()


def test_same_packages_upon_another_base_are_another_layer(tmp_path: Path, host: FakeHost) -> None:
    small, large = make(tmp_path, host, "gcc"), make(tmp_path, host, "gcc", "make")

    assert make(tmp_path, host, "flex", base=small) != make(tmp_path, host, "flex", base=large)


def test_find_gives_a_made_root_and_makes_none(tmp_path: Path, host: FakeHost) -> None:
    assert roots.find_root(tmp_path, ("gcc",)) is None
    assert list(tmp_path.iterdir()) == []
    base = make(tmp_path, host, "gcc")

    assert roots.find_root(tmp_path, ("gcc",)) == base
    assert roots.find_root(tmp_path, ("gcc",), base=base) is None
