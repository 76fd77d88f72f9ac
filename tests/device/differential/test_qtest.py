"""The protocol of QEMU's test accelerator, against a program that speaks it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pviommu.differential.qtest import Qtest, QtestError
from pviommu.lab.provision import Qemu

PROGRAM = """
import re, socket, sys
fd = int(re.search(r"fd=(\\d+)", " ".join(sys.argv))[1])
sock = socket.socket(fileno=fd)
words = {}
for line in sock.makefile("r"):
    name, *arguments = line.split()
    if name == "writel":
        words[arguments[0]] = int(arguments[1], 16)
        answer = "IRQ raise 3\\nOK"
    elif name in ("readl", "readq"):
        answer = f"OK {words.get(arguments[0], 0):#018x}"
    elif name == "end":
        sys.exit("it fell over")
    else:
        answer = f"FAIL Unknown command '{name}'"
    sock.sendall(answer.encode() + b"\\n")
"""


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    (tmp_path / "qemu.py").write_text(PROGRAM)
    return Qemu((sys.executable, str(tmp_path / "qemu.py")), {}, "0.0")


def test_what_is_written_is_read_and_interrupts_in_between_are_no_answers(qemu: Qemu) -> None:
    with Qtest(qemu, []) as bus:
        bus.write(0x1000, 4, 0x1234)

        assert bus.read((0x1000, 4), (0x2000, 8)) == [0x1234, 0]
        assert bus.ask("readl 0x1000", "writel 0x1000 0x1", "readl 0x1000")[::2] == [
            "0x0000000000001234",
            "0x0000000000000001",
        ]


def test_a_write_is_done_once_it_is_flushed(qemu: Qemu) -> None:
    with Qtest(qemu, []) as bus:
        bus.write(0x1000, 4, 7)
        bus.flush()
        bus.flush()

        assert bus.ask("readl 0x1000") == ["0x0000000000000007"]


def test_an_answer_that_is_none_is_told(qemu: Qemu) -> None:
    with Qtest(qemu, []) as bus, pytest.raises(QtestError, match="answers \"FAIL Unknown command 'nonsense'\""):
        bus.ask("nonsense")


def test_an_end_is_told_with_its_last_words(qemu: Qemu) -> None:
    with Qtest(qemu, []) as bus, pytest.raises(QtestError, match="QEMU has ended; it said: it fell over"):
        bus.ask("end")
