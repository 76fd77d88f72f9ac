"""Files that travel with the package are found in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu import resources


def test_checkout_is_preferred(tmp_path: Path) -> None:
    package = tmp_path / "device/pviommu"
    (package / "data/guest-tools").mkdir(parents=True)
    (tmp_path / "guest-tools").mkdir()
    assert resources.guest_tools(package) == tmp_path / "guest-tools"


def test_installed_wheel_carries_them_in_data(tmp_path: Path) -> None:
    package = tmp_path / "site-packages/pviommu"
    (package / "data/qemu-configs").mkdir(parents=True)
    assert resources.qemu_configs(package) == package / "data/qemu-configs"


def test_absence_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkout.*wheel"):
        resources.guest_tools(tmp_path / "a/b")


def test_the_packages_own_guest_tools_have_an_init() -> None:
    assert (resources.guest_tools() / "image/init").is_file()
