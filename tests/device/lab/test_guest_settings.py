"""What a guest is told: a shell can read it, and the kernel hears of the mode."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pviommu.lab.guest_settings import KERNELS, GuestSettings, kernel_name


def test_a_shell_reads_the_settings_as_they_are(tmp_path: Path) -> None:
    settings = GuestSettings(profile="xen-v7", mode="strict", vcpus=2, kernel="lab", long=True, cycles=7, tables="off")
    (tmp_path / "config").write_bytes(settings.config({"boot_kernel": "/a b/$kernel"}))
    script = '. "$1"; echo "$profile $tables $mode $vcpus $kernel $long $keep $cycles $boot_kernel"'

    done = subprocess.run(
        ["sh", "-euc", script, "sh", str(tmp_path / "config")], capture_output=True, text=True, check=True
    )

    assert done.stdout == "xen-v7 off strict 2 lab 1 0 7 /a b/$kernel\n"


@pytest.mark.parametrize(
    ("mode", "argument"),
    [("lazy", "iommu.strict=0"), ("strict", "iommu.strict=1"), ("passthrough", "iommu.passthrough=1")],
)
def test_mode_is_a_kernel_argument(mode: str, argument: str) -> None:
    assert GuestSettings(mode=mode).kernel_arguments == (argument,)


def test_a_guest_that_is_swept_knows_it_and_ends_when_it_comes_to_harm() -> None:
    assert b"sweep" not in GuestSettings().config()
    assert GuestSettings(sweep=True).config().endswith(b"\nsweep=1\n")
    assert GuestSettings(sweep=True).kernel_arguments == ("iommu.strict=0", "oops=panic")


def test_kernel_given_by_its_path_is_called_own() -> None:
    assert [kernel_name(kernel) for kernel in (*KERNELS, "./debian")] == [*KERNELS, "own"]
