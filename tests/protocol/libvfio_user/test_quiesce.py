"""A device that is asked to leave guest memory alone, at once or later."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from libvfio_user import Device, Library, StateError, VfuError
from vfio_user import RemoteError

from .conftest import PAGE, Beside, Card

Attach = Callable[[Device], Beside]
GUEST, UNMAPPED = 0x10_0000, 0x20_0000


class Quiescing(Card):
    answer: bool | None = True

    def quiesce(self) -> bool:
        self.told.append("quiesce")
        if self.answer is None:
            raise OSError(errno.EPERM, "never")
        return self.answer


@pytest.fixture
def card(library: Library, tmp_path: Path):  # type: ignore[no-untyped-def]
    with Quiescing(tmp_path / "card.sock", library) as made:
        yield made.setup()
        made.answer = True


def test_at_once(card: Quiescing, beside: Attach, memory: int) -> None:
    it = beside(card)
    it.during(lambda: it.client.dma_map(0, PAGE, memory))
    assert card.told == ["quiesce"]
    assert card.read_memory(0, 1) == b"\0"


def test_later_the_request_waits_until_the_device_says_so(card: Quiescing, beside: Attach, memory: int) -> None:
    it = beside(card)
    it.during(lambda: it.client.dma_map(GUEST, PAGE, memory, PAGE))
    it.during(lambda: it.client.dma_map(UNMAPPED, PAGE))
    card.answer = False
    mapped = it.pool.submit(lambda: it.client.dma_map(0, PAGE, memory))
    select.select([card.poll_fd], [], [])
    for _ in range(2):
        with pytest.raises(VfuError) as caught:
            card.run()
        assert caught.value.errno == errno.EBUSY
    assert not mapped.done()
    with card.view(GUEST, 1) as view:  # until it says so, the device goes on as ever
        assert view[0] == 1
    with pytest.raises(StateError, match="the device is asked to quiesce: no messages now"):
        card.read_memory(UNMAPPED, 1)

    card.quiesced()
    mapped.result()
    assert card.read_memory(0, 1) == b"\0"
    with pytest.raises(StateError, match="not asked to quiesce"):
        card.quiesced()


def test_refused(card: Quiescing, beside: Attach, memory: int) -> None:
    it = beside(card)
    card.answer = None
    with pytest.raises(Exception, match="DMA_MAP") as caught:
        it.during(lambda: it.client.dma_map(0, PAGE, memory))
    assert getattr(caught.value, "errno", 0) == errno.EPERM
    card.answer = True


def test_serve_does_not_wait_for_what_it_cannot_see(card: Quiescing, beside: Attach, memory: int) -> None:
    it = beside(card)
    card.answer = False
    mapped = it.pool.submit(lambda: it.client.dma_map(0, PAGE, memory))
    with pytest.raises(StateError, match="quiesces later"):
        card.serve()
    card.quiesced()
    mapped.result()


def test_a_method_that_forgets_its_answer_is_logged_and_refuses(
    card: Quiescing, beside: Attach, memory: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it = beside(card)
    monkeypatch.setattr(card, "quiesce", lambda: None)
    with pytest.raises(RemoteError) as caught:
        it.during(lambda: it.client.dma_map(0, PAGE, memory))
    assert caught.value.errno == errno.EIO
    assert "card.sock: quiesce failed" in caplog.text
    assert "quiesce() gave None, not True or False" in caplog.text
