"""Gives a guest its own kernel and image as files, so that it can start them again by kexec.

They come in a second archive behind the image (Linux unpacks any number of them, one after the other), because an
image cannot hold itself. The first root of the second kernel is the image without that archive.
"""

from __future__ import annotations

from pathlib import Path

from .cpio import Archive
from .guest_settings import CONFIG_PATH, GuestSettings

__all__ = ["INITRD_PATH", "KERNEL_PATH", "with_second_boot"]

KERNEL_PATH = "/lab/boot/kernel"
INITRD_PATH = "/lab/boot/initrd"


def with_second_boot(image: bytes, kernel: Path, settings: GuestSettings) -> bytes:
    """``image`` (a packed archive) with the files ``kernel`` and itself added, and with ``settings`` that name them.

    Raises OSError.
    """
    archive = Archive()
    archive.file(CONFIG_PATH, settings.config({"boot_kernel": KERNEL_PATH, "boot_initrd": INITRD_PATH}))
    archive.file(KERNEL_PATH, kernel.read_bytes())
    archive.file(INITRD_PATH, image)
    return image + bytes(-len(image) % 4) + archive.pack(compressed=False)
