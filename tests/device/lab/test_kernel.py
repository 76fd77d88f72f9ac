"""A kernel of the user's own is found by its tree or its image, and checked before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu.lab import kernel
from pviommu.lab.architecture import AMD64
from pviommu.lab.problems import EnvironmentProblem, UsageError

VERSION = "6.12.0-own (someone@somewhere) #1 SMP"
HEADER = "struct iommu_ops { x (*domain_alloc_paging)(y); z *release_domain; z *blocked_domain; };\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A build tree that has all that is looked for."""
    for name, text in {
        "arch/x86/boot/bzImage": "image",
        "include/config/kernel.release": "6.12.0-own\n",
        "include/config/auto.conf": "".join(
            f"CONFIG_{option}=y\n" for option in (*kernel.BUILT_IN, AMD64.console_option, *kernel.PRESENT)
        ),
        "include/linux/iommu.h": HEADER,
        "Module.symvers": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def bzimage(version: str = VERSION, magic: bytes = b"HdrS") -> bytes:
    """The start of an image: the boot protocol's header with a version text at 0x400."""
    image = bytearray(0x600)
    image[0x202:0x206] = magic
    image[0x20E:0x210] = (0x400 - 0x200).to_bytes(2, "little")
    image[0x400 : 0x400 + len(version)] = version.encode()
    return bytes(image)


def test_complete_tree_is_accepted(tree: Path) -> None:
    found = kernel.open_tree(tree)

    assert found == kernel.KernelTree(tree, tree / "arch/x86/boot/bzImage", "6.12.0-own", modules=tree)


def test_symbols_are_found_if_they_are_there(tree: Path) -> None:
    (tree / "vmlinux").touch()

    assert kernel.open_tree(tree).vmlinux == tree / "vmlinux"


def test_folder_without_an_image_is_a_usage_error_that_names_it(tree: Path) -> None:
    (tree / "arch/x86/boot/bzImage").unlink()

    with pytest.raises(UsageError, match=r"no built amd64 kernel, its image arch/x86/boot/bzImage is missing"):
        kernel.open_tree(tree)


def test_missing_options_are_listed_whether_absent_or_modular(tree: Path) -> None:
    config = tree / "include/config/auto.conf"
    text = config.read_text().replace("CONFIG_DEBUG_FS=y\n", "").replace("VIRTIO_CONSOLE=y", "VIRTIO_CONSOLE=m")
    config.write_text(text.replace("CONFIG_VFIO_PCI=y\n", ""))

    words = "does not have CONFIG_DEBUG_FS built in, CONFIG_VIRTIO_CONSOLE built in, CONFIG_VFIO_PCI;"
    with pytest.raises(EnvironmentProblem, match=words):
        kernel.open_tree(tree)


def test_what_only_the_tests_need_may_be_a_module(tree: Path) -> None:
    config = tree / "include/config/auto.conf"
    config.write_text(config.read_text().replace("CONFIG_VFIO_PCI=y", "CONFIG_VFIO_PCI=m"))

    assert kernel.open_tree(tree).tree == tree


def test_kernel_without_the_api_is_too_old_by_feature_and_not_by_version(tree: Path) -> None:
    (tree / "include/linux/iommu.h").write_text(HEADER.replace("release_domain", "something"))

    with pytest.raises(EnvironmentProblem, match="too old for the driver, its iommu_ops lacks release_domain"):
        kernel.open_tree(tree)


def test_separate_source_folder_is_followed(tree: Path) -> None:
    source = tree / "elsewhere"
    (tree / "include/linux").rename(tree / "moved")
    (source / "include").mkdir(parents=True)
    (tree / "moved").rename(source / "include/linux")
    (tree / "source").symlink_to(source)

    assert kernel.open_tree(tree).release == "6.12.0-own"


def test_image_within_a_tree_leads_to_the_tree(tree: Path) -> None:
    image = tree / "arch/x86/boot/bzImage"
    image.write_bytes(bzimage())

    assert kernel.open_kernel(image) == kernel.open_kernel(tree) == kernel.open_tree(tree)


def installed_folder(tree: Path, folder: Path) -> Path:
    """``tree`` as an installed kernel's ``build``; gives the folder that holds the releases."""
    (folder / "6.12.0-own").mkdir(parents=True)
    (folder / "6.12.0-own/build").symlink_to(tree)
    return folder


def test_image_that_stands_alone_leads_to_the_tree_of_its_release(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("boot")
    installed = installed_folder(tree, elsewhere / "modules")
    image = elsewhere / "vmlinuz"
    image.write_bytes(bzimage())

    found = kernel.open_kernel(image, installed)

    assert found == kernel.KernelTree(tree, image, "6.12.0-own", modules=installed / "6.12.0-own")


def test_image_without_a_tree_is_told_where_one_was_looked_for(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage())

    with pytest.raises(UsageError, match=r"Linux 6\.12\.0-own, but .*/6\.12\.0-own/build, .* is missing"):
        kernel.open_kernel(image, tmp_path / "modules")


def test_tree_of_another_release_is_refused(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("boot")
    installed = installed_folder(tree, elsewhere / "modules")
    (tree / "include/config/kernel.release").write_text("6.12.1\n")
    image = elsewhere / "vmlinuz"
    image.write_bytes(bzimage())

    with pytest.raises(UsageError, match=r"Linux 6\.12\.0-own, but .* is of 6\.12\.1"):
        kernel.open_kernel(image, installed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"short", "no bzImage"),
        (bzimage(magic=b"ELF "), "no bzImage"),
        (bzimage(version="no release"), "names no release"),
        (bzimage(version="../../etc"), "names no release"),
    ],
)
def test_file_that_is_no_image_is_a_usage_error(tmp_path: Path, content: bytes, words: str) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(content)

    with pytest.raises(UsageError, match=words):
        kernel.open_kernel(image)


def test_path_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder, and no kernel of the lab has that name"):
        kernel.open_kernel(tmp_path / "lab-debgu")


def test_headers_beside_an_installed_tree_are_found(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (tree / "include/linux").rename(folder / "linux")
    (folder / "source/include").mkdir(parents=True)
    (folder / "linux").rename(folder / "source/include/linux")
    (folder / "build").symlink_to(tree)

    assert kernel.open_tree(folder / "build").release == "6.12.0-own"
