"""A device on the bindings, driven by a client over its socket: accesses, refusals, interrupts, lifetimes, its end."""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libvfio_user import CapabilityFlag, Irq, Library, PciType, Region, RegionFlag, Reset, StateError, VfuError
from vfio_user import IrqAction, IrqIndex, IrqKind, RegionFlags, RemoteError, SessionLimits
from vfio_user.client import Client

from .conftest import PAGE, Beside, Card

Attach = Callable[..., Beside]


def test_accesses_reach_the_methods(card: Card, beside: Attach) -> None:
    it = beside(card.setup())

    assert it.during(lambda: it.client.region_read(Region.BAR2, 3, 4)) == bytes([3, 4, 5, 6])
    it.during(lambda: it.client.region_write(Region.BAR2, 0x10, b"\xaa\xbb"))
    assert card.memory[0x0F:0x13] == b"\x0f\xaa\xbb\x12"


def test_a_large_write_arrives_in_the_pieces_that_the_client_is_limited_to(
    library: Library, tmp_path: Path, beside: Attach
) -> None:
    with Card(tmp_path / "large.sock", library) as card:
        card.memory = bytearray(1 << 20)
        card.pci(0x494F, 0x0DC8)
        card.region(Region.BAR0, 1 << 20)
        card.realize()
        it = beside(card, SessionLimits(max_data_xfer_size=32 << 10))
        data = os.urandom(1 << 20)
        it.during(lambda: it.client.region_write(Region.BAR0, 0, data))
        assert card.memory == data
        assert it.during(lambda: it.client.region_read(Region.BAR0, 0, 1 << 20)) == data
        it.leave()


def test_ids_and_class_are_in_the_configuration_space(card: Card, beside: Attach) -> None:
    it = beside(card.setup())

    assert it.during(lambda: it.client.config_read(0, 4)) == 0x0DC8494F
    assert it.during(lambda: it.client.config_read(9, 3)) == 0x118000
    assert card.read_config(0, 2) == b"\x4f\x49"


def test_configuration_space_can_be_changed_by_the_device(card: Card, beside: Attach) -> None:
    it = beside(card.setup())
    card.write_config(0x2C, b"\x34\x12")

    assert it.during(lambda: it.client.config_read(0x2C, 2)) == 0x1234


def test_an_oserror_reaches_the_client_with_its_errno(
    card: Card, beside: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    it = beside(card.setup())
    card.read = lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "not today"))  # type: ignore[method-assign]

    with caplog.at_level(logging.WARNING), pytest.raises(RemoteError) as caught:
        it.during(lambda: it.client.region_read(Region.BAR2, 0, 4))
    assert caught.value.errno == errno.EPERM
    assert caplog.records[0].getMessage() == "card.sock: read refused: [Errno 1] not today"


def test_any_other_exception_is_eio_and_logged_with_its_traceback(
    card: Card, beside: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    it = beside(card.setup())
    card.memory = None  # type: ignore[assignment]

    with pytest.raises(RemoteError) as caught:
        it.during(lambda: it.client.region_write(Region.BAR2, 0, b"1234"))
    assert caught.value.errno == errno.EIO
    assert "card.sock: write failed" in caplog.text
    assert "TypeError" in caplog.text


def test_a_read_of_the_wrong_length_is_refused(card: Card, beside: Attach, caplog: pytest.LogCaptureFixture) -> None:
    it = beside(card.setup())
    card.memory = bytearray(2)

    with pytest.raises(RemoteError):
        it.during(lambda: it.client.region_read(Region.BAR2, 0, 4))
    assert "BAR2 gave 2 bytes at 0x0, 4 were asked for" in caplog.text


def test_ctrl_c_in_a_callback_is_raised_when_c_is_done(card: Card, beside: Attach) -> None:
    it = beside(card.setup())

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    card.read = interrupted  # type: ignore[method-assign]
    asked = it.pool.submit(lambda: it.client.region_read(Region.BAR2, 0, 1))
    select.select([card.poll_fd], [], [])
    with pytest.raises(KeyboardInterrupt):
        card.run()
    with pytest.raises(RemoteError):
        asked.result()


def test_a_reset_that_fails_is_a_failure_for_the_client(card: Card, beside: Attach) -> None:
    it = beside(card.setup())
    it.during(it.client.reset)
    assert card.told == [Reset.DEVICE]

    def refuse(kind: Reset) -> None:
        raise OSError(errno.EBUSY, "later")

    card.reset = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(RemoteError) as caught:
        it.during(it.client.reset)
    assert caught.value.errno == errno.EBUSY


def test_interrupts_are_signalled_once_the_client_has_asked(card: Card, beside: Attach) -> None:
    it = beside(card.setup())
    with pytest.raises(VfuError, match=r"^card\.sock: vfu_irq_trigger\(0\): No such file or directory$") as caught:
        card.trigger(0)
    assert caught.value.errno == errno.ENOENT

    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    it.during(
        lambda: it.client.set_irqs(IrqIndex.INTX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=[event]),
    )
    card.trigger(0)
    assert os.eventfd_read(event) == 1
    os.close(event)


def test_masks_are_told(library: Library, tmp_path: Path, beside: Attach) -> None:
    class Masked(Card):
        def interrupts_masked(self, irq: Irq, start: int, count: int, masked: bool) -> None:
            self.told.append((irq, start, count, masked))

    with Masked(tmp_path / "masked.sock", library) as card:
        it = beside(card.setup())
        for action in (IrqAction.MASK, IrqAction.UNMASK):
            it.during(lambda action=action: it.client.set_irqs(IrqIndex.INTX, action, IrqKind.NONE, 0, 1))  # type: ignore[misc]
        assert card.told == [(Irq.INTX, 0, 1, True), (Irq.INTX, 0, 1, False)]
        it.close()


def test_capabilities_are_found_where_they_were_put(card: Card, beside: Attach) -> None:
    card.pci(1, 2, kind=PciType.EXPRESS)
    msix = bytes([0x11, 0, 3, 0, 2, 0, 0, 0, 2, 8, 0, 0])
    first = card.capability(msix)
    second = card.capability(bytes([9, 0, 5, 0xAB, 0xCD]), flags=CapabilityFlag.READONLY)
    serial = card.capability(bytes([3, 0, 1, 0, *range(8)]), flags=CapabilityFlag.EXTENDED)
    card.realize()

    assert (first, second, serial) == (0x40, 0x4C, 0x100)
    assert card.find_capability(0x11) == first
    assert card.find_capability(9, after=first) == second
    assert card.find_capability(0x11, after=first) is None
    assert card.find_capability(3, extended=True) == serial
    it = beside(card)
    assert it.during(lambda: it.client.region_read(Region.CFG, second, 5)) == bytes([9, 0, 5, 0xAB, 0xCD])
    assert it.during(lambda: it.client.config_read(serial + 4, 4)) == 0x03020100


def test_a_capability_that_the_library_does_not_know_is_its_refusal(card: Card) -> None:
    card.pci(1, 2)
    with pytest.raises(VfuError, match="vfu_pci_add_capability") as caught:
        card.capability(bytes([0x0D, 0, 0, 0]))
    assert caught.value.errno == errno.ENOTSUP


def test_a_client_maps_a_region_though_its_file_is_closed_by_the_device(
    card: Card, beside: Attach, memory: int
) -> None:
    card.pci(1, 2)
    copy = os.dup(memory)
    card.region(Region.BAR0, 4 * PAGE, file=copy, areas=[(PAGE, PAGE)])
    os.close(copy)
    card.realize()
    it = beside(card)

    info = it.during(lambda: it.client.region_info(Region.BAR0))
    info.close()
    assert (info.flags & RegionFlags.MMAP, info.areas) == (RegionFlags.MMAP, ((PAGE, PAGE),))
    (area,) = it.during(lambda: it.client.map_region(Region.BAR0))
    assert area.memory[:2] == b"\1\1"
    area.memory[0] = 7
    assert os.pread(memory, 1, PAGE) == b"\7"
    area.memory.close()


def test_the_next_client_gets_the_new_file(card: Card, beside: Attach, memory: int) -> None:
    card.pci(1, 2)
    card.region(Region.BAR0, PAGE, file=memory)
    card.realize()
    it = beside(card)
    it.leave()
    card.region(Region.BAR0, PAGE, file=memory, offset=2 * PAGE)
    it = beside(card)

    (area,) = it.during(lambda: it.client.map_region(Region.BAR0))
    assert area.memory[0] == 2
    area.memory.close()


def test_config_space_can_be_all_the_devices_own(library: Library, tmp_path: Path, beside: Attach) -> None:
    class Own(Card):
        def read(self, region: Region, offset: int, count: int) -> bytes:
            return bytes([region]) * count

    with Own(tmp_path / "own.sock", library) as card:
        card.pci(1, 2, kind=PciType.EXPRESS)
        card.region(Region.CFG, 4096, flags=RegionFlag.RW | RegionFlag.ALWAYS_CB)
        card.realize()
        it = beside(card)
        assert it.during(lambda: it.client.config_read(0, 4)) == 0x07070707
        assert it.during(lambda: it.client.region_read(Region.CFG, 0xFF0, 16)) == bytes([7]) * 16
        it.close()


def test_ioeventfds_are_kept_and_given_to_clients(card: Card, beside: Attach) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    card.setup().ioeventfd(Region.BAR2, event, 8, 4, datamatch=5)
    os.close(event)
    it = beside(card)

    payload = b"".join(value.to_bytes(4, "little") for value in (16 + 40, 0, Region.BAR2, 0))
    reply = it.during(lambda: it.client.request(6, payload))
    assert reply is not None
    assert len(reply.fds) == 1
    assert os.readlink(f"/proc/self/fd/{reply.fds[0]}") == "anon_inode:[eventfd]"
    os.close(reply.fds[0])


def test_what_c_holds_is_not_collected(card: Card, beside: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, made = card._keep, []

    def noted(*arguments: Any) -> Any:
        callback = keep(*arguments)
        made.append(weakref.ref(callback))
        return callback

    monkeypatch.setattr(card, "_keep", noted)
    it = beside(card.setup())
    gc.collect()

    assert it.during(lambda: it.client.region_read(Region.BAR2, 0, 2)) == b"\0\1"
    it.during(it.client.reset)
    assert card.told == [Reset.DEVICE]
    assert len(made) == 3  # the access to BAR2, and ranges that come and go
    assert None not in [callback() for callback in made]


def test_a_client_may_go_and_another_come(card: Card, beside: Attach) -> None:
    it = beside(card.setup())
    it.leave()
    assert card.told == [Reset.LOST_CONN]
    assert not card.is_attached

    it = beside(card)
    assert it.during(lambda: it.client.region_read(Region.BAR2, 1, 1)) == b"\1"


def test_serve_goes_on_after_a_client_that_is_refused(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.setup()
    stop, end = os.pipe()
    server = threading.Thread(target=card.serve, args=(stop,))
    server.start()
    with socket.socket(socket.AF_UNIX) as wrong:
        wrong.connect(str(card.path))
        wrong.send(bytes([0, 0, 1, 0, 20, 0, 0, 0, *bytes(8), 99, 0, 0, 0]))  # major version 99
        assert wrong.recv(64)[8] & 0x20  # an error reply
        assert wrong.recv(1) == b""
    with Client.connect(card.path) as client:
        assert client.region_read(Region.BAR2, 5, 1) == b"\5"
    os.write(end, b"x")
    server.join()
    assert "card.sock: a client is refused: card.sock: vfu_attach_ctx(): Invalid argument" in caplog.text
    os.close(stop)
    os.close(end)


def test_lines_of_the_library_come_with_the_devices_name(
    library: Library, tmp_path: Path, beside: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Card(tmp_path / "talk.sock", library, log_level=7) as card:
        it = beside(card.setup())
        with pytest.raises(RemoteError):
            it.during(lambda: it.client.request(99, b""))
        it.close()
    record = next(record for record in caplog.records if "no payload for cmd99" in record.getMessage())
    assert (record.name, record.levelno, record.getMessage()[:10]) == ("libvfio_user", logging.ERROR, "talk.sock:")


def test_sockets_are_not_inherited_and_the_file_goes_at_the_end(
    library: Library, tmp_path: Path, beside: Attach
) -> None:
    path = tmp_path / "card.sock"
    card = Card(path, library).setup()
    assert not os.get_inheritable(card.poll_fd)
    it = beside(card)
    assert not os.get_inheritable(card.poll_fd)
    card.close()
    assert not path.exists()
    assert card.told == [Reset.LOST_CONN]
    card.close()
    it.close()
    Card(path, library).close()


def test_a_socket_that_another_has_made_there_stays(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "card.sock"
    card = Card(path, library)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        card.close()
        assert path.exists()


def test_an_occupied_path_is_an_error_with_errno_and_call(library: Library, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(VfuError, match=r"^vfu_create_ctx\(/.*/taken\): Address already in use$") as caught:
        Card(tmp_path / "taken", library)
    assert caught.value.errno == errno.EADDRINUSE


def test_calls_from_within_a_request_are_refused(card: Card, beside: Attach, caplog: pytest.LogCaptureFixture) -> None:
    it = beside(card.setup())

    def close_from_inside(*_: object) -> bytes:
        card.close()
        return b""

    card.read = close_from_inside  # type: ignore[method-assign]
    with pytest.raises(RemoteError):
        it.during(lambda: it.client.region_read(Region.BAR2, 0, 1))
    assert "not from a callback (read): the library is in the middle of a request" in caplog.text


def test_nothing_can_be_called_after_the_end(card: Card) -> None:
    card.setup().close()
    for call in (lambda: card.poll_fd, card.attach, lambda: card.trigger(0), lambda: card.read_config(0, 1)):
        with pytest.raises(StateError, match="the device is closed"):
            call()


def test_it_is_realized_once(card: Card) -> None:
    card.setup()
    with pytest.raises(StateError, match="the device is realized already"):
        card.realize()


@pytest.mark.parametrize(
    "call",
    [
        lambda card: card.realize(),
        lambda card: card.attach(),
        lambda card: card.run(),
        lambda card: card.quiesced(),
        lambda card: card.region(Region.BAR2, 256),
        lambda card: card.ioeventfd(Region.BAR2, 0, 8, 4),
        lambda card: card.close(),
    ],
    ids=["realize", "attach", "run", "quiesced", "region", "ioeventfd", "close"],
)
def test_what_is_refused_from_within_a_callback(card: Card, beside: Attach, call: Callable[[Card], object]) -> None:
    it = beside(card.setup())
    said: list[str] = []

    def inside(*_: object) -> bytes:
        with pytest.raises(StateError) as caught:
            call(card)
        said.append(str(caught.value))
        return b"x"

    card.read = inside  # type: ignore[method-assign]
    it.during(lambda: it.client.region_read(Region.BAR2, 0, 1))
    assert said == ["not from a callback (read): the library is in the middle of a request"]


def test_what_can_be_called_from_within_a_callback(card: Card, beside: Attach) -> None:
    it = beside(card.setup())

    def inside(*_: object) -> bytes:
        assert card.poll_fd >= 0
        with pytest.raises(VfuError, match="No such file"):
            card.trigger(0)
        card.write_config(0x40, card.read_config(0, 2))
        return b"x"

    card.read = inside  # type: ignore[method-assign]
    it.during(lambda: it.client.region_read(Region.BAR2, 0, 1))
    assert card.read_config(0x40, 2) == b"\x4f\x49"


def test_a_vector_that_nobody_has_set_up_is_an_error_and_no_line(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    card.setup()
    with pytest.raises(VfuError) as caught:
        card.trigger(0)
    assert caught.value.errno == errno.ENOENT
    assert caplog.text == ""


def test_serve_rests_while_nobody_can_be_accepted(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card.setup()
    stop, end = os.pipe()
    failed: list[int] = []

    def attach() -> bool:
        failed.append(1)
        if len(failed) == 3:
            os.write(end, b"x")
        raise VfuError(errno.EMFILE, "vfu_attach_ctx()")

    monkeypatch.setattr(card, "attach", attach)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(card.path))
        begin = time.monotonic()
        card.serve(stop)
    assert time.monotonic() - begin >= 0.2
    assert len(failed) == 3
    os.close(stop)
    os.close(end)


def test_a_device_that_cannot_be_made_leaves_nothing(library: Library, tmp_path: Path) -> None:
    with pytest.raises(VfuError, match="vfu_setup_log"):
        Card(tmp_path / "card.sock", library, log_level=99)
    assert not (tmp_path / "card.sock").exists()

    class Half(Card):
        def _keep_to_this_process(self) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        Half(tmp_path / "card.sock", library)
    assert not (tmp_path / "card.sock").exists()
