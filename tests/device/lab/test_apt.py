"""The private apt: which mirror, which hosts are refused and with which words, what it asks apt for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.lab.apt import MIRROR_VARIABLE, Package, PrivateApt, choose_mirror, require_tools
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Outcome


class FakeHost:
    """Answers programs by name and remembers the commands."""

    def __init__(self, **answers: Outcome) -> None:
        self.answers = answers
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        self.commands.append(list(command))
        return self.answers.get(command[0].replace("-", "_"), Outcome(0, ""))


def host_with(targets: str) -> FakeHost:
    return FakeHost(apt_get=Outcome(0, targets))


def test_environment_names_the_mirror_without_asking_apt() -> None:
    host = FakeHost()
    assert choose_mirror({MIRROR_VARIABLE: "http://mirror.example/debian/"}, host) == "http://mirror.example/debian"
    assert host.commands == []


def test_first_debian_archive_of_the_host_is_taken_and_security_passed_over() -> None:
    host = host_with(
        "Packages http://a.example/debian-security/ bookworm-security Debian\n"
        "Packages http://b.example/node/ nodistro Other Vendor\n"
        "Translations http://c.example/debian/ bookworm Debian\n"
        "Packages http://d.example/debian/ bookworm Debian\n"
    )
    assert choose_mirror({}, host) == "http://d.example/debian"


def test_unknown_origin_is_taken_only_for_a_release_of_debian() -> None:
    assert choose_mirror({}, host_with("Packages http://a.example/debian/ bookworm \n")) == "http://a.example/debian"
    with pytest.raises(EnvironmentProblem):
        choose_mirror({}, host_with("Packages http://a.example/ubuntu/ noble \n"))


@pytest.mark.parametrize(
    "targets",
    ["", "Packages http://a.example/ubuntu/ noble Ubuntu\n", "Packages cdrom:[Debian]/ bookworm Debian\n"],
)
def test_host_without_a_debian_mirror_is_told_how_to_name_one(targets: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"no Debian mirror is known.*set {MIRROR_VARIABLE}"):
        choose_mirror({}, host_with(targets))


def test_mirror_that_is_no_url_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match="not a URL"):
        choose_mirror({MIRROR_VARIABLE: "mirror.example"}, FakeHost())


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="this host is aarch64"):
        require_tools(FakeHost(), "aarch64", tmp_path)


def test_host_without_apt_is_refused_with_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"apt-get is missing.*install the package apt"):
        require_tools(FakeHost(apt_get=Outcome(127, "")), "x86_64", tmp_path)


def test_missing_keyring_is_refused_with_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="install the package debian-archive-keyring"):
        require_tools(FakeHost(), "x86_64", tmp_path / "keyring.gpg")


def test_complete_host_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "keyring.gpg").touch()
    require_tools(FakeHost(), "x86_64", tmp_path / "keyring.gpg")


def test_sources_are_signed_by_the_keyring_and_nothing_unsigned_is_allowed(tmp_path: Path) -> None:
    PrivateApt(tmp_path, "http://mirror.example/debian", FakeHost(), keyring=Path("/keys/k.gpg"))
    lines = (tmp_path / "sources.list").read_text().splitlines()
    assert lines[0] == "deb [signed-by=/keys/k.gpg arch=amd64] http://mirror.example/debian trixie main"
    assert all("signed-by=" in line and "trusted" not in line for line in lines)
    settings = (tmp_path / "apt.conf").read_text()
    assert 'APT::Get::AllowUnauthenticated "false";' in settings
    assert 'Acquire::AllowInsecureRepositories "false";' in settings


def test_resolve_gives_names_and_sizes_of_the_archives(tmp_path: Path) -> None:
    host = FakeHost(
        apt_get=Outcome(
            0,
            "'http://m/pool/a_1%2b2_amd64.deb' a_1%2b2_amd64.deb 1000 SHA256:ab\n"
            "'http://m/pool/b_1_all.deb' b_1_all.deb 24 SHA256:cd\nnoise\n",
        )
    )
    found = PrivateApt(tmp_path, "http://m", host).resolve(["a", "b"])
    assert found == [
        Package("a_1%2b2_amd64.deb", 1000, "ab", "http://m/pool/a_1%2b2_amd64.deb"),
        Package("b_1_all.deb", 24, "cd", "http://m/pool/b_1_all.deb"),
    ]
    assert "--print-uris" in host.commands[0]
    assert host.commands[0][-2:] == ["a", "b"]


def test_failed_update_shows_apts_words(tmp_path: Path) -> None:
    host = FakeHost(apt_get=Outcome(100, "Hit:1 x\nE: Failed to fetch http://m/dists  Could not resolve 'm'\n"))
    with pytest.raises(EnvironmentProblem, match=r"Could not resolve 'm'; check the network"):
        PrivateApt(tmp_path, "http://m", host).update()


def test_unknown_signature_asks_for_a_newer_keyring(tmp_path: Path) -> None:
    host = FakeHost(apt_get=Outcome(100, "W: GPG error: NO_PUBKEY 6ED0E7B82643E131\n"))
    with pytest.raises(EnvironmentProblem, match="update the package debian-archive-keyring"):
        PrivateApt(tmp_path, "http://m", host).update()


@pytest.mark.parametrize(
    ("file_name", "specification"),
    [
        ("gcc_4%3a14.2.0-1_amd64.deb", "gcc=4:14.2.0-1"),
        ("cpio_2.15+dfsg-2_all.deb", "cpio=2.15+dfsg-2"),
        ("busybox-static_1%3a1.37.0-6_arm64.deb", "busybox-static:arm64=1:1.37.0-6"),
    ],
)
def test_archive_names_its_package_and_version(file_name: str, specification: str) -> None:
    assert Package(file_name, 1).specification == specification


def test_download_fetches_just_the_archives_and_reports_fractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin/apt-get"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\necho "$@" >../words\ntouch a_1_amd64.deb\n'
        "echo dlstatus:1:25.5:Retrieving\necho dlstatus:2:100:Retrieving\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    apt = PrivateApt(tmp_path / "apt", "http://m", FakeHost())
    fractions: list[float] = []

    assert apt.download([Package("a_1_amd64.deb", 5)], fractions.append) == [apt.archives / "a_1_amd64.deb"]

    assert fractions == [0.255, 1.0]
    words = (tmp_path / "apt/words").read_text().split()
    assert "download" in words
    assert words[-1] == "a=1"


def test_failed_download_shows_apts_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin/apt-get"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'E: Hash Sum mismatch' >&2\nexit 100\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(EnvironmentProblem, match="cannot be downloaded: E: Hash Sum mismatch"):
        PrivateApt(tmp_path / "apt", "http://m", FakeHost()).download([], lambda fraction: None)


@pytest.mark.row("server", 114)
def test_what_is_there_is_kept_if_it_is_whole_or_can_be_continued_and_nothing_damaged_or_foreign_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin/apt-get"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexec ls >../found\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    apt = PrivateApt(tmp_path / "apt", "http://m", FakeHost())
    digest = hashlib.sha256(b"whole").hexdigest()
    contents = {
        "whole_1%2b2": b"whole",
        "begun_1": b"wh",
        "damaged_1": b"WHOLE",
        "long_1": b"whole and more",
        "other_1": b"",
    }
    for name, content in contents.items():
        (apt.archives / f"{name}_all.deb").write_bytes(content)
    wanted = [Package(f"{name}_all.deb", 5, digest) for name in ("whole_1+2", "begun_1", "damaged_1", "long_1")]

    apt.download(wanted, lambda fraction: None)

    found = (tmp_path / "apt/found").read_text().split()
    assert found == ["begun_1_all.deb", "whole_1%2b2_all.deb"]


def test_foreign_packages_are_looked_for_beside_the_hosts(tmp_path: Path) -> None:
    PrivateApt(tmp_path, "http://m", FakeHost(), keyring=Path("/k"), architectures=("amd64", "arm64"))
    assert "deb [signed-by=/k arch=amd64,arm64] http://m trixie main\n" in (tmp_path / "sources.list").read_text()
    settings = (tmp_path / "apt.conf").read_text()
    assert 'APT::Architecture "amd64";' in settings
    assert 'APT::Architectures { "amd64"; "arm64"; };' in settings


def test_sources_are_asked_for_only_where_they_are_wanted(tmp_path: Path) -> None:
    PrivateApt(tmp_path, "http://m", FakeHost(), keyring=Path("/k"), kind="deb-src", suites=("trixie",))
    assert (tmp_path / "sources.list").read_text() == "deb-src [signed-by=/k arch=amd64] http://m trixie main\n"
