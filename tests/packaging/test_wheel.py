"""The wheel works from an empty folder, without the checkout."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest


def _python(code: str, environment: dict[str, str], folder: Path, command: list[str]) -> str:
    return subprocess.run(
        [command[0], "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_packages_of_the_wheel_are_typed(installed_wheel: Path) -> None:
    for package in ("wire_layout", "vfio_user", "pviommu_abi", "smmuv3", "pviommu"):
        assert (installed_wheel / package / "py.typed").is_file(), package


def test_wheel_carries_every_guest_tool_and_configuration_of_the_checkout(
    installed_wheel: Path, checkout: Path
) -> None:
    for folder in ("guest-tools", "qemu-configs"):
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

        assert listed
        for name in listed:
            assert (installed_wheel / "pviommu/data" / name).read_bytes() == (checkout / name).read_bytes(), name


def test_wheel_carries_what_installs_the_driver_and_what_the_lab_builds(installed_wheel: Path) -> None:
    tools = installed_wheel / "pviommu/data/guest-tools"

    for name in ("Kbuild", "Makefile", "dkms.conf", "pviommu_pci.c", "pviommu-takeover", "probes/control.c"):
        assert (tools / "driver" / name).is_file(), name
    for name in (
        "programs/pviommu_kexec.c",
        "programs/pviommu_vfio/main.c",
        "kernel/lab.config",
        "kernel/lab-debug.config",
    ):
        assert (tools / name).is_file(), name


def test_installed_lab_finds_its_files_in_the_wheel(
    installed_wheel: Path, wheel_environment: dict[str, str], tmp_path: Path, pviommu_command: list[str]
) -> None:
    code = "from pviommu import resources; print(resources.guest_tools()); print(resources.qemu_configs())"

    found = _python(code, wheel_environment, tmp_path, pviommu_command).splitlines()

    assert found == [str(installed_wheel / "pviommu/data" / name) for name in ("guest-tools", "qemu-configs")]


def test_capabilities_are_printed_without_a_topology(
    wheel_environment: dict[str, str], tmp_path: Path, pviommu_command: list[str]
) -> None:
    shown = subprocess.run(
        [*pviommu_command, "serve", "--print-capabilities"],
        env=wheel_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(shown.stdout)["type"] == "pviommu"


@pytest.mark.row("server", 125)
def test_shipped_topologies_are_listed_shown_checked_and_served_by_name(
    wheel_environment: dict[str, str], tmp_path: Path, pviommu_command: list[str], checkout: Path
) -> None:
    def said(*words: str) -> str:
        return subprocess.run(
            [*pviommu_command, *words], env=wheel_environment, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "one-engine" in said("topology", "list")
    assert said("topology", "show", "lab") == (checkout / "qemu-configs/lab.toml").read_text()
    assert said("topology", "check", "reserved") == "reserved: right, iommu, dma0\n"
    functions = json.loads(said("serve", "lab", "--print-capabilities"))["functions"]
    assert [function["name"] for function in functions] == ["iommu", "dma0", "dma1"]


@pytest.mark.row("server", 126)
def test_wheel_carries_the_schemas(installed_wheel: Path, checkout: Path) -> None:
    for name in ("topology", "results", "capabilities", "log"):
        path = f"pviommu/schemas/{name}.schema.json"
        assert (installed_wheel / path).read_bytes() == (checkout / "device" / path).read_bytes()


def test_command_is_an_entry_point_of_the_wheel(installed_wheel: Path) -> None:
    (entry_points,) = installed_wheel.glob("pviommu-*.dist-info/entry_points.txt")

    assert "pviommu = pviommu.cli:main" in entry_points.read_text()


def test_pytest_finds_the_plugin_of_the_wheel(
    installed_wheel: Path, wheel_environment: dict[str, str], tmp_path: Path, pviommu_command: list[str]
) -> None:
    (entry_points,) = installed_wheel.glob("pviommu-*.dist-info/entry_points.txt")
    assert "[pytest11]\npviommu = pviommu.pytest_plugin\n" in entry_points.read_text()
    (metadata,) = installed_wheel.glob("pviommu-*.dist-info/METADATA")
    required = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: pytest")]
    assert all("extra == 'test'" in line for line in required)
    (tmp_path / "test_it.py").write_text(
        "import pviommu\nfrom pviommu.testing.vm import AGENT\n\ndef test_it(pviommu_device):\n"
        "    assert pviommu_device.guest.usage().mapped_pages == 0\n"
        f"    assert pviommu.__file__.startswith({str(installed_wheel)!r}) and AGENT.is_file()\n"
    )

    subprocess.run(
        [pviommu_command[0], "-m", "pytest", "-p", "no:cacheprovider"],
        env=wheel_environment,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
