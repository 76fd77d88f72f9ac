"""Builds the guest's kernel modules against the kernel in the private root, with the compiler of that root.

Results are kept by a digest of the sources and the kernel release. The build runs with the private root as its root
folder: in a mount namespace of its own (as root, or as any user where user namespaces are allowed), or else, as root,
by plain chroot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .kept import copy_sources, keep, sources_digest
from .problems import EnvironmentProblem, RunError
from .processes import Run, run
from .progress import Progress
from .provision import Toolbox

__all__ = ["STEPS", "Sandbox", "build_modules", "find_sandbox"]

STEPS = 1
_PRODUCTS = ("*.ko",)
_BIND_AND_ENTER = """
set -e
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
root=$1
shift
PATH=$PATH:/usr/sbin:/sbin # chroot is there, and an ordinary user does not look there
exec chroot "$root" "$@"
"""
_ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/tmp")


class Sandbox:
    """A way to run a program with the private root as its root folder."""

    def __init__(self, unshare: Sequence[str]) -> None:
        self._unshare = tuple(unshare)

    def command(self, root: Path, program: Sequence[str]) -> list[str]:
        """The command that runs ``program`` (paths as seen inside) in ``root``."""
        if not self._unshare:
            return ["chroot", str(root), *_ENVIRONMENT, *program]
        return [*self._unshare, "sh", "-c", _BIND_AND_ENTER, "sh", str(root), *_ENVIRONMENT, *program]


def find_sandbox(root: Path, run: Run = run, *, user: int | None = None) -> Sandbox:
    """The first way into ``root`` that works here. Raises EnvironmentProblem when there is none."""
    as_root = (os.geteuid() if user is None else user) == 0
    ways = [["unshare", "--mount"]] if as_root else []
    ways.append(["unshare", "--map-root-user", "--mount"])
    for way in ways:
        sandbox = Sandbox(way)
        if run(sandbox.command(root, ["true"])).status == 0:
            return sandbox
    if as_root and _make_null_device(root):
        sandbox = Sandbox([])
        if run(sandbox.command(root, ["true"])).status == 0:
            return sandbox
    raise EnvironmentProblem(
        "the guest modules cannot be built: this user may not create mount namespaces",
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 on Debian,"
        " kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu) or run as root",
    )


def _make_null_device(root: Path) -> bool:
    path = root / "dev/null"
    try:
        if not path.exists():
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return path.is_char_device()
    except OSError:
        return False


def build_modules(toolbox: Toolbox, sources: Path, cache: Path, progress: Progress, run: Run = run) -> list[Path]:
    """The built ``.ko`` files of ``sources``, sorted by name; from ``cache`` if nothing changed.

    A warning is an error. Raises RunError with the compiler's output, and EnvironmentProblem.
    """
    kept = cache / f"modules-{sources_digest(sources, _kernel_identity(toolbox))}"
    if kept.is_dir():
        progress.skip(STEPS)
    else:
        progress.step(f"building the guest modules for {toolbox.kernel_release}")
        _build(toolbox, sources, kept, run)
        progress.done()
    return sorted(kept.glob("*.ko"))


def _kernel_identity(toolbox: Toolbox) -> str:
    """What modules are built for. A kernel that is not from a package may have been built again under the same
    release."""
    if toolbox.kernel_tree is None:
        return toolbox.kernel_release
    symbols = (toolbox.kernel_tree / "Module.symvers").read_bytes()
    return f"{toolbox.kernel_release} {toolbox.kernel_tree} {hashlib.sha256(symbols).hexdigest()}"


def _make_command(toolbox: Toolbox, work: Path, run: Run) -> tuple[list[str], str]:
    """The command that builds ``work``, and what it calls that folder."""
    options = [f"-j{os.cpu_count() or 1}", *toolbox.architecture.make, "KCFLAGS=-Werror", "modules"]
    if toolbox.kernel_tree is None:
        tree = f"/lib/modules/{toolbox.kernel_release}/build"
    elif toolbox.kernel_tree.is_relative_to(toolbox.root):
        tree = f"/{toolbox.kernel_tree.relative_to(toolbox.root)}"
    else:  # the user's compiler built it, and so it builds its modules
        return ["make", "-C", str(toolbox.kernel_tree), f"M={work}", *options], str(work)
    inside = "/" + str(work.relative_to(toolbox.root))
    sandbox = find_sandbox(toolbox.root, run)
    return sandbox.command(toolbox.root, ["make", "-C", tree, f"M={inside}", *options]), inside


def _build(toolbox: Toolbox, sources: Path, kept: Path, run: Run) -> None:
    work = Path(tempfile.mkdtemp(dir=toolbox.root / "build"))
    try:
        copy_sources(sources, work)
        make, inside = _make_command(toolbox, work, run)
        outcome = run(make)
        products = [product for pattern in _PRODUCTS for product in work.rglob(pattern)]
        if outcome.status != 0 or not products:
            raise RunError(f"the guest modules in {sources} do not build", outcome.output.replace(f"{inside}/", ""))
        keep(products, kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)
