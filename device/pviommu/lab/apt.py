"""A private apt: its own sources, lists and cache, so that it needs no root rights and leaves the host's apt alone.

Packages come from a Debian mirror and apt verifies the signature of every index against Debian's archive keyring.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from .continued import continue_download, sha256_of
from .problems import EnvironmentProblem
from .processes import Run

__all__ = ["KEYRING", "MIRROR_VARIABLE", "SUITES", "Package", "PrivateApt", "choose_mirror", "require_tools"]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "PVIOMMU_DEBIAN_MIRROR"
SUITES = ("trixie", "trixie-updates", "trixie-backports")

_TARGETS_FORMAT = "$(CREATED_BY) $(REPO_URI) $(RELEASE) $(ORIGIN)"
_RELEASES = frozenset(
    f"{release}{pocket}"
    for release in ("bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing")
    for pocket in ("", "-updates", "-backports")
)
_SCHEMES = ("http://", "https://", "file:", "mirror+")
_SET_MIRROR = f"set {MIRROR_VARIABLE} to the URL of a Debian mirror (the folder that holds dists/ and pool/)"


def choose_mirror(environment: dict[str, str], run: Run) -> str:
    """The Debian mirror to use: the environment's, else the one the host's own apt uses.

    Raises EnvironmentProblem when the host has no Debian mirror configured.
    """
    if named := environment.get(MIRROR_VARIABLE):
        if not named.startswith(_SCHEMES):
            raise EnvironmentProblem(f"{MIRROR_VARIABLE}={named} is not a URL that apt understands", _SET_MIRROR)
        return named.rstrip("/")
    listing = run(["apt-get", "indextargets", "--format", _TARGETS_FORMAT])
    for line in listing.output.splitlines() if listing.status == 0 else ():
        words = line.split()
        if len(words) < 3 or words[0] != "Packages":
            continue
        address, release, origin = words[1], words[2], " ".join(words[3:])
        if not address.startswith(_SCHEMES) or "security" in address or "security" in release:
            continue
        # Before the host's first `apt update` apt does not know the origin; then the release's name decides.
        if origin == "Debian" or (not origin and release in _RELEASES):
            return address.rstrip("/")
    raise EnvironmentProblem("no Debian mirror is known: the host's apt is configured with none", _SET_MIRROR)


def require_tools(run: Run, machine: str, keyring: Path = KEYRING) -> None:
    """Raise EnvironmentProblem on a host where Debian packages cannot be fetched, verified and unpacked."""
    if machine not in ("x86_64", "amd64"):
        raise EnvironmentProblem(
            f"the lab's guest is amd64, this host is {machine}", "run the lab on an x86-64 Linux host"
        )
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if run([tool, "--version"]).status != 0:
            raise EnvironmentProblem(
                f"{tool} is missing: the lab takes QEMU and the guest kernel from Debian packages",
                f"install the package {package} (Debian and Ubuntu have it; use a Debian container elsewhere)",
            )
    if not keyring.is_file():
        raise EnvironmentProblem(
            f"{keyring} is missing: signatures of Debian packages cannot be verified",
            "install the package debian-archive-keyring",
        )


@dataclass(frozen=True, slots=True)
class Package:
    """A package archive to download: its file name, size in bytes and SHA-256, as the signed indices have them."""

    file_name: str
    size: int
    sha256: str = ""
    address: str = ""

    @property
    def name(self) -> str:
        return unquote(self.file_name).split("_")[0]

    @property
    def architecture(self) -> str:
        """``all``, or whose it is."""
        return unquote(self.file_name).removesuffix(".deb").split("_")[2]

    @property
    def specification(self) -> str:
        """``name=version`` as apt takes it, ``name:architecture=version`` of another architecture than this host's; a
        file's name is ``name_version_architecture.deb``, percent-encoded.
        """
        version = unquote(self.file_name).split("_")[1]
        of = "" if self.architecture in ("all", "amd64") else f":{self.architecture}"
        return f"{self.name}{of}={version}"


class PrivateApt:
    """Fetches packages with their dependencies into ``folder``; nothing is installed on the host.

    What an interrupted download left in ``folder`` is used.
    """

    def __init__(
        self,
        folder: Path,
        mirror: str,
        run: Run,
        *,
        keyring: Path = KEYRING,
        kind: str = "deb",
        suites: Sequence[str] = SUITES,
        architectures: Sequence[str] = ("amd64",),
    ) -> None:
        """``kind`` is ``deb``, or ``deb-src`` for :meth:`source`. ``architectures``: this host's first, then those of
        packages whose names end with ``:ARCHITECTURE``.
        """
        self._folder = folder
        self._run = run
        self._architectures = tuple(architectures)
        # Not where apt itself would look for archives: it does not name those that it has already.
        self.archives = folder / "archives"
        for part in ("state/lists/partial", "cache/archives/partial", "archives"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        options = f"signed-by={keyring} arch={','.join(architectures)}"
        sources = (f"{kind} [{options}] {mirror} {suite} main\n" for suite in suites)
        (folder / "sources.list").write_text("".join(sources))
        self._configuration = folder / "apt.conf"
        self._configuration.write_text(self._settings())

    def update(self) -> None:
        """Fetch and verify the package indices. Raises EnvironmentProblem with apt's own words."""
        outcome = self._run([*self._command("update"), "--error-on=any"])
        if outcome.status != 0:
            self._refuse("the package indices cannot be fetched", outcome.output)

    def resolve(self, packages: Sequence[str]) -> list[Package]:
        """The archives that ``packages`` and their dependencies need. Raises EnvironmentProblem."""
        outcome = self._run([*self._command("install"), "--print-uris", "-qq", *packages])
        if outcome.status != 0:
            self._refuse("the packages cannot be resolved", outcome.output)
        found = re.findall(r"^'([^']+)' (\S+\.deb) (\d+) (?:SHA256:(\w+))?", outcome.output, re.MULTILINE)
        return [Package(name, int(size), digest, address) for address, name, size, digest in found]

    def download(self, archives: Sequence[Package], progress: Callable[[float], None]) -> list[Path]:
        """Download and verify ``archives``; ``progress`` gets fractions from 0 to 1. Raises EnvironmentProblem."""
        self._use_what_is_there(archives, progress)
        self._fetch("download", [archive.specification for archive in archives], "the packages", progress)
        return sorted(self.archives.glob("*.deb"))

    def source(self, package: str, progress: Callable[[float], None]) -> list[Path]:
        """Download and verify the source of ``package``: its description and archives. Raises EnvironmentProblem."""
        self._fetch("source", ["--download-only", "--only-source", package], f"the source of {package}", progress)
        return sorted(self.archives.glob(f"{package}_*"))

    def _fetch(self, verb: str, words: Sequence[str], what: str, progress: Callable[[float], None]) -> None:
        log = self._folder / "download.log"
        command = [*self._command(verb), "-qq", "-o", "APT::Status-Fd=1", *words]
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},
                cwd=self.archives,  # where apt-get writes to
            ) as process,
        ):
            assert process.stdout is not None  # asked for above
            try:
                for line in process.stdout:
                    if match := re.match(r"dlstatus:[^:]*:([\d.]+):", line):
                        progress(float(match[1]) / 100)
            except KeyboardInterrupt:
                process.terminate()  # else leaving the block would wait for the rest of the download
                raise
        if process.returncode != 0:
            self._refuse(f"{what} cannot be downloaded", log.read_text(errors="replace"))

    def _use_what_is_there(self, archives: Sequence[Package], progress: Callable[[float], None]) -> None:
        """Complete what an interrupted download left; remove files that are damaged or not wanted.

        apt itself would take a file of the right size for complete.
        """
        wanted = {unquote(archive.file_name): archive for archive in archives}
        for file in self.archives.glob("*.deb"):
            archive = wanted.get(unquote(file.name))
            if archive is not None:
                continue_download(archive.address, file, archive.size, progress)
            if archive is None or (file.stat().st_size >= archive.size and sha256_of(file) != archive.sha256):
                file.unlink()

    def _command(self, verb: str) -> list[str]:
        return ["apt-get", "-c", str(self._configuration), "-y", verb]

    def _settings(self) -> str:
        folder = self._folder
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Cache::archives": folder / "cache/archives",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "-",
            "Dir::Log": folder,
            "APT::Architecture": self._architectures[0],
            "APT::Install-Recommends": "false",
            "APT::Install-Suggests": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::ForceHash": "SHA256",  # of what --print-uris shows
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        if os.geteuid() == 0:
            # Root's apt downloads as the user _apt, who may not enter the cache folder.
            settings["APT::Sandbox::User"] = "root"
        # The host's hooks are about the host's packages.
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
        lines = [f"#clear {hook};" for hook in (*hooks, "APT::Architectures", "DPkg::Pre-Install-Pkgs")]
        lines += [f'{name} "{value}";' for name, value in settings.items()]
        known = " ".join(f'"{name}";' for name in self._architectures)
        return "\n".join([*lines, f"APT::Architectures {{ {known} }};", ""])

    def _refuse(self, what: str, output: str) -> None:
        words = [line.strip() for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        how = "check the network, or " + _SET_MIRROR
        if "NO_PUBKEY" in output or "not signed" in output:
            how = "update the package debian-archive-keyring (it must hold the keys of Debian 13)"
        raise EnvironmentProblem(f"{what}: {' | '.join(words[-2:]) or output.strip()[-300:]}", how)
