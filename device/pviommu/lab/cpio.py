"""Writes cpio archives in the "newc" form that Linux unpacks as its first root.

The form is Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import stat

__all__ = ["Archive"]

_TRAILER = "TRAILER!!!"


class Archive:
    """An archive in the making. Paths are absolute; missing parent folders are added automatically."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder; one that is there already stays as it is."""
        if path not in self._entries:
            self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file; a later one of the same path replaces it."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def pack(self, *, compressed: bool = True) -> bytes:
        """The archive, gzipped unless ``compressed`` is False. The same entries give the same bytes."""
        parts = [
            _entry(number, path.lstrip("/"), mode, content, device)
            for number, (path, (mode, content, device)) in enumerate(self._entries.items(), start=1)
        ]
        parts.append(_entry(0, _TRAILER, 0, b"", (0, 0)))
        whole = b"".join(parts)
        return gzip.compress(whole, compresslevel=1, mtime=0) if compressed else whole

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if not path.startswith("/") or any(part in ("", ".", "..") for part in path[1:].split("/")):
            raise ValueError(f"{path!r}: a path in the image is absolute and has no empty, . or .. parts")
        parent = path.rpartition("/")[0]
        if parent:
            self.folder(parent)
        self._entries[path] = (mode, content, device)


def _entry(number: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(raw_name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + raw_name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
