"""The image that holds itself and its kernel, unpacked as Linux does: any number of archives, one behind the other."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from pviommu.lab.cpio import Archive
from pviommu.lab.guest_settings import CONFIG_PATH, GuestSettings
from pviommu.lab.second_boot import INITRD_PATH, KERNEL_PATH, with_second_boot


def contents(archive: bytes) -> dict[str, bytes]:
    """Regular files of an unpacked newc archive."""
    found = {}
    while archive:
        assert archive[:6] == b"070701"
        fields = [int(archive[at : at + 8], 16) for at in range(6, 110, 8)]
        size, name_size = fields[6], fields[11]
        begin = 110 + name_size + -(110 + name_size) % 4
        name = archive[110 : 110 + name_size - 1].decode()
        if fields[1] & 0o170000 == 0o100000:
            found[f"/{name}"] = archive[begin : begin + size]
        archive = archive[begin + size + -size % 4 :]
    return found


def test_image_goes_on_with_an_archive_of_kernel_and_image(tmp_path: Path) -> None:
    first = Archive()
    first.file("/init", b"#!/bin/sh\n", 0o755)
    image = first.pack()
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"MZ kernel")

    whole = with_second_boot(image, kernel, GuestSettings(long=True))

    stream = zlib.decompressobj(wbits=31)
    assert stream.decompress(whole) == gzip.decompress(image)
    padding = -len(image) % 4
    assert stream.unused_data[:padding] == bytes(padding)
    files = contents(stream.unused_data[padding:])
    assert (files[KERNEL_PATH], files[INITRD_PATH]) == (b"MZ kernel", image)
    # only the first kernel is told of files that only it has
    added = [f"boot_kernel={KERNEL_PATH}", f"boot_initrd={INITRD_PATH}"]
    assert files[CONFIG_PATH].decode().splitlines() == [
        *GuestSettings(long=True).config().decode().splitlines(),
        *added,
    ]


def test_second_archive_begins_where_linux_looks_for_it(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()

    for length in range(100, 104):  # a header begins at a multiple of four bytes of the whole
        whole = with_second_boot(bytes(length), tmp_path / "vmlinuz", GuestSettings())
        assert whole.index(b"070701") % 4 == 0
