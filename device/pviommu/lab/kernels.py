"""The guest's kernel by name: Debian's, a newer one of Debian's, the lab's own, or the user's own by its path.

What a kernel needs beyond the common root is in a layer of its own on top of it, fetched only when it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import kernel_build
from .architecture import AMD64, ARM64, Architecture
from .guest_settings import KERNELS, OWN_KERNEL, kernel_name
from .kernel import KernelTree, open_kernel, open_tree
from .kernel_build import SOURCE_PACKAGES, Follow, build_kernel, find_kernel, follow
from .problems import EnvironmentProblem, UsageError
from .processes import Run, run
from .progress import Progress
from .provision import Toolbox, architectures, cache_folder
from .roots import BACKPORTS, find_root, private_root
from .roots import STEPS as ROOT_STEPS

__all__ = ["BUILD_PACKAGES", "build_layer", "has_kernel", "open_named_path", "steps", "with_kernel"]

DEBIAN, DEBIAN_7 = KERNELS[:2]
_OF_BACKPORTS = (DEBIAN_7,)

_TEST_LIBRARIES = ("uuid-dev",)
BUILD_PACKAGES = (f"{SOURCE_PACKAGES[0]}/{BACKPORTS}", *SOURCE_PACKAGES[1:], *_TEST_LIBRARIES)
"""Packages of the layer in which kernels are built: the newest source, and what building it and its own tests needs."""


@dataclass(frozen=True, slots=True)
class _Flavour:
    """A kernel of the lab's own: its fragments in ``guest-tools/kernel``, lowest first, and its boot arguments."""

    fragments: tuple[str, ...]
    arguments: tuple[str, ...] = ()


_ARGUMENTS = ("printk.time=1",)  # as on Debian's kernels
_FLAVOURS: Mapping[str, Mapping[str, _Flavour]] = {
    AMD64.name: {
        "lab": _Flavour(("lab.config",), _ARGUMENTS),
        # Any warning ends the run; the last argument turns on the check of IOMMU_DEBUG_PAGEALLOC.
        "lab-debug": _Flavour(
            ("lab.config", "lab-debug.config"), (*_ARGUMENTS, "panic_on_warn=1", "iommu.debug_pagealloc=1")
        ),
    },
    ARM64.name: {"lab-64k": _Flavour(("lab.config", "lab-64k.config"), _ARGUMENTS)},
}


def steps(kernel: str, architecture: Architecture = AMD64) -> int:
    """Progress steps that :func:`with_kernel` may take."""
    if kernel == DEBIAN or kernel_name(kernel) == OWN_KERNEL:
        return 0
    return ROOT_STEPS + kernel_build.STEPS if kernel in _FLAVOURS[architecture.name] else ROOT_STEPS


def open_named_path(kernel: str, architecture: Architecture = AMD64) -> KernelTree | None:
    """The user's own kernel, checked, if ``kernel`` is its path; None if it is a name. Cheap, so call it first.

    Raises UsageError, EnvironmentProblem.
    """
    if kernel_name(kernel) == OWN_KERNEL:
        return open_kernel(Path(kernel), architecture=architecture)
    if kernel not in architecture.kernels:
        known = ", ".join(architecture.kernels)
        raise UsageError(f"--kernel {kernel}: not one of {architecture.name}, which are {known}; or give your own")
    return None


def _packages(kernel: str, architecture: Architecture) -> tuple[str, ...]:
    """Those of one of Debian's kernels that is no part of the toolbox."""
    end = f":{architecture.name}" if architecture.is_foreign else ""
    end += f"/{BACKPORTS}" if kernel in _OF_BACKPORTS else ""
    named = tuple(f"linux-{part}-{architecture.flavours[kernel]}{end}" for part in ("image", "headers"))
    # apt follows a wish for backports to what a package needs, but not to another architecture.
    needed = (f"linux-base:all/{BACKPORTS}",) if architecture.is_foreign and kernel in _OF_BACKPORTS else ()
    return (*needed, *named)


def build_layer(
    base: Path,
    progress: Progress,
    architecture: Architecture = AMD64,
    *,
    environment: Mapping[str, str] = os.environ,
    run: Run = run,
) -> Path:
    """The layer on the root ``base`` with the kernel's source and what builds it, and its tests, for ``architecture``;
    made if it is missing.

    Raises EnvironmentProblem.
    """
    packages: tuple[str, ...] = BUILD_PACKAGES
    if architecture.is_foreign:  # what the tests are linked with
        packages = (*packages, *(f"{name}:{architecture.name}" for name in _TEST_LIBRARIES))
    folder, known = cache_folder(environment), architectures(architecture)
    return private_root(folder, packages, progress, environment, run, base=base, architectures=known)


def with_kernel(
    toolbox: Toolbox,
    kernel: str,
    guest_tools: Path,
    progress: Progress,
    *,
    environment: Mapping[str, str] = os.environ,
    run: Run = run,
    follow: Follow = follow,
) -> Toolbox:
    """``toolbox``, which has Debian's kernel, with the kernel of that name or path instead; what is missing is made.

    Raises UsageError, EnvironmentProblem, RunError.
    """
    if kernel == DEBIAN:
        return toolbox
    architecture = toolbox.architecture
    own = open_named_path(kernel, architecture)
    if own is not None:
        return _with_tree(replace(toolbox, kernel=OWN_KERNEL), own)
    folder = cache_folder(environment)
    if kernel in architecture.flavours:
        known = architectures(architecture)
        packages = _packages(kernel, architecture)
        root = private_root(folder, packages, progress, environment, run, base=toolbox.root, architectures=known)
        return _with_package(replace(toolbox, root=root, kernel=kernel))
    flavour = _FLAVOURS[architecture.name][kernel]
    root = build_layer(toolbox.root, progress, architecture, environment=environment, run=run)
    fragments = [guest_tools / "kernel" / name for name in flavour.fragments]
    built = build_kernel(kernel, root, fragments, progress, run, follow, architecture)
    tree = replace(open_tree(built.tree, architecture=architecture), modules=built.modules)
    return _with_tree(replace(toolbox, root=root, kernel=kernel, kernel_arguments=flavour.arguments), tree)


def has_kernel(
    toolbox: Toolbox, kernel: str, guest_tools: Path, *, environment: Mapping[str, str] = os.environ
) -> bool:
    """Whether :func:`with_kernel` would give the kernel of that name without making anything."""
    if kernel == DEBIAN:
        return True
    packages = _packages(kernel, AMD64) if kernel == DEBIAN_7 else BUILD_PACKAGES
    root = find_root(cache_folder(environment), packages, base=toolbox.root)
    if root is None or kernel == DEBIAN_7:
        return root is not None
    fragments = [guest_tools / "kernel" / name for name in _FLAVOURS[AMD64.name][kernel].fragments]
    return find_kernel(kernel, root, fragments) is not None


def _with_tree(toolbox: Toolbox, tree: KernelTree) -> Toolbox:
    return replace(
        toolbox,
        kernel_image=tree.image,
        kernel_release=tree.release,
        kernel_tree=tree.tree,
        kernel_modules=tree.modules,
        vmlinux=tree.vmlinux,
    )


def _with_package(toolbox: Toolbox) -> Toolbox:
    """``toolbox`` with the kernel that the layer ``toolbox.root`` adds to its base's."""
    # Packages of Linux 7 have the image beside its modules; a script, which does not run here, would copy it to /boot.
    flavour = toolbox.architecture.flavours[toolbox.kernel]
    images = sorted(toolbox.root.glob(f"usr/lib/modules/*-{flavour}/vmlinuz"))
    if images:
        return replace(toolbox, kernel_image=images[-1], kernel_release=images[-1].parent.name)
    images = sorted(toolbox.root.glob(f"boot/vmlinuz-*-{flavour}"))
    if not images or toolbox.kernel in _OF_BACKPORTS:
        raise EnvironmentProblem(
            f"{toolbox.root} holds no kernel image", f"remove {toolbox.root} to have it made again"
        )
    return replace(toolbox, kernel_image=images[-1], kernel_release=images[-1].name.removeprefix("vmlinuz-"))
