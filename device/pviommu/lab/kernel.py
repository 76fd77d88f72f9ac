"""A kernel that is not from a package: a build tree, or an image with one. It is checked for what the lab's guest needs
before anything is built or booted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from .architecture import AMD64, Architecture
from .problems import EnvironmentProblem, UsageError

__all__ = ["KernelTree", "image_release", "open_kernel", "open_tree"]

BUILT_IN = (
    *("MODULES", "IOMMU_API", "IOMMU_DMA", "PCI_MSI", "DEBUG_FS", "BLK_DEV_INITRD", "RD_GZIP", "DEVTMPFS", "TMPFS"),
    *("VIRTIO_PCI", "VIRTIO_CONSOLE", "BINFMT_ELF", "BINFMT_SCRIPT", "FTRACE"),
)
"""Options that must be ``=y``, and that of the architecture's console: what the driver calls, and what the lab's first
process needs to report."""

PRESENT = ("VFIO", "VFIO_PCI", "VFIO_IOMMU_TYPE1", "HUGETLBFS", "SYSCTL")
"""Options that may be modules as well: what the guest's tests of VFIO need."""

API = {
    "domain_alloc_paging": "paging domains allocated for a device",
    "release_domain": "a domain for released devices",
    "blocked_domain": "a static blocked domain",
}
"""Members of ``struct iommu_ops`` that the driver sets."""


_VERSION_POINTER = 0x20E  # field of the boot protocol's header: where the version's text is, less 0x200
_MAGIC = slice(0x202, 0x206)
_INSTALLED = Path("/lib/modules")


@dataclass(frozen=True, slots=True)
class KernelTree:
    """A kernel build tree with its image. ``modules`` is the folder of the kernel's own modules: where they are
    installed, or the tree itself.
    """

    tree: Path
    image: Path
    release: str
    modules: Path
    vmlinux: Path | None = None


def open_kernel(path: Path, installed: Path = _INSTALLED, architecture: Architecture = AMD64) -> KernelTree:
    """The kernel at ``path``, a build tree or, for amd64, a bzImage.

    The tree of an image is the one that it is in; that of an image on its own is ``build`` in the folder of its release
    in ``installed``. Raises UsageError and EnvironmentProblem, in one line.
    """
    if path.is_dir():
        return open_tree(path, architecture=architecture)
    if not path.is_file():
        raise UsageError(f"--kernel {path}: no such file or folder, and no kernel of the lab has that name")
    if architecture.is_foreign:
        raise UsageError(
            f"--kernel {path}: of {architecture.name}, give the build tree, which has {architecture.image}"
        )
    release = image_release(path)
    around = path.resolve().parents[3:4]
    if around and (around[0] / "include/config/kernel.release").is_file():
        return open_tree(around[0])
    folder = installed / release
    if not (folder / "build").is_dir():
        raise UsageError(
            f"--kernel {path}: Linux {release}, but {folder / 'build'}, which its modules are built against, is missing"
        )
    found = open_tree(folder / "build", path)
    if found.release != release:
        raise UsageError(f"--kernel {path}: Linux {release}, but {folder / 'build'} is of {found.release}")
    return replace(found, modules=folder)


def image_release(image: Path) -> str:
    """The release that a bzImage names in its header (Documentation/arch/x86/boot.rst). Raises UsageError."""
    with image.open("rb") as file:
        start = file.read(0x210)
        if len(start) < 0x210 or start[_MAGIC] != b"HdrS":
            raise UsageError(f"--kernel {image}: no bzImage, it lacks the header of the x86 boot protocol")
        file.seek(int.from_bytes(start[_VERSION_POINTER : _VERSION_POINTER + 2], "little") + 0x200)
        version = file.read(256).partition(b"\0")[0].decode(errors="replace")
    release = version.partition(" ")[0]
    if re.fullmatch(r"\d+\.\d+[\w.+~-]*", release) is None:
        raise UsageError(f"--kernel {image}: its header names no release")
    return release


def open_tree(tree: Path, image: Path | None = None, architecture: Architecture = AMD64) -> KernelTree:
    """Check ``tree``, and ``image`` if it is elsewhere. Raises UsageError if there is no built kernel,
    EnvironmentProblem if the kernel lacks something; both in one line.
    """
    image = image or tree / architecture.image
    release = tree / "include/config/kernel.release"
    config = tree / "include/config/auto.conf"
    for path, what in (
        (image, "image"),
        (release, "release"),
        (config, "configuration"),
        (tree / "Module.symvers", "symbols"),
    ):
        if not path.is_file():
            missing = path.relative_to(tree) if path.is_relative_to(tree) else path
            raise UsageError(f"--kernel {tree}: no built {architecture.name} kernel, its {what} {missing} is missing")
    _check_configuration(tree, config, architecture)
    _check_api(tree)
    vmlinux = tree / "vmlinux"
    resolved = tree.resolve()
    return KernelTree(
        resolved,
        image.resolve(),
        release.read_text().strip(),
        resolved,
        vmlinux.resolve() if vmlinux.is_file() else None,
    )


def _check_configuration(tree: Path, config: Path, architecture: Architecture) -> None:
    found = dict(re.findall(r"^CONFIG_(\w+)=([ym])$", config.read_text(), re.MULTILINE))
    needed = (*BUILT_IN, architecture.console_option)
    wrong = [f"CONFIG_{option} built in" for option in needed if found.get(option) != "y"]
    wrong += [f"CONFIG_{option}" for option in PRESENT if option not in found]
    if wrong:
        raise EnvironmentProblem(
            f"--kernel {tree}: this configuration does not have {', '.join(wrong)}", "enable them and build it again"
        )


def _check_api(tree: Path) -> None:
    # Where the headers are: in the tree; in the source tree, if this one has only objects; or beside an installed
    # kernel's tree.
    sources = [source for source in (tree / "source", tree.parent / "source", tree) if source.exists()]
    headers = [source / "include/linux/iommu.h" for source in sources]
    header = next((path for path in headers if path.is_file()), headers[-1])
    try:
        text = header.read_text()
    except OSError as problem:
        raise UsageError(f"--kernel {tree}: cannot read its include/linux/iommu.h: {problem.strerror}") from problem
    absent = [f"{member} ({meaning})" for member, meaning in API.items() if member not in text]
    if absent:
        raise EnvironmentProblem(
            f"--kernel {tree}: this kernel is too old for the driver, its iommu_ops lacks {', '.join(absent)}",
            "use Linux 6.12 or later",
        )
