"""Build results that are kept, in a folder named by a digest of what went into them.

A result is made under another name and renamed when it is complete. So a killed run leaves no half result, and if two
runs make the same one at a time, that of the first stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["copy_sources", "keep", "source_files", "sources_digest"]

_GENERATED = (".o", ".ko", ".mod", ".mod.c", ".cmd", "Module.symvers", "modules.order")


def source_files(folder: Path) -> list[Path]:
    """Every file below ``folder`` that a build starts from, sorted; build products beside them are left out."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(_GENERATED))


def sources_digest(sources: Path, identity: str) -> str:
    """A digest of every source file (names and contents) and of what they are built for or with."""
    digest = hashlib.sha256(identity.encode())
    for path in source_files(sources):
        name, content = str(path.relative_to(sources)).encode(), path.read_bytes()
        digest.update(b"%d:%b%d:%b" % (len(name), name, len(content), content))
    return digest.hexdigest()[:16]


def copy_sources(sources: Path, target: Path) -> None:
    """Copy the contents, not the modes, of ``sources`` to ``target``, so that a build leaves nothing beside them."""
    for path in source_files(sources):
        copy = target / path.relative_to(sources)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def keep(products: Iterable[Path], kept: Path, *, mode: int = 0o644) -> None:
    """Put copies of ``products`` into the new folder ``kept``, all or nothing."""
    new = Path(tempfile.mkdtemp(prefix="building-", dir=kept.parent))
    try:
        for product in products:
            shutil.copyfile(product, new / product.name)
            (new / product.name).chmod(mode)
        with contextlib.suppress(OSError):  # another run was first; both have built the same sources
            new.rename(kept)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # if it was renamed, there is nothing to remove
