"""Makes the guest's first root: busybox, the skeleton, the tests, kernel modules and the files of one run.

Inside the guest: ``/init`` and whatever else ``guest-tools/image`` holds, ``/tests`` (``guest-tools/tests``), kernel
modules in ``/lib/modules/<release>`` (also reachable as ``/lib/modules-lab``) with ``modules.dep`` and
``modules.builtin``, so that ``modprobe`` works.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .cpio import Archive
from .problems import EnvironmentProblem
from .processes import Run, run
from .provision import Toolbox

__all__ = ["KernelModules", "base_image", "guest_image"]


class KernelModules:
    """The modules of a kernel, by name; ``-`` and ``_`` are the same, as for modprobe.

    ``folder`` is where they are installed, or a build tree that has them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = {_module_name(path): path for path in _module_files(folder)}
        builtin = folder / "modules.builtin"
        self.builtin = builtin.read_text().splitlines() if builtin.is_file() else []
        """Modules that are built into the kernel, as ``kernel/drivers/.../name.ko``."""
        self._builtin = {_module_name(Path(line)) for line in self.builtin}

    def __contains__(self, name: str) -> bool:
        return _module_name(Path(name)) in self._paths

    def with_dependencies(self, names: Iterable[str]) -> dict[str, bytes]:
        """Decompressed modules by name, each after those it needs. Raises EnvironmentProblem for an unknown name."""
        found: dict[str, bytes] = {}
        for name in names:
            self._collect(_module_name(Path(name)), found, ())
        return found

    def _collect(self, name: str, found: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in found or name in self._builtin or name in above:
            return
        path = self._paths.get(name)
        if path is None:
            raise EnvironmentProblem(f"the kernel in {self._folder} has no module {name}", "use a kernel that has it")
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        elif path.suffix != ".ko":
            raise EnvironmentProblem(f"{path}: only .ko and .ko.xz can be read", "use Debian's kernel package")
        for needed in dependencies(content):
            self._collect(needed, found, (*above, name))
        found[name] = content


def _module_files(folder: Path) -> list[Path]:
    if not (folder / "Module.symvers").is_file():
        return [path for path in folder.rglob("*.ko*") if path.is_file()]
    # A build tree is large and holds leftovers of earlier configurations; its list names the modules that belong to it.
    order = folder / "modules.order"
    lines = order.read_text().splitlines() if order.is_file() else []
    paths = [(folder / line).with_suffix(".ko") for line in lines]
    return [path for path in paths if path.is_file()]


def dependencies(module: bytes) -> list[str]:
    """Names of the modules that ``module`` (the bytes of a .ko file) needs, from its .modinfo section."""
    match = re.search(rb"\0depends=([\w,-]*)\0", module)
    return [_module_name(Path(name)) for name in match[1].decode().split(",") if name] if match else []


def base_image(busybox: Path, init: bytes, run: Run = run, *, runnable: Path | None = None) -> Archive:
    """An image with busybox, all its applets and ``/init``. ``runnable``: a busybox with the same applets, if the
    guest's does not run here. Raises EnvironmentProblem if none does.
    """
    listing = run([str(runnable or busybox), "--list-full"])
    if listing.status != 0:
        raise EnvironmentProblem(f"{runnable or busybox} does not run here", "run the lab on an x86-64 Linux host")
    archive = Archive()
    for folder in ("/dev", "/proc", "/sys", "/tmp", "/run", "/lab"):
        archive.folder(folder)
    archive.character_device("/dev/console", 5, 1)
    archive.file("/bin/busybox", busybox.read_bytes(), 0o755)
    for applet in listing.output.split():
        path = f"/{applet.lstrip('/')}"
        if path not in archive:
            archive.link(path, "/bin/busybox")
    archive.file("/init", init, 0o755)
    return archive


def guest_image(
    toolbox: Toolbox,
    guest_tools: Path,
    modules: Sequence[Path],
    *,
    programs: Sequence[Path] = (),
    extra_modules: Iterable[str] = (),
    files: Mapping[str, bytes] | None = None,
    executables: Mapping[str, bytes] | None = None,
    run: Run = run,
) -> bytes:
    """The packed image of one run.

    ``modules`` are built ``.ko`` files, ``programs`` built executables for ``/bin``, ``extra_modules`` names of the
    kernel's own modules (those that it has built in need nothing), ``files`` and ``executables`` map absolute guest
    paths to contents. Raises EnvironmentProblem.
    """
    init = (guest_tools / "image/init").read_bytes()
    archive = base_image(toolbox.busybox, init, run, runnable=toolbox.runnable_busybox)
    _add_tree(archive, guest_tools / "image", "")
    if (guest_tools / "tests").is_dir():
        _add_tree(archive, guest_tools / "tests", "/tests")
    for program in programs:
        archive.file(f"/bin/{program.name}", program.read_bytes(), 0o755)
    own = KernelModules(toolbox.modules)
    contents = own.with_dependencies(extra_modules)
    contents |= {path.stem: path.read_bytes() for path in modules}
    _add_modules(archive, toolbox.kernel_release, contents, own.builtin)
    for path, content in (files or {}).items():
        archive.file(path, content)
    for path, content in (executables or {}).items():
        archive.file(path, content, 0o755)
    return archive.pack()


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _add_modules(archive: Archive, release: str, contents: Mapping[str, bytes], builtin: Sequence[str]) -> None:
    folder = f"/lib/modules/{release}"
    archive.folder(folder)
    archive.link("/lib/modules-lab", folder)
    lines = []
    for name, content in contents.items():
        archive.file(f"{folder}/{name}.ko", content)
        needed = _closure(name, contents)
        lines.append(" ".join([f"{name}.ko:", *(f"{other}.ko" for other in needed)]))
    archive.file(f"{folder}/modules.dep", "".join(f"{line}\n" for line in lines).encode())
    # With this, modprobe succeeds for what is built in, so scripts need not know which kernel has what as a module.
    archive.file(f"{folder}/modules.builtin", "".join(f"{line}\n" for line in builtin).encode())


def _closure(name: str, contents: Mapping[str, bytes]) -> list[str]:
    """What ``name`` needs, directly or not, the nearest first (the order of depmod)."""
    ordered: list[str] = []
    pending = dependencies(contents[name])
    while pending:
        other = pending.pop(0)
        if other in contents and other != name:
            if other in ordered:
                ordered.remove(other)
            ordered.append(other)
            pending += [further for further in dependencies(contents[other]) if further not in pending]
        if len(ordered) > len(contents):
            break
    return ordered


def _add_tree(archive: Archive, source: Path, target: str) -> None:
    for path in sorted(source.rglob("*")):
        name = f"{target}/{path.relative_to(source)}"
        if path.is_symlink():
            archive.link(name, str(path.readlink()))
        elif path.is_dir():
            archive.folder(name)
        else:
            archive.file(name, path.read_bytes(), _mode(path))


def _mode(path: Path) -> int:
    # A wheel does not keep the executable bit, but a first line that names an interpreter tells as much.
    with path.open("rb") as file:
        script = file.read(2) == b"#!"
    return 0o755 if script or path.stat().st_mode & 0o100 else 0o644
