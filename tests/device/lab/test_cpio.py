"""The archive, read back by a reader that knows nothing of the writer."""

from __future__ import annotations

import gzip
import stat
from dataclasses import dataclass

import pytest

from pviommu.lab.cpio import Archive


@dataclass
class Entry:
    name: str
    mode: int
    data: bytes
    device: tuple[int, int]


def read(packed: bytes) -> list[Entry]:
    """Unpack a gzipped newc archive; every rule of the format that is broken raises."""
    raw, at, entries = gzip.decompress(packed), 0, []
    while True:
        assert raw[at : at + 6] == b"070701"
        words = [int(raw[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + words[11]
        assert raw[name_end - 1] == 0
        name = raw[at + 110 : name_end - 1].decode()
        start = (name_end + 3) // 4 * 4
        end = start + words[6]
        if name == "TRAILER!!!":
            assert end == len(raw)
            return entries
        entries.append(Entry(name, words[1], raw[start:end], (words[9], words[10])))
        at = (end + 3) // 4 * 4


def test_entries_come_back_with_content_mode_and_kind() -> None:
    archive = Archive()
    archive.file("/init", b"#!/bin/sh\n", 0o755)
    archive.file("/lab/odd", b"12345")
    archive.link("/bin/sh", "/bin/busybox")
    archive.character_device("/dev/console", 5, 1)
    entries = {entry.name: entry for entry in read(archive.pack())}
    assert entries["init"].data == b"#!/bin/sh\n"
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert entries["lab/odd"].data == b"12345"
    assert entries["bin/sh"].data == b"/bin/busybox"
    assert stat.S_ISLNK(entries["bin/sh"].mode)
    assert entries["dev/console"].device == (5, 1)
    assert stat.S_ISCHR(entries["dev/console"].mode)


def test_parents_are_added_once_and_before_their_children() -> None:
    archive = Archive()
    archive.file("/lib/modules/6/a.ko", b"a")
    archive.file("/lib/modules/6/b.ko", b"b")
    names = [entry.name for entry in read(archive.pack())]
    assert names == ["lib", "lib/modules", "lib/modules/6", "lib/modules/6/a.ko", "lib/modules/6/b.ko"]


def test_later_file_replaces_the_earlier_of_its_path() -> None:
    archive = Archive()
    archive.file("/init", b"old")
    archive.file("/init", b"new")
    assert [entry.data for entry in read(archive.pack())] == [b"new"]


def test_same_entries_give_the_same_bytes() -> None:
    first, second = Archive(), Archive()
    for archive in (first, second):
        archive.file("/a", b"x")
    assert first.pack() == second.pack()


@pytest.mark.parametrize("path", ["init", "/../etc", "/a//b", "/", "/a/."])
def test_path_that_is_not_plain_and_absolute_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        Archive().file(path, b"")
