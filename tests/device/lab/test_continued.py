"""Interrupted downloads, from a server that gives ranges and from those that do not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pviommu.lab.continued import continue_download

CONTENT = bytes(range(256)) * 64


@dataclass
class Mirror:
    address: str = ""
    ranges: bool = True
    cut_after: int = len(CONTENT)
    """bytes of an answer after which the connection breaks"""
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *unused: object) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            made.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and made.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: made.cut_after])

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        made.address = f"http://127.0.0.1:{server.server_port}/a.deb"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    file = tmp_path / "a.deb"
    file.write_bytes(CONTENT[:5000])
    return file


@pytest.mark.row("server", 114)
def test_only_what_is_missing_is_fetched(mirror: Mirror, begun: Path) -> None:
    fractions: list[float] = []

    continue_download(mirror.address, begun, len(CONTENT), fractions.append)

    assert begun.read_bytes() == CONTENT
    assert mirror.asked == ["bytes=5000-"]
    assert fractions[-1] == 1.0


@pytest.mark.row("server", 114)
def test_what_came_before_another_interruption_is_kept(mirror: Mirror, begun: Path) -> None:
    mirror.cut_after = 1000
    continue_download(mirror.address, begun, len(CONTENT), lambda fraction: None)
    assert begun.read_bytes() == CONTENT[:6000]

    mirror.cut_after = len(CONTENT)
    continue_download(mirror.address, begun, len(CONTENT), lambda fraction: None)
    assert begun.read_bytes() == CONTENT
    assert mirror.asked == ["bytes=5000-", "bytes=6000-"]


@pytest.mark.parametrize("trouble", ["no ranges", "no http", "no connection"])
def test_where_it_cannot_go_on_the_file_stays_as_it_is(mirror: Mirror, begun: Path, trouble: str) -> None:
    mirror.ranges = False
    addresses = {"no ranges": mirror.address, "no http": "file:///a.deb", "no connection": "http://127.0.0.1:1/a.deb"}

    continue_download(addresses[trouble], begun, len(CONTENT), lambda fraction: None)

    assert begun.read_bytes() == CONTENT[:5000]


def test_a_file_that_is_complete_or_empty_asks_nobody(mirror: Mirror, begun: Path) -> None:
    for content in (CONTENT, CONTENT + b"more", b""):
        begun.write_bytes(content)
        continue_download(mirror.address, begun, len(CONTENT), lambda fraction: None)
        assert begun.read_bytes() == content
    assert mirror.asked == []
