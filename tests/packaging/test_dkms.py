"""The driver by DKMS and by hand: built for each of Debian's kernels, put where modprobe finds it, taken out again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pviommu import __version__
from pviommu.lab.driver_checks import DriverChecks
from pviommu.lab.kept import source_files
from pviommu.lab.series import FOLDER, Series


@dataclass(frozen=True)
class Installation:
    """The driver's Makefile for one kernel, with all that it writes to in a folder of the private root."""

    series: Series
    release: str

    def run(self, *program: str) -> str:
        """What ``program`` says; it must succeed."""
        outcome = self.series.run(*program)
        assert outcome.status == 0, outcome.output
        return outcome.output

    def make(self, *words: str) -> str:
        """What ``make`` says in the folder of the driver."""
        return self.run(
            *("make", "-C", f"{FOLDER}/driver", f"KDIR=/lib/modules/{self.release}/build"),
            *(f"INSTALL_MOD_PATH={FOLDER}/by-hand", f"SRCTREE={FOLDER}/src"),
            *(f"DKMSFLAGS={' '.join(self.dkms_options)}", *words),
        )

    @property
    def dkms_options(self) -> list[str]:
        """What keeps dkms within the folder."""
        places = {"--dkmstree": "tree", "--sourcetree": "src", "--installtree": "modules"}
        return [word for option, name in places.items() for word in (option, f"{FOLDER}/{name}")]

    def module(self, path: str) -> dict[str, str]:
        """The fields of a module below the folder, as modinfo shows them."""
        lines = self.run("modinfo", f"{FOLDER}/{path}").splitlines()
        return {match[1]: match[2] for line in lines if (match := re.match(r"(\w+):\s+(.*)", line))}

    def files(self, *folders: str) -> list[str]:
        """What is in ``folders`` and no folder itself, sorted."""
        found = self.run("env", "-C", FOLDER, "find", *folders, "!", "-type", "d")
        return sorted(found.splitlines())


# The link is where dkms looks for the headers, as in /lib/modules.
PREPARE = f"""
cd {FOLDER}
mkdir -p tree src modules/$0 by-hand/lib/modules/$0
ln -s /lib/modules/$0/build modules/$0/build
cd by-hand/lib/modules/$0
touch modules.order modules.builtin modules.builtin.modinfo
"""


@pytest.fixture
def installation(checks: DriverChecks, release: str, checkout: Path) -> Iterator[Installation]:
    sources = checkout / "guest-tools/driver"
    with checks.series({f"driver/{path.relative_to(sources)}": path for path in source_files(sources)}) as series:
        made = Installation(series, release)
        made.run("sh", "-ec", PREPARE, release)
        yield made


def conf(checkout: Path) -> dict[str, str]:
    """The assignments of dkms.conf."""
    text = (checkout / "guest-tools/driver/dkms.conf").read_text()
    return dict(re.findall(r'^([A-Z_]+(?:\[0\])?)="(.*)"$', text, re.MULTILINE))


def test_version_of_the_dkms_package_is_that_of_pviommu(checkout: Path) -> None:
    assert conf(checkout)["PACKAGE_VERSION"] == __version__


def test_every_new_kernel_gets_the_driver(checkout: Path) -> None:
    assert conf(checkout)["AUTOINSTALL"] == "yes"


def test_dkms_installs_the_driver_alone_signed_and_for_that_kernel_and_removal_leaves_nothing(
    installation: Installation,
) -> None:
    release = installation.release

    installation.make("dkms-install")

    modules = [name for name in installation.files("modules") if "/build" not in name]
    assert [name.partition(".ko")[0] for name in modules] == [f"modules/{release}/updates/dkms/pviommu"]
    fields = installation.module(modules[0])
    assert fields["vermagic"].split()[0] == release
    assert fields["signer"] == "DKMS module signing key"
    status = installation.run("dkms", "status", *installation.dkms_options)
    assert status == f"pviommu/{__version__}, {release}, x86_64: installed\n"

    installation.make("dkms-remove")

    assert installation.files("tree", "src", "modules") == [f"modules/{release}/build"]
    assert installation.run("dkms", "status", *installation.dkms_options) == ""


@pytest.mark.parametrize("release", ["6.12"], indirect=True)
def test_driver_installed_by_hand_is_found_by_its_device_and_can_be_taken_out(installation: Installation) -> None:
    folder = f"by-hand/lib/modules/{installation.release}"

    installation.make("install")

    assert installation.module(f"{folder}/updates/pviommu.ko")["vermagic"].split()[0] == installation.release
    lines = installation.run("cat", f"{FOLDER}/{folder}/modules.alias").splitlines()
    assert [line for line in lines if line.startswith("alias pci:v00001234d00005056")]

    installation.make("uninstall")
    installation.make("clean")

    assert not [name for name in installation.files("by-hand") if "pviommu" in name]
    assert "pviommu" not in installation.run("cat", f"{FOLDER}/{folder}/modules.alias")
    assert not [name for name in installation.files("driver") if name.endswith(".ko")]
