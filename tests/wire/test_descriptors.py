"""What clients do with the descriptors that they send, and without those that there are not."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import sys

import pytest

from pviommu_abi.dma_test import DescriptorFlags, DescriptorStatus, DmaOp
from vfio_user import IrqAction, IrqIndex, IrqKind

from . import raw
from .guest import ENTRIES, PATIENCE_S, Guest, Serve, environment, spin_until
from .raw import Raw

row = pytest.mark.row
IOVA = 0x40000000


def lingering():
    """A connection over IP whose close waits a minute, since the other end takes nothing; and that other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    return ours, theirs


@row("server", 9)
@pytest.mark.parametrize("way", ["in a request", "unread at the end"])
def test_a_socket_that_lingers_stops_nobody(serve, way):
    """The client hands it over and has none any more: the server's close is the one that waits."""
    sent, other_end = lingering()
    with Raw(serve.folder / "dma0.sock") as client, Raw(serve.folder / "iommu.sock") as bystander:
        client.negotiate()
        bystander.negotiate()
        if way == "in a request":
            client.send(raw.DMA_MAP, raw.dma_map(0, 4096), fds=[sent.fileno()])
            sent.close()
            assert client.receive().error == errno.EINVAL
        else:
            # an impossible size ends the session: what follows is not read
            client.send(raw.GET_INFO, raw.info(), size=1)
            client.send(raw.GET_INFO, raw.info(), fds=[sent.fileno()])
            sent.close()
        assert bystander.is_alive()
    with Raw(serve.folder / "dma1.sock") as next_one:
        next_one.negotiate()
        assert next_one.is_alive()
    assert serve.stop() == 0
    other_end.close()


def unread_replies(client, count):
    """Ask for more than the socket takes, each time with the client's own end, and read nothing of it."""
    client.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(count):
            client.send(raw.REGION_READ, raw.access(2, 0, 1 << 18), fds=[client.sock.fileno()])


def in_requests_that_wait(client):
    unread_replies(client, 12)


def unread_in_the_queue(client):
    unread_replies(client, 1000)


def with_half_a_message(client):
    whole = raw.HEADER.pack(1, raw.REGION_READ, raw.HEADER.size + 16, 0, 0)
    client.send_bytes(whole, fds=[client.sock.fileno()])


def is_served(serve):
    """Whether the next client is."""
    with Raw(serve.folder / "iommu.sock") as client:
        return client.ask(raw.VERSION, raw.version(0, 0, raw.QEMU_OFFER)) != errno.EBUSY


@row("server", 15)
@pytest.mark.parametrize("keep", [in_requests_that_wait, unread_in_the_queue, with_half_a_message])
def test_a_client_that_went_and_left_its_own_end_with_the_server_makes_room_for_the_next(serve, keep):
    """The server has what keeps the connection open, so that it never sees the end of it."""
    before = serve.descriptors()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), Raw(serve.folder / "iommu.sock") as client:
            client.negotiate()
            keep(client)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0) == (pid, 0)
    spin_until(lambda: is_served(serve), "the next client to be served")
    spin_until(lambda: serve.descriptors() == before, "what the client left to be closed")
    assert serve.stop() == 0


@row("server", 15)
def test_a_client_that_takes_no_replies_stays_while_its_process_lives(serve):
    with Raw(serve.folder / "iommu.sock") as client:
        client.negotiate()
        in_requests_that_wait(client)
        assert not any(is_served(serve) for _ in range(20))
        client.sock.settimeout(PATIENCE_S)
        assert len(client.receive().payload) == 16 + (1 << 18)


@contextlib.contextmanager
def told_to_end(serve):
    """The server is stopped, a client connects and sends what lingers, and then the server is to end and goes on:
    nobody has accepted that client.
    """
    sent, other_end = lingering()
    serve.process.send_signal(signal.SIGSTOP)
    with Raw(serve.folder / "dma0.sock") as client:
        client.send(raw.GET_INFO, raw.info(), fds=[sent.fileno()])
        sent.close()
        serve.process.send_signal(signal.SIGTERM)
        serve.process.send_signal(signal.SIGCONT)
        yield
        assert serve.process.wait(PATIENCE_S) == 0
    other_end.close()


@row("server", 9)
def test_what_lies_in_a_queue_of_clients_does_not_hold_up_the_end(serve):
    with told_to_end(serve):
        pass


@row("server", 39)
def test_a_second_stop_while_the_first_one_is_obeyed_leaves_nothing_behind(serve):
    """The end takes a while: the server waits for what lies in its queue to be closed."""
    with told_to_end(serve):
        spin_until(lambda: not (serve.folder / "dma1.sock").exists(), "the sockets to go")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            serve.process.send_signal(number)
    assert os.listdir(serve.folder) == []


@row("server", 39)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_without_end_do_not_change_how_a_server_ends(serve, number):
    serve.process.send_signal(signal.SIGTERM)
    while serve.process.poll() is None:
        serve.process.send_signal(number)
    assert serve.process.poll() == 0
    assert os.listdir(serve.folder) == []


FLIPPER = """
import os, sys
fd = int(sys.argv[1])
print(flush=True)
while True:
    os.set_blocking(fd, True)
    try:
        os.set_blocking(fd, False)
        os.eventfd_write(fd, 2**64 - 2)
    except BlockingIOError:
        pass
"""


@row("server", 8)
def test_interrupts_go_on_while_the_client_fills_its_eventfd_and_changes_its_flags(serve):
    event = os.eventfd(0, os.EFD_CLOEXEC)
    flipper = subprocess.Popen([sys.executable, "-c", FLIPPER, str(event)], pass_fds=(event,), stdout=subprocess.PIPE)
    try:
        assert flipper.stdout is not None
        flipper.stdout.readline()
        with Guest(serve.folder, "dma0") as guest:
            guest.start()
            guest.iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 16)
            engine = guest.engines["dma0"]
            engine.client.set_irqs(IrqIndex.MSIX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=[event])
            for _ in range(2000):
                assert engine.run(DmaOp.FILL, 16, dst=IOVA, flags=DescriptorFlags.INTERRUPT).status
    finally:
        flipper.kill()
        flipper.wait(PATIENCE_S)
        assert flipper.stdout is not None
        flipper.stdout.close()
        os.close(event)
    assert serve.stop() == 0


@row("server", 2)
@row("server", 4)
def test_a_server_without_descriptors_says_so_and_goes_on(folder, topology):
    with Serve(folder, topology) as serve:
        first = Raw(folder / "iommu.sock")
        first.negotiate()
        fd = os.memfd_create("ram")
        os.ftruncate(fd, 1 << 20)
        lowest = max(int(name) for name in os.listdir(f"/proc/{serve.process.pid}/fd")) + 1
        before = resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        waiting = [Raw(folder / "dma0.sock") for _ in range(3)]
        assert all(client.has_ended() for client in waiting)
        assert "no client can be accepted" in serve.wait_for("accept-failed")["message"]
        assert first.ask(raw.DMA_MAP, raw.dma_map(0, 4096), fds=[fd]) == errno.EMFILE
        assert first.is_alive()
        resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, before)
        assert first.ask(raw.DMA_MAP, raw.dma_map(0, 4096), fds=[fd]) == b""
        with Raw(folder / "dma0.sock") as later:
            later.negotiate()
        for client in [first, *waiting]:
            client.sock.close()
        os.close(fd)
        assert serve.stop() == 0


@row("server", 5)
def test_the_other_functions_do_not_notice_that_one_fails(folder, tmp_path):
    """An endpoint of somebody's own that raises, beside a sound one, in a real server."""
    program = (
        "import sys\n"
        "from pviommu import endpoints\n"
        "from pviommu.endpoints.template import Template\n"
        "def work(self):\n"
        "    if self.state.queue: raise KeyError('a bug')\n"
        "    return False\n"
        "Template.work = work\n"
        "from pviommu.cli import main\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "two.toml").write_text(
        '[[endpoint]]\nname = "dma0"\nkind = "dma-test"\nstream = 1\n'
        '[[endpoint]]\nname = "stamp"\nkind = "template"\nstream = 2\n'
    )
    options = ["--socket-dir", folder, "--pidfile", folder / "pid"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", tmp_path / "two.toml", *options],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening on" in line:
                break
        with Guest(folder, "dma0") as guest, Raw(folder / "stamp.sock") as broken:
            broken.negotiate()
            guest.start()
            guest.iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 16)
            assert broken.write(0, 0, bytes(4)) == 0  # queues a stamp, on which work() raises
            while broken.read(0, 4, 4) != b"\xff" * 4:
                pass
            engine = guest.engines["dma0"]
            for _ in range(ENTRIES):
                assert engine.run(DmaOp.FILL, 16, dst=IOVA).status == DescriptorStatus.DONE
            assert [event.stream for event in guest.iommu.events()] == [2]
            assert broken.ask(raw.DEVICE_RESET) == b""
            assert broken.read(0, 4, 4) == bytes(4)
    finally:
        process.terminate()
        said = process.stderr.read() if process.stderr else ""
        process.wait(PATIENCE_S)
        if process.stderr:
            process.stderr.close()
    assert said.count("Traceback") == 1
    assert "KeyError: 'a bug'" in said
    assert process.returncode == 0
