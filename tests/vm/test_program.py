"""The user's own program in a real guest: its files, its libraries, every byte of its output, its status."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pviommu import resources
from pviommu.bench.players import FILE, answers, build_player
from pviommu.bench.players import SCRIPT as SCRIPT_OF_HISTORIES

from ..device.vfio_run.test_running import cache
from ..histories.differences import compare, known
from ..histories.generator import KINDS, histories
from ..histories.players import on_the_model
from .conftest import PLAIN

if TYPE_CHECKING:
    from conftest import Command, LabRun

__all__ = ["cache"]

LIMIT = 180
STATUS = 7
SIZE = 8 << 20
DATA = hashlib.shake_256(b"pviommu").digest(SIZE)
# ls is dynamic on any host that the tests run on; busybox of the guest is not
SCRIPT = f"""#!/bin/sh
[ -n "$LAB_ENGINES" ] && [ -e "/sys/bus/pci/devices/$LAB_IOMMU/driver" ] || exit 1
[ "$(readlink /proc/self/cwd)" = /lab/add ] || exit 2
for engine in $LAB_ENGINES; do
    [ -e "/sys/bus/pci/devices/$engine/iommu_group" ] || exit 3
done
./ls data >&2 || exit 4
cat data
./{SCRIPT_OF_HISTORIES} || exit 5
exit {STATUS}
"""
LINES = histories(seed=5, count=4 * len(KINDS), steps=60)


@pytest.fixture(scope="module")
def program_run(command: Command, artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> LabRun:
    """A run of SCRIPT, with a dynamic program of this host and with more data than any buffer on the way holds; behind
    that it writes what the kernel answers to some random histories, so that these need no machine of their own.
    """
    folder = tmp_path_factory.mktemp("program")
    (folder / "data").write_bytes(DATA)
    script = folder / "go.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (folder / FILE).write_text("".join(f"{line}\n" for line in LINES))
    player = str(resources.guest_tools() / "programs" / SCRIPT_OF_HISTORIES)
    options = ("--add", str(folder / "data"), "/bin/ls", str(folder / FILE), player, "--run", str(script))
    return command.run_binary(artefacts / "program", LIMIT, *PLAIN, *options)


def test_status_of_the_program_is_the_verdict(program_run: LabRun) -> None:
    assert program_run.status == 1, program_run.output[-2000:]
    results = program_run.results
    assert results["verdict"] == "failed"
    assert (results["program"]["name"], results["program"]["status"]) == ("go.sh", STATUS)
    assert f"go.sh ended with status {STATUS}" in results["problems"]


def test_every_byte_is_in_the_file_and_on_standard_output(program_run: LabRun) -> None:
    want = (program_run.folder / "program.out").read_bytes()
    assert want.startswith(b"data\n" + DATA)
    assert program_run.results["program"]["output"] == {"file": "program.out", "bytes": len(want)}
    # the report comes over a port of its own, so a line of it may come between
    said = program_run.output.encode("latin-1").replace(b"ok   the drivers are bound\n", b"")
    assert want in said


@pytest.mark.row("space", 66)
@pytest.mark.usefixtures("cache")
def test_the_kernel_answers_random_histories_as_the_model_does(program_run: LabRun, tmp_path: Path) -> None:
    """Errors, lengths, ids, what is written back and what DMA does; but for what the documentation says."""
    said = (program_run.folder / "program.out").read_bytes()[len(b"data\n" + DATA) :].decode()
    kernel = answers(said, LINES)
    model = on_the_model(LINES, build_player(tmp_path))

    unknown = [difference for difference in compare(LINES, model, kernel) if known(difference) is None]
    assert not unknown, "\n".join(map(str, unknown))
    refused = sum(answer.startswith("E") for answer in kernel)
    assert len(LINES) / 10 < refused < len(LINES) / 2


def test_driver_is_bound_before_the_program_and_nothing_else_is_run(program_run: LabRun) -> None:
    assert program_run.passed == {"the drivers are bound", "the whole output of go.sh arrives"}


def test_program_that_reads_without_end_is_ended_by_the_time_limit(
    command: Command, artefacts: Path, tmp_path: Path
) -> None:
    script = tmp_path / "endless.sh"
    script.write_text("#!/bin/sh\necho began\nexec sleep 1000\n")
    script.chmod(0o755)
    run = command.run(artefacts / "endless", 60, *PLAIN, "--run", str(script))

    assert run.status == 124, run.output
    assert run.results["program"]["status"] is None
    assert (run.folder / "program.out").read_text() == "began\n"


def test_wrong_file_is_one_line_and_boots_nothing(command: Command, artefacts: Path) -> None:
    done = subprocess.run(
        [*command.words, "lab", "run", "--results", str(artefacts / "wrong"), "--add", "/no/such"],
        cwd=command.folder,
        env=command.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "pviommu lab: --add /no/such: no such file or directory\n")
    assert not (artefacts / "wrong").exists()
