"""Kernel builds: kept by source and fragments, every option checked, nothing left of what failed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pviommu.lab.architecture import AMD64, ARM64, Architecture
from pviommu.lab.kernel_build import BuiltKernel, build_kernel, find_kernel, follow, options
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress

DRY_COMPILED = (*(f"drivers/{number}.o" for number in range(98)), "drivers/nvme.o", "arch/x86/entry.o")
COMPILED = (*(f"CC      {name}" for name in DRY_COMPILED[:98]), "CC [M]  drivers/nvme.o", "AS      arch/x86/entry.o")


class FakeMake:
    """Stands in for tar and make inside the root: does to the folders what each step is relied on for."""

    def __init__(self, root: Path, image: str = "arch/x86/boot/bzImage") -> None:
        self.root = root
        self.image = image
        self.steps: list[str] = []
        self.commands: list[Sequence[str]] = []
        self.known = {"SMP", "IOMMUFD", "KASAN"}
        self.broken = ""

    def __call__(self, command: Sequence[str], line: Callable[[str], None]) -> int:
        if "tar" in command:
            self.steps.append("tar")
            return 0
        words = command[command.index("make") :]
        self.commands.append(words)
        source = self.root / words[2].lstrip("/")
        if "-n" in words:
            self.steps.append("dry")
            for name in DRY_COMPILED:
                line(f"set -e;  echo '  CC      {name}'; gcc -o {name}")
            line("echo '  AR      drivers/built-in.a'; ar")
            return 2  # it misses what it would have made
        step = next(word for word in words[3:] if "=" not in word and not word.startswith("-"))
        self.steps.append(step)
        if step == self.broken:
            line("cc1: out of memory")
            return 2
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        getattr(self, f"_{step.replace('-', '_')}")(source, variables, line)
        return 0

    def _allnoconfig(self, source: Path, variables: dict[str, str], line: Callable[[str], None]) -> None:
        wanted = (self.root / variables["KCONFIG_ALLCONFIG"].lstrip("/")).read_text()
        known = {name: value for name, value in options(wanted).items() if name in self.known}
        (source / ".config").write_text("".join(f"CONFIG_{name}={value}\n" for name, value in known.items()))

    def _prepare(self, source: Path, variables: dict[str, str], line: Callable[[str], None]) -> None:
        line("  CC      kernel/bounds.s")

    def _all(self, source: Path, variables: dict[str, str], line: Callable[[str], None]) -> None:
        for name in ("vmlinux", "System.map", self.image):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(name)
        for name in COMPILED:
            line(f"  {name}")
        line("  CC      arch/x86/boot/edd.o")  # which nobody knew of

    def _modules_install(self, source: Path, variables: dict[str, str], line: Callable[[str], None]) -> None:
        folder = self.root / variables["INSTALL_MOD_PATH"].lstrip("/") / "lib/modules/7.3.4-lab"
        folder.mkdir(parents=True)
        (folder / "nvme.ko").write_text("module")
        (folder / "build").symlink_to("/kernels/making-x/source")

    def _run_command(self, source: Path, variables: dict[str, str], line: Callable[[str], None]) -> None:
        tree = self.root / variables["KBUILD_RUN_COMMAND"].split()[-1].lstrip("/")
        (tree / "include/config").mkdir(parents=True)
        (tree / "include/config/kernel.release").write_text("7.3.4-lab\n")
        (tree / "Module.symvers").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a source package, as far as builds look at it."""
    root = tmp_path / "root"
    (root / "usr/src").mkdir(parents=True)
    (root / "usr/src/linux-source-7.3.tar.xz").touch()
    (root / ".complete").write_text("gcc_1_amd64.deb\nlinux-source-7.3_7.3.4-1_all.deb\n")
    return root


@pytest.fixture
def fragment(tmp_path: Path) -> Path:
    path = tmp_path / "lab.config"
    path.write_text("# comment\nCONFIG_SMP=y\nCONFIG_IOMMUFD=m\nCONFIG_DEBUG=n\n")
    return path


def build(
    root: Path,
    fragments: Sequence[Path],
    make: FakeMake,
    stream: io.StringIO | None = None,
    architecture: Architecture = AMD64,
) -> BuiltKernel:
    progress = Progress(stream or io.StringIO(), 3)
    return build_kernel("lab", root, fragments, progress, _entered, make, architecture)


def _entered(command: Sequence[str]) -> Outcome:
    return Outcome(0, "")  # every way into a root works


def test_kernel_is_built_once_and_then_found(root: Path, fragment: Path) -> None:
    make = FakeMake(root)
    first = build(root, [fragment], make)
    second = build(root, [fragment], make)

    assert first.folder == second.folder
    assert make.steps == ["tar", "allnoconfig", "prepare", "dry", "all", "modules_install", "run-command"]


def test_find_gives_a_built_kernel_and_builds_none(root: Path, fragment: Path) -> None:
    assert find_kernel("lab", root, [fragment]) is None
    assert not (root / "kernels").exists()
    built = build(root, [fragment], FakeMake(root))

    found = find_kernel("lab", root, [fragment])
    assert found is not None
    assert found.folder == built.folder


def test_kept_are_image_symbols_modules_and_the_tree_for_modules(root: Path, fragment: Path) -> None:
    built = build(root, [fragment], FakeMake(root))

    for name in (".config", "vmlinux", "System.map", "arch/x86/boot/bzImage", "Module.symvers"):
        assert (built.tree / name).is_file()
    assert (built.modules / "nvme.ko").is_file()
    assert not (built.modules / "build").is_symlink()
    assert sorted(path.name for path in (root / "kernels").iterdir()) == [built.folder.name, "lock"]


def test_kernel_of_another_architecture_is_cross_compiled_and_has_its_image(root: Path, fragment: Path) -> None:
    make = FakeMake(root, image="arch/arm64/boot/Image")
    built = build(root, [fragment], make, architecture=ARM64)

    assert (built.tree / "arch/arm64/boot/Image").is_file()
    assert all({"ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"} <= set(words) for words in make.commands)
    assert len(make.commands) == 6


def test_programs_of_the_tree_for_modules_are_those_that_run_here(root: Path, fragment: Path) -> None:
    # install-extmod-build builds them anew for where the kernel runs, unless the compilers have one name
    make = FakeMake(root)
    build(root, [fragment], make)

    export = next(word for word in make.commands[-1] if word.startswith("KBUILD_RUN_COMMAND="))
    script = "$(srctree)/scripts/package/install-extmod-build"
    assert export.startswith(f"KBUILD_RUN_COMMAND=HOSTCC='$(CC)' {script} /kernels/")


def test_changed_fragment_or_newer_source_is_another_kernel(root: Path, fragment: Path) -> None:
    make = FakeMake(root)
    first = build(root, [fragment], make)
    (root / ".complete").write_text("linux-source-7.3_7.3.5-1_all.deb\n")
    second = build(root, [fragment], make)
    fragment.write_text("CONFIG_SMP=y\n")
    third = build(root, [fragment], make)

    assert len({first.folder, second.folder, third.folder}) == 3


def test_later_fragment_wins(root: Path, fragment: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.config"
    more.write_text("CONFIG_IOMMUFD=y\nCONFIG_KASAN=y\n")
    built = build(root, [fragment, more], FakeMake(root))

    found = options((built.tree / ".config").read_text())
    assert found == {"SMP": "y", "IOMMUFD": "y", "KASAN": "y"}


def test_every_option_that_did_not_take_effect_is_named(root: Path, fragment: Path) -> None:
    make = FakeMake(root)
    make.known = {"KASAN"}
    with pytest.raises(RunError, match=r"options: SMP=y \(it is n\), IOMMUFD=m \(it is n\); they are unknown, or"):
        build(root, [fragment], make)

    assert [path.name for path in (root / "kernels").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("step", "what"),
    [("allnoconfig", "configured"), ("all", "built"), ("modules_install", "installed"), ("run-command", "installed")],
)
def test_failing_step_leaves_its_words_and_nothing_else(root: Path, fragment: Path, step: str, what: str) -> None:
    make = FakeMake(root)
    make.broken = step
    with pytest.raises(RunError, match=f"the kernel lab cannot be {what}") as caught:
        build(root, [fragment], make)

    assert caught.value.detail.endswith("cc1: out of memory")
    assert [path.name for path in (root / "kernels").iterdir()] == ["lock"]


def test_files_are_counted_beforehand_and_the_last_one_is_the_end(root: Path, fragment: Path) -> None:
    stream = io.StringIO()
    build(root, [fragment], FakeMake(root), stream)

    shown = [line for line in stream.getvalue().splitlines() if "building the kernel lab on" in line]
    assert [line.partition(" ... ")[2] for line in shown[1:-1]] == [
        f"{number} %, {number} of 100 files, about 0 s left" for number in (20, 40, 60, 80, 100)
    ]
    assert shown[-1].endswith(", 100 files")


def test_root_without_a_source_is_an_environment_problem(tmp_path: Path, fragment: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="holds no kernel source"):
        build(tmp_path, [fragment], FakeMake(tmp_path))


def test_options_are_read_from_fragments_and_configurations() -> None:
    text = '# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="-lab"\nCONFIG_A=m\n'
    assert options(text) == {"A": "m", "B": "n", "C": '"-lab"'}


def test_follow_hands_over_each_line_of_both_streams_and_the_status() -> None:
    lines: list[str] = []
    assert follow(["sh", "-c", "echo one; echo two >&2; exit 3"], lines.append) == 3
    assert lines == ["one", "two"]
