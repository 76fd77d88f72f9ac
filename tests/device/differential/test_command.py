"""``pviommu differential``: its arguments, and a short run against QEMU."""

from __future__ import annotations

import io

import pytest

from pviommu.cli import main
from pviommu.differential.command import Run, shown
from pviommu.differential.known import DIFFERENCES, FIXES, Judgement
from pviommu.differential.stimuli import Stimulus, Store
from pviommu.lab.progress import Progress
from pviommu.lab.provision import STEPS, Qemu, arm_qemu
from smmuv3.registers import Vector

STIMULI = 300


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--stimuli", "0"], "--stimuli 0: must be at least 1"),
        (["--stimuli", "5", "--only", "5"], "--only 5: must be 0..4 for 5 stimuli"),
    ],
)
def test_bad_arguments_are_named(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["differential", *words]) == 2
    assert text in capsys.readouterr().err


def test_values_are_shown_in_hexadecimal() -> None:
    assert shown((Store(0x10, b"\1"), None, True, {Vector.GERROR}, 17)) == (
        "(Store(address=0x10, data=01), None, True, (GERROR), 0x11)"
    )


@pytest.fixture(scope="module")
def qemu() -> Qemu:
    """Debian's, which is fetched the first time."""
    return arm_qemu(Progress(io.StringIO(), 2 * STEPS))


@pytest.mark.row("smmu", 34)
def test_qemus_smmu_does_the_same_but_for_what_is_known(qemu: Qemu) -> None:
    run, unexplained = Run(qemu, 20), list[tuple[int, Stimulus, Judgement]]()

    def report(number: int, stimulus: Stimulus, judgement: Judgement) -> bool:
        unexplained.append((number, stimulus, judgement))
        return False

    run.check(range(STIMULI), report)

    assert unexplained == []
    assert run.tried.total() == STIMULI
    assert run.met.keys() <= {*FIXES, *DIFFERENCES}
    assert len(run.met) > 15
