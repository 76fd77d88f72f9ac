import errno
import gc
import os
import signal
import socket

import pytest

from pviommu import server as server_module
from pviommu.iommu.execution import STEP_NS
from pviommu.iommu.ring import passed
from pviommu.server import FIRST_SLEEP_MS, LOOK_NS, Server, close_all, listen_all
from pviommu_abi.registers import REGISTER
from pviommu_abi.shared import CACHE_LINE, DeviceRingLine
from pviommu_abi.slots import PvIommuOp
from vfio_user import Client, Command, Limits
from vfio_user.messages import Header, HeaderFlags, RegionAccess
from vfio_user.negotiation import offer

from .conftest import ENTRIES

NOOP = PvIommuOp(0, 0, 0).pack()
FOREVER = -1
SPIN_NS = 5000
DOORBELL_EVENT = DeviceRingLine.offset_of("doorbell_event") // 4
DOORBELL = RegionAccess(REGISTER["DOORBELL"].offset, 0, 4).pack() + bytes(4)


class Connected:
    """A server of a driver's machine with one client of the PV-IOMMU, both in this thread."""

    def __init__(self, driver):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(5)
        self.driver = driver
        self.sock = ours
        self.client = Client(ours)
        self.server = Server(driver.machine, {"iommu": theirs}, driver.inputs, SPIN_NS)
        payload = offer(Limits(), 0)
        self.client.send(Header(0, Command.VERSION, Header.SIZE + len(payload), 0, 0).pack() + payload)
        self.server.turn()
        assert not self.client.receive().header.flags & HeaderFlags.ERROR
        driver.start()
        driver.inputs.waits.clear()

    def close(self):
        self.server.close()
        self.client.close()

    def ring_doorbell(self):
        header = Header(1, Command.REGION_WRITE, Header.SIZE + len(DOORBELL), 0, 0)
        self.client.send(header.pack() + DOORBELL)

    def turns(self, count):
        for _ in range(count):
            self.server.turn()

    def fall_asleep(self):
        """Turn until the server would sleep without a bound."""
        while FOREVER not in self.driver.inputs.waits:
            self.server.turn()


@pytest.fixture
def connected(make_driver):
    made = Connected(make_driver())
    yield made
    made.close()


# -- sleeping ---------------------------------------------------------------------------------------------------------


def test_after_work_the_rings_are_polled_before_the_server_sleeps(connected):
    driver = connected.driver
    driver.put(NOOP)
    connected.turns(1)
    assert driver.completed() == 1
    connected.turns(2)  # within SPIN_NS of the last work
    assert set(driver.inputs.waits) == {0}


def test_the_first_sleep_is_bounded_and_the_next_is_not(connected):
    connected.fall_asleep()
    assert [timeout for timeout in connected.driver.inputs.waits if timeout] == [FIRST_SLEEP_MS, FOREVER]


def test_a_server_without_rings_sleeps_without_a_bound_at_once(make_driver):
    driver = make_driver()
    server = Server(driver.machine, {}, driver.inputs, SPIN_NS)
    server.turn()
    assert driver.inputs.waits == [FOREVER]


def test_a_sleeping_server_is_woken_by_the_doorbell_and_only_by_it(connected):
    driver = connected.driver
    ready = []

    def submit(timeout):
        if timeout == FOREVER:
            driver.inputs.on_wait = None
            driver.put(NOOP)
            ready.append(list(connected.server._poller.poll(0)))
            connected.ring_doorbell()
            ready.append(list(connected.server._poller.poll(0)))

    driver.inputs.on_wait = submit
    connected.fall_asleep()
    assert [len(found) for found in ready] == [0, 1]
    connected.turns(1)
    assert driver.completed() == 1


def test_a_doorbell_is_answered_before_its_ring_is_worked(connected):
    driver = connected.driver

    def submit(timeout):
        if timeout == FOREVER:
            driver.inputs.on_wait = None
            driver.put(NOOP)
            connected.ring_doorbell()

    driver.inputs.on_wait = submit
    connected.fall_asleep()
    assert connected.client.receive().header.command == Command.REGION_WRITE
    assert driver.completed() == 0
    connected.turns(1)
    assert driver.completed() == 1


def test_a_slot_published_while_arming_keeps_the_server_awake(connected):
    driver = connected.driver

    def publish(_):
        if connected.server._armed:  # the stores of arming are done, the look that follows is not
            driver.inputs.before_word = None
            driver.put(NOOP)

    driver.inputs.before_word = publish
    while driver.inputs.before_word:
        connected.turns(1)
    assert all(timeout == 0 for timeout in driver.inputs.waits)
    connected.turns(1)
    assert driver.completed() == 1


def test_work_found_in_the_first_sleep_ends_the_asking_for_doorbells(connected):
    driver = connected.driver

    def submit(timeout):
        if timeout == FIRST_SLEEP_MS:
            driver.inputs.on_wait = None
            driver.put(NOOP)

    driver.inputs.on_wait = submit
    while driver.completed() == 0:
        connected.turns(1)
    asked_at = driver.words[CACHE_LINE // 4 + DOORBELL_EVENT]
    assert not passed(asked_at, driver.producer[0] + 1, driver.producer[0])


def test_a_busy_server_looks_at_its_sockets_now_and_then(connected):
    connected.driver.put(NOOP)
    connected.server.turn(look_at_sockets=False)
    assert connected.driver.inputs.waits == []
    connected.driver.put(NOOP)
    connected.server.turn()
    assert connected.driver.inputs.waits == [0]


@pytest.mark.row("wire", 44)
@pytest.mark.row("defect", "A19")
def test_a_long_turn_is_followed_by_a_look_at_the_sockets(connected):
    driver = connected.driver
    connected.server.turn()

    def take_long():
        driver.inputs.time += LOOK_NS

    driver.inputs.after_copy = take_long
    driver.inputs.waits.clear()
    for _ in range(3):
        driver.put(NOOP)
        connected.server.turn(look_at_sockets=False)
    assert driver.inputs.waits == [0, 0, 0]


@pytest.mark.row("wire", 44)
@pytest.mark.row("wire", 58)
@pytest.mark.row("defect", "A19")
def test_a_request_waits_for_one_step_of_a_full_ring_and_no_more(connected):
    driver = connected.driver
    for _ in range(ENTRIES):
        driver.put(NOOP)

    def take_long():
        driver.inputs.time += STEP_NS

    driver.inputs.after_copy = take_long
    connected.ring_doorbell()
    connected.server.turn(look_at_sockets=False)
    assert connected.client.receive().header.command == Command.REGION_WRITE
    assert driver.completed() == 1


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_run_ends_when_stopped_and_gives_back_the_collector(connected):
    connected.driver.inputs.on_wait = lambda _: connected.server.stop()
    connected.server.run()
    assert gc.isenabled()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_and_handlers_are_restored(connected, number):
    before = signal.getsignal(number)
    with connected.server.stopped_by_signals():
        connected.driver.inputs.on_wait = lambda _: os.kill(os.getpid(), number)
        connected.server.run()
    assert signal.getsignal(number) is before


# -- clients ----------------------------------------------------------------------------------------------------------


def test_a_client_that_hangs_up_is_dropped_and_the_machine_reset(connected):
    connected.driver.alloc()
    connected.client.close()
    connected.turns(1)
    assert connected.driver.iommu.engine.contexts() == ()
    assert connected.server._connections == {}


@pytest.mark.row("defect", "A13")
def test_a_client_seen_before_the_end_of_the_last_one_is_accepted(make_driver, tmp_path, monkeypatch):
    driver = make_driver()
    sockets = listen_all(driver.machine, tmp_path, {})
    server = Server(driver.machine, sockets, driver.inputs, SPIN_NS)
    processes = iter([100, 100, 200])
    monkeypatch.setattr(server_module, "_peer_process", lambda _: next(processes))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as gone:
        first.connect(str(tmp_path / "dma0.sock"))
        gone.connect(str(tmp_path / "dma1.sock"))
        for _ in range(3):
            server.turn()
        driver.alloc()
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(tmp_path / "iommu.sock"))
        second.settimeout(5)
        server._accept(sockets["iommu"], driver.iommu)  # before a look at the other sockets
        (connection,) = server._connections.values()
        assert connection.function is driver.iommu
        server.close()
        assert second.recv(1) == b""
    close_all(sockets)


def test_closing_drops_every_client(connected):
    connected.driver.alloc()
    connected.server.close()
    assert connected.driver.iommu.engine.contexts() == ()
    assert connected.sock.recv(1) == b""


def test_a_client_that_does_not_read_is_not_read_from(connected):
    header = Header(2, Command.REGION_READ, Header.SIZE + RegionAccess.SIZE, 0, 0)
    request = header.pack() + RegionAccess(0, 2, 1 << 20).pack()
    for _ in range(20):
        connected.client.send(request)
    connected.turns(5)
    (connection,) = connected.server._connections.values()
    assert connection.session.paused
    assert sum(len(item.data) for item in connection.session.outgoing) < 5 << 20
    connected.sock.setblocking(False)
    missing = 20 * (Header.SIZE + RegionAccess.SIZE + (1 << 20))
    while missing:
        try:
            missing -= len(connected.sock.recv(missing))
        except BlockingIOError:
            connected.turns(1)
    assert not connection.session.paused


def test_a_second_client_is_accepted_when_the_first_is_gone(make_driver, tmp_path):
    driver = make_driver()
    sockets = listen_all(driver.machine, tmp_path, {})
    server = Server(driver.machine, sockets, driver.inputs, SPIN_NS)
    path = str(tmp_path / "iommu.sock")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(path)
        second.connect(path)
        for _ in range(3):
            server.turn()
        assert len(server._connections) == 1
        first.close()
        for _ in range(3):
            server.turn()
        assert len(server._connections) == 1
        second.close()
        server.turn()
        assert len(server._connections) == 0
    server.close()
    close_all(sockets)


# -- sockets ----------------------------------------------------------------------------------------------------------


def test_every_function_has_a_socket_of_its_name_and_closing_removes_them(make_driver, tmp_path):
    sockets = listen_all(make_driver().machine, tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"iommu.sock", "dma0.sock", "dma1.sock"}
    close_all(sockets)
    assert list(tmp_path.iterdir()) == []
    assert all(sock.fileno() == -1 for sock in sockets.values())


def test_a_path_that_cannot_be_listened_on_leaves_nothing_behind(make_driver, tmp_path):
    (tmp_path / "dma1.sock").write_text("in the way")
    with pytest.raises(OSError) as caught:
        listen_all(make_driver().machine, tmp_path, {})
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(tmp_path / "dma1.sock"))
    assert [path.name for path in tmp_path.iterdir()] == ["dma1.sock"]


def test_the_file_of_a_given_socket_is_left_to_its_maker(make_driver, tmp_path):
    path = tmp_path / "given.sock"
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    given.listen()
    descriptors = {"iommu": given.detach()}
    sockets = listen_all(make_driver().machine, tmp_path, descriptors)
    close_all(sockets, descriptors)
    assert list(tmp_path.iterdir()) == [path]
