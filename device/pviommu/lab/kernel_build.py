"""Builds a kernel for the guest from Debian's source package, in a private root and with the compiler of that root.

Configuration fragments on top of ``make allnoconfig`` describe a kernel: it has nothing but what they name. The root
keeps under ``kernels/NAME-DIGEST``, with a digest of the source package and the fragments, what a run needs: the image,
symbols, the kernel's own modules, and the part of the build tree that other modules are built against.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from .architecture import AMD64, Architecture
from .build import Sandbox, find_sandbox
from .problems import EnvironmentProblem, RunError
from .processes import Run, run
from .progress import Progress
from .roots import archives_in, locked

__all__ = [
    "SOURCE_PACKAGES",
    "STEPS",
    "BuiltKernel",
    "Follow",
    "build_kernel",
    "find_kernel",
    "follow",
    "source_archive",
    "source_version",
]

STEPS = 3
"""Progress steps that building a kernel may take."""

SOURCE_PACKAGES = (
    *("linux-source", "make", "gcc", "libc6-dev", "binutils", "flex", "bison", "bc", "libelf-dev", "libssl-dev"),
    *("diffutils", "gzip", "kmod", "perl", "python3-minimal", "tar", "xz-utils"),
)
"""Packages that a root needs to build a kernel. The first one is the source; a Debian suite may be added to its
name."""

Follow = Callable[[Sequence[str], Callable[[str], None]], int]
"""Runs a program, hands over each line of its output, returns its exit status; tests put a fake in its place."""

_LAYOUT = "1"  # change it to have every kernel built anew
_LAST_LINES = 40
# what make prints for each file that it compiles, in a build and in a dry run
_COMPILES = re.compile(r"(?:^|echo ')\s+(?:CC|AS)(?: \[M\])?\s+(\S+\.o)\b")
# Built by a cross compiler, it would build the tree's programs anew for where the kernel runs. Modules are built here.
_EXPORT_TREE = "HOSTCC='$(CC)' $(srctree)/scripts/package/install-extmod-build"
_DRY = ("-n", "-k", "all")
_KEPT_FILES = (".config", "vmlinux", "System.map")


class BuiltKernel:
    """Where the parts of a built kernel are; ``folder`` is on the host, within its root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def tree(self) -> Path:
        """The part of the build tree that modules are built against, with image and symbols in their places."""
        return self.folder / "build"

    @property
    def modules(self) -> Path:
        """The kernel's own modules, as installed."""
        release = (self.tree / "include/config/kernel.release").read_text().strip()
        return self.folder / "lib/modules" / release


def follow(command: Sequence[str], line: Callable[[str], None]) -> int:
    """Run ``command`` to its end; ``line`` gets each line of its output, standard error included, as it comes."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        assert process.stdout is not None  # asked for above
        try:
            for text in process.stdout:
                line(text.rstrip("\n"))
        except KeyboardInterrupt:
            process.terminate()  # otherwise leaving the block would wait for the rest of the build
            raise
    return process.returncode


def build_kernel(
    name: str,
    root: Path,
    fragments: Sequence[Path],
    progress: Progress,
    run: Run = run,
    follow: Follow = follow,
    architecture: Architecture = AMD64,
) -> BuiltKernel:
    """The kernel ``name`` of ``architecture``, which ``fragments`` describe (later ones override earlier ones).

    It is built in ``root`` if it is not there yet.

    Raises RunError with what the failing step said, and EnvironmentProblem.
    """
    found = find_kernel(name, root, fragments)
    if found is not None:
        progress.skip(STEPS)
        return found
    kept = _place(name, root, fragments)
    try:
        with locked(kept.parent):
            if kept.is_dir():
                progress.skip(STEPS)
            else:
                build = _Build(name, root, find_sandbox(root, run), progress, follow, architecture)
                build.make(source_archive(root), _text(fragments), kept)
    except OSError as problem:
        raise EnvironmentProblem(
            f"the kernel {name} cannot be built in {kept.parent}: {problem}",
            "give it about 5 GB of space for the time of the build, or set XDG_CACHE_HOME to a folder that has it",
        ) from problem
    return BuiltKernel(kept)


def find_kernel(name: str, root: Path, fragments: Sequence[Path]) -> BuiltKernel | None:
    """The kernel, if :func:`build_kernel` has built it already, else None. Raises EnvironmentProblem."""
    kept = _place(name, root, fragments)
    return BuiltKernel(kept) if kept.is_dir() else None


def _place(name: str, root: Path, fragments: Sequence[Path]) -> Path:
    return root / "kernels" / f"{name}-{_digest(root, _text(fragments))}"


def _text(fragments: Sequence[Path]) -> str:
    return "\n".join(fragment.read_text() for fragment in fragments)


def source_archive(root: Path) -> Path:
    """The kernel source that ``root`` holds. Raises EnvironmentProblem if it holds none."""
    archives = sorted((root / "usr/src").glob("linux-source-*.tar.xz"))
    if not archives:
        raise EnvironmentProblem(f"{root} holds no kernel source", f"remove {root} to have it made again")
    return archives[-1]


def source_version(root: Path) -> str:
    """The file name of the kernel source's package in ``root``, which tells versions apart. Raises
    EnvironmentProblem."""
    # The source's own name has only two numbers of the version, the package's has all.
    stem = source_archive(root).name.removesuffix(".tar.xz")
    return "\n".join(name for name in archives_in(root) if name.startswith(f"{stem}_"))


def _digest(root: Path, fragments: str) -> str:
    recipe = "\n".join([_LAYOUT, source_version(root), fragments])
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def options(configuration: str) -> dict[str, str]:
    """Options and values of a kernel configuration or a fragment; an option that is off has the value ``n``."""
    found = {}
    for line in configuration.splitlines():
        if match := re.fullmatch(r"CONFIG_(\w+)=(.*)", line.strip()):
            found[match[1]] = match[2]
        elif match := re.fullmatch(r"# CONFIG_(\w+) is not set", line.strip()):
            found[match[1]] = "n"
    return found


class _Build:
    """One build. Folders are named as seen from inside the sandbox unless they are a Path."""

    def __init__(
        self, name: str, root: Path, sandbox: Sandbox, progress: Progress, follow: Follow, architecture: Architecture
    ) -> None:
        self._name = name
        self._root = root
        self._sandbox = sandbox
        self._progress = progress
        self._follow = follow
        self._architecture = architecture

    def make(self, source: Path, fragments: str, kept: Path) -> None:
        making = Path(tempfile.mkdtemp(prefix="making-", dir=kept.parent))
        making.chmod(0o755)  # whoever may read the root may read the kept tree
        try:
            self._unpack(source, making)
            self._configure(making, fragments)
            self._compile(making)
            self._keep(making)
            (making / "kept").rename(kept)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _unpack(self, source: Path, making: Path) -> None:
        self._progress.step(f"unpacking {source.name.removesuffix('.tar.xz')}")
        tree = making / "source"
        tree.mkdir()
        self._do(["tar", "-xf", self._inside(source), "-C", self._inside(tree), "--strip-components=1"], "unpacked")
        self._progress.done()

    def _configure(self, making: Path, fragments: str) -> None:
        fragment = making / "fragment"
        fragment.write_text(fragments)
        self._make(making, [f"KCONFIG_ALLCONFIG={self._inside(fragment)}", "allnoconfig"], "configured")
        got = options((making / "source/.config").read_text())
        refused = [
            f"{option}={value} (it is {got.get(option, 'n')})"
            for option, value in options(fragments).items()
            if got.get(option, "n") != value
        ]
        if refused:
            raise RunError(
                f"the kernel {self._name} does not take these options: {', '.join(refused)};"
                " they are unknown, or something that they depend on is off"
            )

    def _compile(self, making: Path) -> None:
        processors = os.cpu_count() or 1
        self._progress.step(f"building the kernel {self._name} on {processors} processors")
        self._make(making, [f"-j{processors}", "prepare"], "prepared")
        missing = self._would_compile(making)
        total = len(missing)

        def count(line: str) -> None:
            match = _COMPILES.match(line)
            if match and match[1] in missing:
                missing.remove(match[1])
                self._progress.count(total - len(missing), total, "files")

        self._make(making, [f"-j{processors}", "all"], "built", count)
        self._progress.done(f"{total} files")

    def _would_compile(self, making: Path) -> set[str]:
        """The files that a build will compile. A few more will come: make cannot know yet what depends on files to be
        made."""
        found = set()

        def take(line: str) -> None:
            if match := _COMPILES.search(line):
                found.add(match[1])

        # -k: files that it would have made are missing, which is no error here
        self._follow(self._sandbox.command(self._root, [*self._make_in(making), *_DRY]), take)
        return found

    def _keep(self, making: Path) -> None:
        self._progress.step(f"installing the kernel {self._name}")
        kept, tree = making / "kept", making / "kept/build"
        tree.mkdir(parents=True)
        inside = self._inside(tree)
        install = ["modules_install", f"INSTALL_MOD_PATH={self._inside(kept)}", "INSTALL_MOD_STRIP=1"]
        self._make(making, install, "installed")
        export = f"KBUILD_RUN_COMMAND={_EXPORT_TREE} {inside}"
        self._make(making, ["run-command", export], "installed")
        for name in (*_KEPT_FILES, self._architecture.image):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(making / "source" / name, tree / name)
        debugger = tree / "vmlinux-gdb.py"  # gdb loads it with vmlinux, if that is allowed
        if (tree / "scripts/gdb/vmlinux-gdb.py").is_file() and not debugger.exists():
            debugger.symlink_to("scripts/gdb/vmlinux-gdb.py")
        for modules in kept.glob("lib/modules/*"):
            (modules / "build").unlink(missing_ok=True)  # it points to the tree that goes away
        size = sum(path.lstat().st_size for path in kept.rglob("*")) // 1_000_000
        self._progress.done(f"{size} MB")

    def _make(
        self, making: Path, words: Sequence[str], what: str, line: Callable[[str], None] = lambda line: None
    ) -> None:
        # A low priority: whoever waits for the kernel does other work meanwhile.
        self._do(["nice", "-n", "10", *self._make_in(making), *words], what, line)

    def _make_in(self, making: Path) -> tuple[str, ...]:
        return ("make", "-C", self._inside(making / "source"), *self._architecture.make)

    def _do(self, program: Sequence[str], what: str, line: Callable[[str], None] = lambda line: None) -> None:
        last: deque[str] = deque(maxlen=_LAST_LINES)

        def take(text: str) -> None:
            last.append(text)
            line(text)

        if self._follow(self._sandbox.command(self._root, program), take) != 0:
            raise RunError(f"the kernel {self._name} cannot be {what}", "\n".join(last))

    def _inside(self, path: Path) -> str:
        return "/" + str(path.relative_to(self._root))
