"""A kernel of the user's own: a build tree, checked for what the lab's guest needs before anything is built or
booted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pviommu.lab.problems import EnvironmentProblem, UsageError

__all__ = ["KernelTree", "open_tree"]

BUILT_IN = (
    *("MODULES", "IOMMU_API", "IOMMU_DMA", "PCI_MSI", "DEBUG_FS", "BLK_DEV_INITRD", "RD_GZIP", "DEVTMPFS", "TMPFS"),
    *("VIRTIO_PCI", "VIRTIO_CONSOLE", "SERIAL_8250_CONSOLE", "BINFMT_ELF", "BINFMT_SCRIPT", "FTRACE"),
)
"""Options that must be ``=y``: what the driver calls, and what the lab's first process needs to report."""

API = {
    "domain_alloc_paging": "paging domains allocated for a device",
    "release_domain": "a domain for released devices",
    "blocked_domain": "a static blocked domain",
}
"""Members of ``struct iommu_ops`` that the driver sets."""


@dataclass(frozen=True, slots=True)
class KernelTree:
    """A kernel build tree with its image."""

    tree: Path
    image: Path
    release: str


def open_tree(tree: Path) -> KernelTree:
    """Check ``tree``. Raises UsageError if it is no built kernel, EnvironmentProblem if it lacks something, in one
    line.
    """
    image = tree / "arch/x86/boot/bzImage"
    release = tree / "include/config/kernel.release"
    config = tree / "include/config/auto.conf"
    for path, what in (
        (image, "image"),
        (release, "release"),
        (config, "configuration"),
        (tree / "Module.symvers", "symbols"),
    ):
        if not path.is_file():
            raise UsageError(f"--kernel {tree}: no built x86 kernel, its {what} {path.relative_to(tree)} is missing")
    enabled = set(re.findall(r"^CONFIG_(\w+)=y$", config.read_text(), re.MULTILINE))
    missing = [f"CONFIG_{option}" for option in BUILT_IN if option not in enabled]
    if missing:
        raise EnvironmentProblem(
            f"--kernel {tree}: this configuration does not have {', '.join(missing)} built in",
            "enable them and build it again",
        )
    source = tree / "source" if (tree / "source").exists() else tree
    try:
        header = (source / "include/linux/iommu.h").read_text()
    except OSError as problem:
        raise UsageError(f"--kernel {tree}: cannot read its include/linux/iommu.h: {problem.strerror}") from problem
    absent = [f"{member} ({meaning})" for member, meaning in API.items() if member not in header]
    if absent:
        raise EnvironmentProblem(
            f"--kernel {tree}: this kernel is too old for the driver, its iommu_ops lacks {', '.join(absent)}",
            "use Linux 6.12 or later",
        )
    return KernelTree(tree.resolve(), image.resolve(), release.read_text().strip())
