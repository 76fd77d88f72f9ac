"""What is behind each kind of BAR, and where the guest finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pviommu.pci.bars import Bar, Bars, MsixBar, RegisterBar, SharedBar
from pviommu.pci.config_space import ConfigSpace, Identity
from pviommu.pci.hooks import Attempts
from pviommu.pci.registers import RegisterFile
from pviommu.pci.shared_memory import SharedMemory
from wire_layout.registers import AccessKind, Register

SIZE = 0x1000
REGISTERS = (Register("SCRATCH", 0x00, AccessKind.RW, "keeps what is written", reset=0x5A),)


class Failed(Attempts):
    """Those of a function that has failed: nothing is called."""

    failed = True

    def make(self, what: str, hook: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        return None

    def begin(self, what: str, hook: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        return None


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    shared = SharedMemory("shared", SIZE)
    yield shared
    shared.close()


def bars_of(attempts: Attempts, memory: SharedMemory) -> list[Bar]:
    file = RegisterFile(REGISTERS, object())
    return [RegisterBar(file, SIZE, attempts), SharedBar(memory, bytes, attempts), MsixBar(SIZE, attempts)]


def test_only_registers_and_shared_memory_keep_what_is_written(memory: SharedMemory) -> None:
    bars = bars_of(Attempts(), memory)

    for bar in bars:
        assert bar.write(0, b"abcd") is None

    assert [bar.read(0, 4) for bar in bars] == [b"abcd", b"abcd", bytes(4)]


def test_bars_of_a_function_that_has_failed_read_all_ones_and_keep_nothing(memory: SharedMemory) -> None:
    bars = bars_of(Failed(), memory)

    for bar in bars:
        assert bar.write(0, b"abcd") is None

    assert [bar.read(0, 4) for bar in bars] == [b"\xff" * 4] * 3
    assert bytes(memory.view[:4]) == bytes(4)


def test_each_change_of_where_bars_are_is_told_once(memory: SharedMemory) -> None:
    config = ConfigSpace(Identity(1, 2, 3))
    config.add_bar(0, SIZE, wide=True, prefetchable=True)
    bars = Bars("lamp", config)
    bars[0] = SharedBar(memory, bytes, Attempts())
    seen: list[list[tuple[int, int, bool]]] = []
    bars.on_change = lambda: seen.append([window[:3] for window in bars.windows()])

    for offset, value in ((0x10, 0xE0000000), (0x04, 0x2), (0x04, 0x6), (0x04, 0x0)):
        config.write(offset, value.to_bytes(4, "little"))
        bars.decode()

    assert seen == [[(0xE0000000, SIZE, True)], []]


def test_memory_that_cannot_be_renewed_stays_stale_until_it_can(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bars = Bars("lamp", ConfigSpace(Identity(1, 2, 3)))
    bar = bars[2] = SharedBar(memory, bytes, Attempts())
    old = bar.region.fd
    memory.view[:4] = b"left"
    bars.stale.update(bars.shared)

    def refuse() -> None:
        raise OSError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "renew", refuse)
        bars.renew()
    assert (bars.stale, bar.region.fd, bar.read(0, 4)) == ({2}, old, b"left")
    assert "lamp: no new shared memory for BAR 2 yet: none left" in caplog.text

    bars.renew()
    assert (bars.stale, bar.read(0, 4)) == (set(), bytes(4))
    assert bar.region.fd == memory.fd != old
