"""The examples of docs/libvfio-user.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvfio_user import Device, Region, gpio
from libvfio_user.gpio import Card
from vfio_user import IrqAction, IrqIndex, IrqKind

from .conftest import Beside

Attach = Callable[[Device], Beside]


@pytest.fixture
def it(library_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: Attach) -> Iterator[Beside]:
    monkeypatch.setenv("LIBVFIO_USER", str(library_path))
    with Card(str(tmp_path / "gpio.sock")) as card:
        made = beside(card)
        yield made
        made.close()


def put(it: Beside, bar: Region, offset: int, value: int) -> None:
    it.during(lambda: it.client.region_write(bar, offset, value.to_bytes(4, "little")))


def get(it: Beside, bar: Region, offset: int) -> int:
    return int.from_bytes(it.during(lambda: it.client.region_read(bar, offset, 4)), "little")


def test_it_is_short() -> None:
    assert len(Path(gpio.__file__).read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("library", "place", "words"),
    [
        ("/no/such.so", "card.sock", "gpio: libvfio-user /no/such.so: LIBVFIO_USER names no file\n"),
        ("", "no/card.sock", "No such file or directory"),
        ("", "x" * 200, "bytes, not 1 to 107"),
    ],
    ids=["no library", "no folder", "a long path"],
)
def test_what_it_cannot_begin_with_is_one_line_and_status_3(
    library_path: Path, tmp_path: Path, library: str, place: str, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "libvfio_user.gpio", str(tmp_path / place)],
        env={**os.environ, "LIBVFIO_USER": library or str(library_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert words in done.stderr


def test_outputs_are_inputs(it: Beside) -> None:
    put(it, Region.BAR2, 0, 0xA5A5_A5A5)
    assert get(it, Region.BAR2, 0) == 0xA5A5
    it.during(it.client.reset)
    assert get(it, Region.BAR2, 0) == 0


@pytest.mark.parametrize(
    ("control", "lines", "signals", "status"),
    [(0x41, 1, 1, 0x45), (0x48, 2, 1, 0x68), (0x01, 1, 0, 0x05), (0x41, 2, 0, 0x41), (0x49, 3, 1, 0x6D)],
    ids=["line 1", "line 2", "not allowed to interrupt", "not this line", "both"],
)
def test_a_rising_input_interrupts(it: Beside, control: int, lines: int, signals: int, status: int) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    it.during(lambda: it.client.set_irqs(IrqIndex.INTX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=[event]))
    put(it, Region.BAR1, 0x4C, control)
    put(it, Region.BAR2, 0, lines)
    put(it, Region.BAR2, 0, lines)
    assert get(it, Region.BAR1, 0x4C) == status
    put(it, Region.BAR2, 0x40, 0)
    assert get(it, Region.BAR1, 0x4C) == control
    if signals:
        assert os.eventfd_read(event) == signals
    else:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
    os.close(event)


def test_the_smallest_device_of_the_page_answers(
    checkout: Path, library_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: Attach
) -> None:
    monkeypatch.setenv("LIBVFIO_USER", str(library_path))
    page = (checkout / "docs/libvfio-user.md").read_text()
    _, _, rest = page.partition("The smallest device of all:\n")
    lines = [line[4:] for line in rest.partition("\n## ")[0].splitlines()]
    text = "\n".join(lines).replace("/tmp/answer.sock", str(tmp_path / "answer.sock")).replace("serve()", "ask()")
    answers = []

    def ask(device: Device) -> None:
        it = beside(device)
        answers.append(get(it, Region.BAR0, 8))
        it.close()

    monkeypatch.setattr(Device, "ask", ask, raising=False)
    exec(compile(text, "docs/libvfio-user.md", "exec"), {})
    assert answers == [0x2A2A2A2A]
