"""The user's own kernel is checked before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu.lab import kernel
from pviommu.lab.problems import EnvironmentProblem, UsageError

HEADER = "struct iommu_ops { x (*domain_alloc_paging)(y); z *release_domain; z *blocked_domain; };\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A build tree that has all that is looked for."""
    for name, text in {
        "arch/x86/boot/bzImage": "image",
        "include/config/kernel.release": "6.12.0-own\n",
        "include/config/auto.conf": "".join(f"CONFIG_{option}=y\n" for option in kernel.BUILT_IN),
        "include/linux/iommu.h": HEADER,
        "Module.symvers": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_complete_tree_is_accepted(tree: Path) -> None:
    found = kernel.open_tree(tree)

    assert found == kernel.KernelTree(tree, tree / "arch/x86/boot/bzImage", "6.12.0-own")


def test_folder_without_an_image_is_a_usage_error_that_names_it(tree: Path) -> None:
    (tree / "arch/x86/boot/bzImage").unlink()

    with pytest.raises(UsageError, match=r"no built x86 kernel, its image arch/x86/boot/bzImage is missing"):
        kernel.open_tree(tree)


def test_missing_options_are_listed_whether_absent_or_modular(tree: Path) -> None:
    config = tree / "include/config/auto.conf"
    text = config.read_text().replace("CONFIG_DEBUG_FS=y\n", "").replace("VIRTIO_CONSOLE=y", "VIRTIO_CONSOLE=m")
    config.write_text(text)

    with pytest.raises(EnvironmentProblem, match=r"does not have CONFIG_DEBUG_FS, CONFIG_VIRTIO_CONSOLE built in"):
        kernel.open_tree(tree)


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
