"""The guest's kernel by name or path: what each name fetches and builds, and what the toolbox says of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pviommu.lab import kernel, kernel_build, kernels
from pviommu.lab.architecture import AMD64, ARM64, Architecture
from pviommu.lab.kernel_build import BuiltKernel
from pviommu.lab.problems import EnvironmentProblem, UsageError
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox

HEADER = "struct iommu_ops { x (*domain_alloc_paging)(y); z *release_domain; z *blocked_domain; };\n"


def write_tree(tree: Path, release: str, architecture: Architecture = AMD64) -> Path:
    """A build tree that has all that a run looks for."""
    for name, text in {
        architecture.image: "image",
        "include/config/kernel.release": f"{release}\n",
        "include/config/auto.conf": "".join(
            f"CONFIG_{option}=y\n" for option in (*kernel.BUILT_IN, architecture.console_option, *kernel.PRESENT)
        ),
        "include/linux/iommu.h": HEADER,
        "Module.symvers": "",
        "vmlinux": "symbols",
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


@dataclass
class Made:
    """What was asked of the root maker and of the kernel builder, and the layer that it got."""

    layer: Path
    packages: Sequence[str] = ()
    base: Path | None = None
    fragments: Sequence[str] = ()
    architectures: Sequence[str] = ()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made(tmp_path / "layer")
    made.layer.mkdir()

    def private_root(
        folder: Path,
        packages: Sequence[str],
        progress: object,
        environment: object,
        run: object,
        *,
        base: Path,
        architectures: Sequence[str] = ("amd64",),
    ) -> Path:
        made.packages, made.base, made.architectures = packages, base, architectures
        return made.layer

    def build_kernel(
        name: str,
        root: Path,
        fragments: Sequence[Path],
        progress: object,
        run: object,
        follow: object,
        architecture: Architecture,
    ) -> BuiltKernel:
        made.fragments = [fragment.name for fragment in fragments]
        write_tree(root / "kernels/it/build", f"7.3.4-{name}", architecture)
        return BuiltKernel(root / "kernels/it")

    monkeypatch.setattr(kernels, "private_root", private_root)
    monkeypatch.setattr(kernels, "build_kernel", build_kernel)
    return made


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    return Toolbox(tmp_path / "root", ("qemu",), {}, "11.1", tmp_path / "k", "6.12.1-cloud", tmp_path / "b")


@pytest.fixture
def choose(toolbox: Toolbox, checkout: Path) -> Callable[[str], Toolbox]:
    """Gives the toolbox with the kernel of that name, by the checkout's own fragments."""
    progress = Progress(io.StringIO(), 6)
    return lambda name: kernels.with_kernel(toolbox, name, checkout / "guest-tools", progress, environment={})


def test_debian_is_what_the_toolbox_has(made: Made, toolbox: Toolbox, choose: Callable[[str], Toolbox]) -> None:
    assert choose("debian") is toolbox
    assert made.packages == ()


def test_debian_7_is_a_layer_with_newer_packages(
    made: Made, toolbox: Toolbox, choose: Callable[[str], Toolbox]
) -> None:
    for release in ("7.2.9+deb13-cloud-amd64", "7.3.4+deb13-cloud-amd64"):
        (made.layer / "usr/lib/modules" / release).mkdir(parents=True)
        (made.layer / "usr/lib/modules" / release / "vmlinuz").touch()
    found = choose("debian-7")

    assert made.base == toolbox.root
    assert all(package.endswith("-cloud-amd64/trixie-backports") for package in made.packages)
    assert (found.kernel, found.kernel_release, found.root) == ("debian-7", "7.3.4+deb13-cloud-amd64", made.layer)
    assert found.kernel_image == made.layer / "usr/lib/modules/7.3.4+deb13-cloud-amd64/vmlinuz"
    assert found.modules == made.layer / "usr/lib/modules/7.3.4+deb13-cloud-amd64"
    assert found.qemu_command == toolbox.qemu_command


@pytest.mark.parametrize(
    ("kernel", "packages", "image", "release"),
    [
        (
            "debian-7",
            (
                "linux-base:all/trixie-backports",
                "linux-image-cloud-arm64:arm64/trixie-backports",
                "linux-headers-cloud-arm64:arm64/trixie-backports",
            ),
            "usr/lib/modules/7.3.4+deb13-cloud-arm64/vmlinuz",
            "7.3.4+deb13-cloud-arm64",
        ),
        (
            "debian-16k",
            ("linux-image-arm64-16k:arm64", "linux-headers-arm64-16k:arm64"),
            "boot/vmlinuz-6.12.1+deb13-arm64-16k",
            "6.12.1+deb13-arm64-16k",
        ),
    ],
)
def test_kernels_of_arm64_are_layers_with_its_packages(
    made: Made, toolbox: Toolbox, checkout: Path, kernel: str, packages: tuple[str, ...], image: str, release: str
) -> None:
    for name in (image, "boot/vmlinuz-6.12.1+deb13-cloud-amd64", "boot/vmlinuz-6.12.1+deb13-cloud-arm64"):
        (made.layer / name).parent.mkdir(parents=True, exist_ok=True)
        (made.layer / name).touch()
    arm = replace(toolbox, architecture=ARM64)

    found = kernels.with_kernel(arm, kernel, checkout, Progress(io.StringIO(), 6), environment={})

    assert (made.packages, made.architectures) == (packages, ("amd64", "arm64"))
    assert (found.kernel_image, found.kernel_release) == (made.layer / image, release)


@pytest.mark.parametrize(("architecture", "kernel"), [(ARM64, "lab-debug"), (AMD64, "debian-16k")])
def test_a_kernel_of_another_architecture_is_refused_with_those_that_there_are(
    architecture: Architecture, kernel: str
) -> None:
    with pytest.raises(
        UsageError, match=f"--kernel {kernel}: not one of {architecture.name}, which are debian, debian-7"
    ):
        kernels.open_named_path(kernel, architecture)


def test_an_own_kernel_of_arm64_is_a_build_tree_with_its_image(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "7.3.4-own")
    with pytest.raises(UsageError, match="no built arm64 kernel, its image arch/arm64/boot/Image is missing"):
        kernels.open_named_path(str(tree), ARM64)
    (tree / "arch/arm64/boot").mkdir(parents=True)
    (tree / "arch/arm64/boot/Image").touch()
    with pytest.raises(EnvironmentProblem, match="does not have CONFIG_SERIAL_AMBA_PL011_CONSOLE built in"):
        kernels.open_named_path(str(tree), ARM64)
    with (tree / "include/config/auto.conf").open("a") as config:
        config.write("CONFIG_SERIAL_AMBA_PL011_CONSOLE=y\n")

    found = kernels.open_named_path(str(tree), ARM64)

    assert found is not None
    assert (found.image, found.release) == (tree / "arch/arm64/boot/Image", "7.3.4-own")
    with pytest.raises(UsageError, match="of arm64, give the build tree, which has arch/arm64/boot/Image"):
        kernels.open_named_path(str(tree / "arch/arm64/boot/Image"), ARM64)


def test_layer_without_an_image_is_named(made: Made, choose: Callable[[str], Toolbox]) -> None:
    with pytest.raises(EnvironmentProblem, match=f"{made.layer} holds no kernel image"):
        choose("debian-7")


@pytest.mark.parametrize(
    ("name", "fragments", "arguments"),
    [
        ("lab", ["lab.config"], ("printk.time=1",)),
        (
            "lab-debug",
            ["lab.config", "lab-debug.config"],
            ("printk.time=1", "panic_on_warn=1", "iommu.debug_pagealloc=1"),
        ),
    ],
)
def test_labs_own_kernels_are_built_in_a_layer(
    made: Made, choose: Callable[[str], Toolbox], name: str, fragments: list[str], arguments: tuple[str, ...]
) -> None:
    found = choose(name)

    assert made.packages[0] == "linux-source/trixie-backports"
    assert made.fragments == fragments
    tree = made.layer / "kernels/it/build"
    assert (found.kernel, found.kernel_release, found.kernel_arguments) == (name, f"7.3.4-{name}", arguments)
    assert (found.kernel_tree, found.vmlinux) == (tree, tree / "vmlinux")
    assert found.modules == made.layer / f"kernels/it/lib/modules/7.3.4-{name}"
    assert found.root == made.layer


def test_labs_own_kernel_of_arm64_is_built_by_its_compiler(made: Made, toolbox: Toolbox, checkout: Path) -> None:
    arm = replace(toolbox, architecture=ARM64)

    found = kernels.with_kernel(arm, "lab-64k", checkout / "guest-tools", Progress(io.StringIO(), 6), environment={})

    assert made.base == arm.root
    assert (made.packages[-2:], made.architectures) == (("uuid-dev", "uuid-dev:arm64"), ("amd64", "arm64"))
    assert made.fragments == ["lab.config", "lab-64k.config"]
    assert found.kernel_image == made.layer / "kernels/it/build/arch/arm64/boot/Image"
    assert (found.kernel, found.kernel_release) == ("lab-64k", "7.3.4-lab-64k")


def test_kernel_is_there_once_its_layer_is_and_it_is_built(
    made: Made, toolbox: Toolbox, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: dict[str, object] = {}
    monkeypatch.setattr(kernels, "find_root", lambda folder, packages, *, base: there.get("root"))
    monkeypatch.setattr(kernels, "find_kernel", lambda name, root, fragments: there.get("kernel"))

    def has() -> list[str]:
        names = ("debian", "debian-7", "lab")
        return [name for name in names if kernels.has_kernel(toolbox, name, checkout / "guest-tools", environment={})]

    assert has() == ["debian"]
    there["root"] = made.layer
    assert has() == ["debian", "debian-7"]
    there["kernel"] = BuiltKernel(made.layer)
    assert has() == ["debian", "debian-7", "lab"]


def test_path_of_a_tree_is_the_users_own_kernel(
    made: Made, toolbox: Toolbox, choose: Callable[[str], Toolbox], tmp_path: Path
) -> None:
    tree = write_tree(tmp_path / "linux", "7.0.0-mine")
    found = choose(str(tree))

    assert (found.kernel, found.kernel_release, found.kernel_tree) == ("own", "7.0.0-mine", tree)
    assert found.modules == tree
    assert found.root == toolbox.root
    assert made.packages == ()


def test_unknown_name_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernel of the lab has that name"):
        kernels.open_named_path("debian-8")
    assert kernels.open_named_path("lab") is None


def test_steps_are_those_of_the_layer_and_of_the_build() -> None:
    assert kernels.steps("debian") == kernels.steps("/some/tree") == 0
    assert kernels.steps("debian-7") == 3
    assert kernels.steps("lab") == kernels.steps("lab-debug") == 3 + kernel_build.STEPS
    assert kernels.steps("lab-64k", ARM64) == 3 + kernel_build.STEPS
    assert kernels.steps("debian-16k", ARM64) == 3


@pytest.mark.parametrize(("architecture", "name"), [(AMD64, "lab"), (AMD64, "lab-debug"), (ARM64, "lab-64k")])
def test_fragments_of_the_lab_have_what_a_users_kernel_is_asked_for(
    checkout: Path, architecture: Architecture, name: str
) -> None:
    flavour = kernels._FLAVOURS[architecture.name][name]
    texts = [(checkout / "guest-tools/kernel" / fragment).read_text() for fragment in flavour.fragments]
    lab = kernel_build.options("\n".join(texts))
    selected = {"IOMMU_API", "IOMMU_DMA"}  # by drivers of IOMMUs: they cannot be asked for
    needed = {*kernel.BUILT_IN, architecture.console_option}
    assert {option for option in needed if lab.get(option) != "y"} == selected
    assert lab["LOCALVERSION"] == f'"-{name}"'
    assert all(lab.get(option) in ("y", "m") for option in kernel.PRESENT)
