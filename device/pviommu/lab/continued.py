"""Continues a download where it was interrupted. `apt-get download` does not do so: it begins such a file again."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

__all__ = ["continue_download", "sha256_of"]

_CHUNK = 1 << 20
_PATIENCE_S = 30.0
_PARTIAL_CONTENT = 206


def sha256_of(file: Path) -> str:
    """The digest of a file's content, as hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def continue_download(address: str, file: Path, size: int, progress: Callable[[float], None]) -> None:
    """Fetch what ``file`` lacks of its ``size`` bytes; ``progress`` gets fractions from 0 to 1.

    Where that is not possible (no HTTP, a server without ranges, no connection) the file stays as it is. The caller
    checks whether it is right in the end. Raises OSError if the file cannot be written.
    """
    have = file.stat().st_size
    if not address.startswith(("http://", "https://")) or not 0 < have < size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            if answer.status == _PARTIAL_CONTENT:
                _append(answer, file, size, progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError):
        return


def _append(answer: http.client.HTTPResponse, file: Path, size: int, progress: Callable[[float], None]) -> None:
    with file.open("ab") as target:
        while data := answer.read(min(_CHUNK, size - target.tell())):
            target.write(data)
            progress(target.tell() / size)
