"""A lab whose QEMU and server are small programs, for everything that is decided around them."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import jsonschema
import pytest

from libvfio_user import Generation, Library
from pviommu import schemas
from pviommu.lab import boot, run
from pviommu.lab.console import STANDARD, Terminal
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox

RESULTS = json.loads(schemas.paths()["results"].read_text())
SERVER = """
import json, os, signal, socket, sys, time
def sleep_for_ever():
    while True:
        time.sleep(0.05)  # not for longer: a signal that comes just before a pause would not end it
if "--print-capabilities" in sys.argv:
    print(json.dumps({"driver_capabilities": ["rings 4", "x 1"], "functions": [{"socket": "iommu.sock"}]}))
    sys.exit(0)
folder = sys.argv[sys.argv.index("--socket-dir") + 1]
kept = socket.socket(socket.AF_UNIX)
kept.bind(os.path.join(folder, "iommu.sock"))
def end(number, frame):
    counts = {"ops": {"map_pages": 5}, "pages_mapped": 7, "dma_bytes": 9, "faults": 0}
    print(json.dumps({"event": "summary"} | counts), file=sys.stderr)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[sys.argv.index("--pidfile") + 1], "w").write("1")
sleep_for_ever()
"""
QEMU = """#!/bin/bash
[[ $3 = -netdev ]] && echo user && exit
for word in "$@"; do
    case $word in
        socket,id=lab,fd=*) fd=${{word##*=}};;
        socket,id=output,fd=*) output=${{word##*=}};;
        socket,id=console,path=*) console=${{word#*path=}}; console=${{console%%,*}};;
        */initrd) initrd=$word;;
        file,id=console,path=*) echo booted >"${{word##*path=}}";;
    esac
done
exec 3>&"$fd"
{body}
"""
PASSING = r"printf 'KTAP version 1\n1..1\nok 1 bind\n# lab: exit 0\n' >&3"


@dataclass
class Lab:
    """A lab whose guest is a shell script; ``main`` gives the exit status."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    server: str = SERVER
    guest: str = PASSING
    terminal: Terminal = STANDARD
    kernels: list[str] = field(default_factory=list)
    """kernels that were asked for"""

    def programs(self) -> tuple[str, ...]:
        """Write server and QEMU as they are now; the command of the server."""
        (self.folder / "server.py").write_text(self.server)
        qemu = self.folder / "qemu"
        qemu.write_text(QEMU.format(body=self.guest))
        qemu.chmod(0o755)
        return (sys.executable, str(self.folder / "server.py"))

    def main(self, *options: str, shown: TextIO | None = None) -> tuple[int, str]:
        program = self.programs()
        parser = argparse.ArgumentParser()
        run.add_arguments(parser)
        out = io.StringIO() if shown is None else shown
        args = parser.parse_args(
            ["--results", str(self.folder / "lab-results"), "--topology", str(self.folder / "lab.toml"), *options]
        )
        status = run.main(
            args,
            out=out,
            program=program,
            provide=self.provide,
            provide_library=self.provide_library,
            terminal=self.terminal,
        )
        for path in (self.folder / "lab-results").glob("*/results.json"):
            jsonschema.validate(json.loads(path.read_text()), RESULTS)
        return status, out.getvalue() if isinstance(out, io.StringIO) else ""

    def provide(self, progress: Progress, wanted: run.Wanted) -> run.Setup:
        self.kernels.append(wanted.kernel)
        tests = []
        if wanted.suite is not None:
            tests = [self.folder / "vfio_a_test"]
            tests[0].write_text("a program")
        busybox = self.folder / "busybox"
        busybox.write_text("#!/bin/sh\necho bin/sh\n")
        busybox.chmod(0o755)
        image = self.folder / "vmlinuz"
        image.write_bytes(b"a kernel")
        toolbox = Toolbox(self.folder, (str(self.folder / "qemu"),), {}, "11.1.3", image, "6.12", busybox)
        return run.Setup(replace(toolbox, architecture=wanted.architecture), [], "tcg", suite=tests)

    def provide_library(self, progress: Progress) -> Library:
        made = Library.__new__(Library)  # which loads nothing
        made.path, made.generation = str(self.folder / "vfio-user.so"), Generation.OF_2022
        return made

    def image_options(self, *options: str) -> dict[str, object]:
        """What the image of one guest was asked to hold, in a run with ``options``."""
        seen: dict[str, object] = {}
        real = boot.guest_image

        def spy(*args: object, **others: object) -> bytes:
            seen.update(others)
            return real(*args, **others)  # type: ignore[arg-type]

        with self.monkeypatch.context() as patch:
            patch.setattr(boot, "guest_image", spy)
            self.main(*options)
        return seen

    def image_files(self, *options: str) -> dict[str, bytes]:
        """The files of one run that its guest is given."""
        files = self.image_options(*options)["files"]
        assert isinstance(files, dict)
        return files

    def result(self, name: str) -> str:
        """A file of the newest run."""
        return (self.folder / "lab-results/latest" / name).read_text()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    (tmp_path / "lab.toml").touch()
    with tempfile.TemporaryDirectory(prefix="pviommu-") as runtime:  # a short path: sockets are in it
        (tmp_path / "runtime").symlink_to(runtime)
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setattr(boot, "_LONGEST_SOCKET_PATH", 2 * 4096)
        yield Lab(tmp_path, monkeypatch)
