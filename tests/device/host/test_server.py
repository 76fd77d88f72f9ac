import errno
import gc
import os
import resource
import select
import signal
import socket
import threading
import weakref

import pytest

from pviommu.host.loop import LOOK_NS
from pviommu.host.pacing import FOREVER, SLEEPS_MS, Pace
from pviommu.host.server import Server
from pviommu.host.watches import SOCKETS_NS
from pviommu.hosted import NAP_MS, STOPPED_NS
from pviommu.interfaces.pv.order import STEP_NS
from pviommu.interfaces.pv.ring import passed
from pviommu.transports import peers, vfio_user
from pviommu.transports.listening import REST_NS, close_all, listen_all
from pviommu.transports.peers import Peer, peer_of
from pviommu.transports.vfio_user import MOST_REFUSED
from pviommu_abi.registers import REGISTER
from pviommu_abi.shared import CACHE_LINE, DeviceRingLine, GuestRingLine
from pviommu_abi.slots import SlotFlags
from pviommu_abi.xen_2024 import PvIommuOp
from vfio_user import Client, Command, SessionLimits, transport
from vfio_user.foreign import MOST_LEFT
from vfio_user.messages import Header, HeaderFlags, RegionAccess
from vfio_user.negotiation import offer

from ..conftest import ENTRIES

NOOP = PvIommuOp(0, 0, 0).pack()
SPIN_NS = 100_000
TICK = 1000
"""What reading the clock takes here."""
AWAITED = GuestRingLine.offset_of("awaited") // 4
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
        self.server = Server(driver.machine, {"iommu": theirs}, driver.inputs, Pace(SPIN_NS))
        payload = offer(SessionLimits(), 0)
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


def test_after_waits_the_rings_are_polled_before_the_server_sleeps(connected):
    driver = connected.driver
    for _ in range(2):
        driver.put(NOOP)
        connected.turns(1)
    assert driver.completed() == 2
    driver.inputs.waits.clear()
    connected.turns(2)  # within SPIN_NS of the last wait
    assert set(driver.inputs.waits) == {0}


def test_the_sleeps_after_arming_grow_before_there_is_one_without_a_bound(connected):
    slept_before = connected.driver.counters.sleeps
    connected.fall_asleep()
    assert [timeout for timeout in connected.driver.inputs.waits if timeout] == [*SLEEPS_MS, FOREVER]
    assert connected.driver.counters.sleeps - slept_before == len(SLEEPS_MS) + 1


def test_the_sleeps_begin_anew_after_work(connected):
    connected.fall_asleep()
    connected.driver.put(NOOP)
    connected.turns(1)
    connected.driver.inputs.waits.clear()
    connected.fall_asleep()
    assert [timeout for timeout in connected.driver.inputs.waits if timeout] == [*SLEEPS_MS, FOREVER]


def test_a_server_without_rings_sleeps_without_a_bound_at_once(make_driver):
    driver = make_driver()
    server = Server(driver.machine, {}, driver.inputs)
    server.turn()
    assert driver.inputs.waits == [FOREVER]


def test_a_sleeping_server_is_woken_by_the_doorbell_and_only_by_it(connected):
    driver = connected.driver
    ready = []

    def submit(timeout):
        if timeout == FOREVER:
            driver.inputs.on_wait = None
            driver.put(NOOP)
            ready.append(list(connected.server.loop.watches.poller.poll(0)))
            connected.ring_doorbell()
            ready.append(list(connected.server.loop.watches.poller.poll(0)))

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
        if connected.server.loop._armed:  # the stores of arming are done, the look that follows is not
            driver.inputs.before_word = None
            driver.put(NOOP)

    driver.inputs.before_word = publish
    while driver.inputs.before_word:
        connected.turns(1)
    assert all(timeout == 0 for timeout in driver.inputs.waits)
    connected.turns(1)
    assert driver.completed() == 1


@pytest.mark.row("driver", 5)
def test_after_a_stop_what_clients_asked_for_comes_before_any_work(connected):
    """A guest that gave the IOMMU up has reset it meanwhile: what endpoints have queued is not to be carried out."""
    seen = []
    connected.server.work.step = lambda: seen.append(connected.driver.read("DOORBELLS"))
    before = connected.driver.read("DOORBELLS")
    connected.ring_doorbell()
    connected.driver.inputs.time += STOPPED_NS
    connected.turns(1)
    assert seen == [before + 1]


@pytest.mark.parametrize("bound", SLEEPS_MS)
def test_a_slot_whose_doorbell_got_lost_is_found_after_a_bounded_sleep(connected, bound):
    driver = connected.driver

    def submit(timeout):
        if timeout == bound:
            driver.inputs.on_wait = None
            driver.put(NOOP)

    driver.inputs.on_wait = submit
    while driver.completed() == 0:
        connected.turns(1)
    assert FOREVER not in driver.inputs.waits
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


# -- how long it polls -------------------------------------------------------------------------------------------------


class Guest:
    """Waits ``gap`` ns after the last wait was over, with a doorbell if it is asked for. Sleeping takes time here.

    ``tells``: it says when it waits, and what it has the device do is posted.
    """

    def __init__(self, connected, gap, *, tells=True):
        self.connected = connected
        self.driver = connected.driver
        self.gap = gap
        self.tells = tells
        self.next_at = None
        self.began_at = None
        self.waited_ns = 0
        self.doorbells = 0
        self.driver.inputs.on_wait = self.sleep

    def notice(self):
        """See that a wait is over, and when the next one is due."""
        inputs = self.driver.inputs
        if self.began_at is not None and self.driver.completed() == self.driver.producer[0]:
            self.waited_ns += inputs.time - self.began_at
            self.began_at = None
        if self.began_at is None and self.next_at is None:
            self.next_at = inputs.time + self.gap

    def sleep(self, timeout_ms):
        self.notice()
        inputs = self.driver.inputs
        if not timeout_ms or self.next_at is None:
            return
        ends_at = inputs.time + timeout_ms * 1_000_000
        if ends_at < self.next_at and timeout_ms != FOREVER:
            inputs.time = int(ends_at)
            return
        inputs.time = max(self.next_at, inputs.time)
        if not self.wait() and timeout_ms != FOREVER:
            inputs.time = max(inputs.time, int(ends_at))

    def wait(self):
        """Begin to wait for one more slot; whether the doorbell was rung."""
        before = self.driver.producer[0]
        self.began_at, self.next_at = self.next_at, None
        self.driver.put(NOOP, flags=SlotFlags.POSTED if self.tells else 0)
        if self.tells:
            self.driver.words[AWAITED] = before + 1
        rings = passed(self.driver.words[CACHE_LINE // 4 + DOORBELL_EVENT], before + 1, before)
        if rings:
            self.doorbells += 1
            self.connected.ring_doorbell()
        return rings

    def run(self, waits):
        """Until so many more are over."""
        inputs = self.driver.inputs
        target = self.driver.completed() + waits
        self.notice()
        while self.driver.completed() != target:
            if self.next_at is not None and inputs.time >= self.next_at:
                self.wait()
            self.connected.turns(1)
            self.notice()


@pytest.mark.row("driver", 70)
@pytest.mark.row("driver", 72)
@pytest.mark.parametrize("tells", [True, False])
def test_a_guest_that_waits_again_and_again_needs_no_doorbells(connected, tells):
    guest = Guest(connected, 2 * TICK, tells=tells)
    guest.run(3)
    guest.doorbells = slept = 0
    slept = connected.driver.counters.sleeps
    guest.run(64)
    assert (guest.doorbells, connected.driver.counters.sleeps - slept) == (0, 0)


@pytest.mark.row("driver", 70)
@pytest.mark.parametrize("tells", [True, False])
def test_a_guest_that_waits_now_and_then_finds_the_server_asleep(connected, tells):
    guest = Guest(connected, 10_000_000, tells=tells)
    guest.run(20)
    assert guest.doorbells == connected.driver.counters.doorbells == 20
    assert connected.server.loop._pace.window_ns == 0


@pytest.mark.row("driver", 73)
def test_a_wait_that_begins_during_a_nap_is_over_a_moment_later_without_a_doorbell(connected):
    nap = int(NAP_MS * 1_000_000)
    connected.server.loop._pace = Pace(0)  # no polling: naps only
    guest = Guest(connected, 10_000_000)
    guest.run(1)
    guest.gap = nap // 2
    guest.run(1)
    guest.doorbells = guest.waited_ns = 0
    guest.run(1)
    assert guest.doorbells == 0
    assert nap // 4 < guest.waited_ns < nap


@pytest.mark.row("driver", 71)
def test_posted_work_that_nobody_waits_for_is_found_without_doorbells_and_not_polled_for(connected):
    driver = connected.driver
    Guest(connected, 10_000_000).run(2)
    driver.inputs.waits.clear()
    posted = []

    def post(timeout_ms):
        if timeout_ms and len(posted) < 20:
            driver.inputs.time += 100_000
            posted.append(driver.put(NOOP, flags=SlotFlags.POSTED))

    driver.inputs.on_wait = post
    doorbells = driver.counters.doorbells
    while len(posted) < 20 or driver.completed() != driver.producer[0]:
        connected.turns(1)
    assert driver.counters.doorbells == doorbells
    slept = [timeout for timeout in driver.inputs.waits if timeout]
    # each time: the work, at most a nap later; no polling in between
    assert len(driver.inputs.waits) <= 2 * len(slept) + 2
    assert connected.server.loop._pace.left_ns(driver.inputs.time) == 0
    assert set(slept) <= {NAP_MS, SLEEPS_MS[0]}


@pytest.mark.row("driver", 71)
def test_posted_work_that_never_ends_is_gathered_during_naps(connected):
    """A guest that is faster than a turn of the loop: there is always one more slot."""
    driver = connected.driver
    connected.server.loop._pace = Pace(0)
    Guest(connected, 10_000_000).run(2)
    driver.inputs.on_wait = None
    driver.inputs.waits.clear()
    for _ in range(20):
        driver.put(NOOP, flags=SlotFlags.POSTED)
        connected.server.turn(look_at_sockets=False)
    assert driver.inputs.waits == [NAP_MS] * 20
    assert driver.completed() == driver.producer[0]


@pytest.mark.row("driver", 73)
def test_there_is_no_nap_while_somebody_waits_or_more_than_a_step_of_work_is_left(connected):
    driver = connected.driver
    connected.server.loop._pace = Pace(0)
    Guest(connected, 10_000_000).run(2)
    driver.inputs.on_wait = None
    driver.inputs.waits.clear()
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.words[AWAITED] = driver.producer[0] + 1  # of a slot that comes in a moment
    connected.server.turn(look_at_sockets=False)
    assert NAP_MS not in driver.inputs.waits
    driver.put(NOOP, flags=SlotFlags.POSTED)
    connected.server.turn(look_at_sockets=False)
    assert driver.inputs.waits[-1] == NAP_MS


@pytest.mark.row("driver", 71)
def test_after_a_nap_in_vain_doorbells_are_asked_for(connected):
    guest = Guest(connected, 10_000_000)
    guest.run(2)
    driver = connected.driver
    driver.inputs.on_wait = None
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.inputs.waits.clear()
    connected.fall_asleep()
    assert [timeout for timeout in driver.inputs.waits if timeout] == [NAP_MS, *SLEEPS_MS, FOREVER]


@pytest.mark.row("driver", 72)
def test_for_a_guest_that_does_not_say_when_it_waits_doorbells_are_asked_for_at_once(connected):
    driver = connected.driver
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.inputs.waits.clear()
    connected.fall_asleep()
    assert NAP_MS not in driver.inputs.waits


def test_when_the_waits_have_ended_the_server_sleeps_for_good(connected):
    Guest(connected, 2 * TICK).run(10)
    driver = connected.driver
    slept_at = []
    driver.inputs.waits.clear()
    driver.inputs.on_wait = lambda timeout: slept_at.append(driver.inputs.time) if timeout else None
    idle_since = driver.inputs.time
    connected.fall_asleep()
    assert slept_at[0] - idle_since <= SPIN_NS + 10 * TICK
    assert [timeout for timeout in driver.inputs.waits if timeout] == [NAP_MS, *SLEEPS_MS, FOREVER]


# -- turns of others --------------------------------------------------------------------------------------------------


class Clients:
    """A server with a client of each function, all in this thread. Reading a register takes :attr:`cost` there."""

    def __init__(self, driver):
        self.driver = driver
        self.cost = 0
        self.sockets = {}
        self.clients = {}
        sockets = {}
        for function in driver.machine.functions():
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self.sockets[function.name] = ours
            self.clients[function.name] = Client(ours)
            sockets[function.name] = theirs
            function.region_read = self.slowly(function.region_read)
        driver.inputs.worked_ns = lambda: driver.inputs.time
        self.server = Server(driver.machine, sockets, driver.inputs, Pace(SPIN_NS))
        payload = offer(SessionLimits(), 0)
        for client in self.clients.values():
            client.send(Header(0, Command.VERSION, Header.SIZE + len(payload), 0, 0).pack() + payload)
        for _ in range(3):
            self.server.turn()
        for client in self.clients.values():
            client.receive()

    def slowly(self, read):
        def slow_read(*given):
            self.driver.inputs.time += self.cost
            return read(*given)

        return slow_read

    def ask(self, name, count=1, first=1):
        """Reads of a register, pipelined, with ids from ``first`` on."""
        size = Header.SIZE + RegionAccess.SIZE
        payload = RegionAccess(0, 0, 4).pack()
        requests = [Header(first + n, Command.REGION_READ, size, 0, 0).pack() + payload for n in range(count)]
        self.clients[name].send(b"".join(requests))

    def answers(self, name):
        """Ids of the replies that are there."""
        try:
            data = self.sockets[name].recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        size = Header.SIZE + RegionAccess.SIZE + 4
        return [Header.unpack(data, at).id for at in range(0, len(data), size)]

    def close(self):
        self.server.close()
        for client in self.clients.values():
            client.close()


@pytest.fixture
def clients(make_driver):
    made = Clients(make_driver())
    yield made
    made.close()


@pytest.mark.row("server", 34)
def test_pipelined_requests_end_with_the_time_of_a_look_and_go_on_in_the_next(clients):
    clients.cost = SOCKETS_NS // 3
    clients.ask("dma0", 12)
    seen = []
    while len(seen) < 12:
        clients.server.turn()
        found = clients.answers("dma0")
        assert len(found) <= 4
        seen += found
    assert seen == list(range(1, 13))


@pytest.mark.row("server", 34)
def test_a_client_that_asks_little_comes_before_one_that_asks_without_end(clients):
    clients.cost = SOCKETS_NS
    clients.ask("dma0", 50)
    clients.ask("dma1", 50)
    for turn in range(5):
        clients.server.turn()
        clients.server.turn()
        clients.ask("iommu", first=turn + 1)
        clients.server.turn()
        assert clients.answers("iommu") == [turn + 1]
    assert len(clients.answers("dma0")) > 1
    assert len(clients.answers("dma1")) > 1


@pytest.mark.row("server", 34)
def test_a_loop_whose_clients_wait_for_a_turn_does_not_sleep(clients):
    clients.cost = 2 * SOCKETS_NS
    clients.ask("dma0", 3)
    clients.driver.inputs.waits.clear()
    for _ in range(3):
        clients.server.turn()
    assert clients.answers("dma0") == [1, 2, 3]
    assert set(clients.driver.inputs.waits[1:]) == {0}


@pytest.mark.row("server", 39)
def test_a_stop_is_heard_between_two_requests_of_a_client(clients):
    clients.cost = 1
    read = clients.driver.machine.endpoints["dma0"].region_read

    def read_and_stop(*given):
        clients.server.stop()
        return read(*given)

    clients.driver.machine.endpoints["dma0"].region_read = read_and_stop
    clients.ask("dma0", 50)
    clients.server.run()
    assert clients.answers("dma0") == [1]


@pytest.mark.row("driver", 5)
@pytest.mark.row("server", 31)
def test_dma_after_a_sleep_of_the_loop_does_not_wait_for_the_rings(connected):
    """As it does after a stop of the process: nobody has given up a device that only had nothing to do."""
    driver = connected.driver
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_read("dma0", 0x100000, 1)

    def sleep_long(timeout_ms):
        if timeout_ms:
            driver.inputs.time += 10 * STOPPED_NS

    driver.inputs.on_wait = sleep_long
    connected.fall_asleep()
    driver.put(NOOP)
    before = driver.completed()
    driver.dma_read("dma0", 0x100000, 1)
    assert driver.completed() == before
    driver.inputs.time += 10 * STOPPED_NS
    driver.dma_read("dma0", 0x100000, 1)
    assert driver.completed() == before + 1


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


def test_signals_are_ignored_after_a_run_whose_process_ends(connected):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with connected.server.stopped_by_signals(ends_process=True):
            pass
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- clients ----------------------------------------------------------------------------------------------------------


def test_a_client_that_hangs_up_is_dropped_and_the_machine_reset(connected):
    connected.driver.alloc()
    connected.client.close()
    connected.turns(1)
    assert connected.driver.iommu.engine.domains() == ()
    assert connected.server.transport._connections == {}


@pytest.mark.row("defect", "A13")
def test_a_client_seen_before_the_end_of_the_last_one_is_accepted(make_driver, tmp_path, monkeypatch):
    driver = make_driver()
    sockets = listen_all(driver.machine, tmp_path, {})
    server = Server(driver.machine, sockets, driver.inputs)
    processes = iter([100, 100, 200])
    monkeypatch.setattr(vfio_user, "peer_of", lambda _: Peer(next(processes), 0, 0))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as gone:
        first.connect(str(tmp_path / "dma0.sock"))
        gone.connect(str(tmp_path / "dma1.sock"))
        for _ in range(3):
            server.turn()
        driver.alloc()
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(tmp_path / "iommu.sock"))
        second.settimeout(5)
        server.transport._accept(sockets["iommu"].fileno())  # before a look at the other sockets
        (connection,) = server.transport._connections.values()
        assert connection.function is driver.iommu
        server.close()
        assert second.recv(1) == b""
    close_all(sockets)


@pytest.mark.row("defect", "A13")
def test_a_client_that_is_gone_is_freed_without_the_garbage_collector(listening):
    """A busy server collects seldom or never."""
    gc.disable()
    try:
        sock = listening.connect("dma0")
        assert listening.answer(sock) == 0
        (connection,) = listening.server.transport._connections.values()
        ended = weakref.ref(connection)
        del connection
        sock.shutdown(socket.SHUT_RDWR)
        listening.turns(2)
        assert listening.server.transport._connections == {}
        assert ended() is None
    finally:
        gc.enable()


def test_closing_drops_every_client(connected):
    connected.driver.alloc()
    connected.server.close()
    assert connected.driver.iommu.engine.domains() == ()
    assert connected.sock.recv(1) == b""


def test_a_client_that_does_not_read_is_not_read_from(connected):
    header = Header(2, Command.REGION_READ, Header.SIZE + RegionAccess.SIZE, 0, 0)
    request = header.pack() + RegionAccess(0, 2, 1 << 20).pack()
    for _ in range(20):
        connected.client.send(request)
    connected.turns(5)
    (connection,) = connected.server.transport._connections.values()
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


class Listening:
    """A server of a driver's machine that listens, and turns when it is told to."""

    def __init__(self, driver, folder):
        self.driver = driver
        self.sockets = listen_all(driver.machine, folder, {})
        self.server = Server(driver.machine, self.sockets, driver.inputs)
        self.folder = folder
        self.clients = []

    def connect(self, name="iommu"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(str(self.folder / f"{name}.sock"))
        self.clients.append(sock)
        return sock

    def turns(self, count):
        for _ in range(count):
            self.server.turn()

    def say(self, sock):
        payload = offer(SessionLimits(), 0)
        sock.sendall(Header(7, Command.VERSION, Header.SIZE + len(payload), 0, 0).pack() + payload)

    def answer(self, sock):
        """The errno of the answer to VERSION; 0 if the client is welcome."""
        self.say(sock)
        self.turns(3)
        header = Header.unpack(sock.recv(Header.SIZE))
        assert (header.id, header.command) == (7, Command.VERSION)
        if header.size > Header.SIZE:
            sock.recv(header.size - Header.SIZE)
        return header.error

    def close(self):
        self.server.close()
        close_all(self.sockets)
        for sock in self.clients:
            sock.close()


@pytest.fixture
def listening(make_driver, tmp_path):
    made = Listening(make_driver(), tmp_path)
    yield made
    made.close()


@pytest.mark.row("server", 11)
def test_a_second_client_is_told_at_once_that_the_function_is_in_use(listening, caplog):
    first, second = listening.connect(), listening.connect()
    assert listening.answer(first) == 0
    assert listening.answer(second) == errno.EBUSY
    assert second.recv(1) == b""
    assert caplog.text.count("iommu: client refused: ") == 1
    assert f"process {os.getpid()}" in caplog.text
    assert len(listening.server.transport._connections) == 1
    assert listening.server.transport._refused == {}


@pytest.mark.row("server", 11)
def test_a_client_that_comes_when_the_first_is_gone_is_served(listening):
    listening.answer(listening.connect())
    listening.clients[0].close()
    assert listening.answer(listening.connect()) == 0


@pytest.mark.row("server", 11)
def test_the_silent_refused_ones_do_not_gather(listening):
    listening.answer(listening.connect())
    for _ in range(3 * MOST_REFUSED):
        listening.connect("iommu")
    listening.turns(3 * MOST_REFUSED + 1)
    assert len(listening.server.transport._refused) == MOST_REFUSED
    assert listening.answer(listening.connect("dma0")) == 0


@pytest.mark.row("server", 11)
@pytest.mark.row("server", 12)
@pytest.mark.parametrize(
    ("one", "other", "refused"),
    [
        (Peer(100, 0, 0), Peer(200, 0, 0), True),
        (Peer(100, 0, 0, 1), Peer(200, 0, 0, 2), True),
        (Peer(0, 107, 107, 1), Peer(0, 107, 107, 2), True),  # in pid namespaces of their own
        (Peer(0, 107, 107, 1), Peer(0, 107, 107, 1), False),
        (Peer(100, 0, 0, 1), Peer(100, 0, 0, 2), True),  # the number was given away anew
        (Peer(0, 107, 107), Peer(0, 108, 108), True),
        (Peer(0, 107, 107), Peer(0, 107, 107), False),  # an old kernel: their memory tells
    ],
)
def test_machines_are_told_apart_by_process(listening, monkeypatch, caplog, one, other, refused):
    peers = iter([one, other])
    monkeypatch.setattr(vfio_user, "peer_of", lambda _: next(peers))
    assert listening.answer(listening.connect("iommu")) == 0
    assert listening.answer(listening.connect("dma0")) == (errno.EBUSY if refused else 0)
    assert caplog.text.count("one topology is one machine") == int(refused)


@pytest.mark.row("server", 12)
def test_the_process_at_the_other_end_is_known():
    one, other = socket.socketpair()
    again = peer_of(one)
    assert (again.pid, again.user) == (os.getpid(), os.getuid())
    assert again == peer_of(other)
    assert again.may_be(peer_of(other))
    one.close()
    other.close()


@pytest.mark.row("server", 13)
def test_nobody_is_served_while_shared_memory_cannot_be_made_anew(listening, monkeypatch):
    def no_room(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    first = listening.connect()
    listening.answer(first)
    inode = os.fstat(listening.driver.iommu.shared.fd).st_ino
    with monkeypatch.context() as full:
        full.setattr(os, "memfd_create", no_room)
        first.close()
        listening.turns(2)
        assert listening.answer(listening.connect()) == errno.ENOMEM
    assert listening.answer(listening.connect()) == 0
    assert os.fstat(listening.driver.iommu.shared.fd).st_ino != inode


@pytest.mark.row("server", 9)
def test_what_is_closed_after_the_server_wakes_nobody(listening, lingering):
    sock = listening.connect("dma0")
    listening.answer(sock)
    with open(os.devnull) as kept:
        socket.send_fds(sock, [b"x"], [kept.fileno()])
        listening.turns(1)
    waker = listening.server.loop.calls.fd
    reader, writer = os.pipe()
    listening.server.close()
    os.dup2(writer, waker)
    os.set_blocking(reader, False)
    lingering.set()
    wait_for_closers()
    with pytest.raises(BlockingIOError):
        os.read(reader, 8)
    for fd in (reader, writer, waker):
        os.close(fd)


# -- the system has no room for a client ------------------------------------------------------------------------------


def full(monkeypatch, *numbers):
    """Let the next accepts fail with these errnos."""
    accept, left = transport.accept, list(numbers)

    def fails(listener):
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return accept(listener)

    monkeypatch.setattr(transport, "accept", fails)
    return left


@pytest.mark.row("server", 2)
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EACCES, errno.ENFILE])
def test_a_client_that_cannot_be_accepted_is_looked_for_after_a_rest(listening, monkeypatch, caplog, number):
    left = full(monkeypatch, number, number, number, number)
    sock = listening.connect()
    listening.turns(50)
    assert len(left) >= 2, "the queue is not looked at again and again"
    assert caplog.text.count("no client can be accepted") == 1
    while left:
        listening.driver.inputs.time += REST_NS
        listening.turns(1)
    listening.driver.inputs.time += REST_NS
    assert listening.answer(sock) == 0


@pytest.mark.row("server", 2)
def test_an_idle_server_looks_again_at_the_end_of_a_rest(listening, monkeypatch):
    full(monkeypatch, errno.ENOMEM)
    listening.connect()
    listening.turns(1)
    listening.driver.inputs.waits.clear()
    listening.turns(1)
    assert 0 < listening.driver.inputs.waits[0] <= REST_NS / 1e6
    listening.driver.inputs.time += REST_NS
    listening.turns(2)
    assert listening.driver.inputs.waits[-1] == FOREVER
    assert len(listening.server.transport._connections) == 1


@pytest.mark.row("server", 2)
def test_without_a_descriptor_left_clients_are_hung_up_on_and_the_others_served(listening, caplog):
    first = listening.connect()
    assert listening.answer(first) == 0
    waiting = [listening.connect("dma0") for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = [os.eventfd(0) for _ in range(highest)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken), limits[1]))
    while len(taken) > 1:  # all below the limit are taken
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    try:
        listening.turns(5)
        assert [sock.recv(1) for sock in waiting] == [b""] * 3
        assert caplog.text.count("no client can be accepted: Too many open files") == 1
        listening.say(first)  # once too often: refused, but served
        listening.turns(2)
        assert first.recv(Header.SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    assert listening.answer(listening.connect("dma0")) == 0


@pytest.mark.row("server", 7)
def test_an_exception_in_a_session_ends_that_one_and_no_other(listening, monkeypatch, caplog):
    first, second = listening.connect("iommu"), listening.connect("dma0")
    assert (listening.answer(first), listening.answer(second)) == (0, 0)
    connection = next(c for c in listening.server.transport._connections.values() if c.function.name == "dma0")
    monkeypatch.setattr(connection.session, "receive", lambda *_: 1 // 0)
    second.sendall(b"x")
    listening.turns(2)
    second.settimeout(5)
    while second.recv(1 << 16):
        pass
    assert "ZeroDivisionError" in caplog.text
    assert [c.function.name for c in listening.server.transport._connections.values()] == ["iommu"]
    assert listening.answer(listening.connect("dma0")) == 0


@pytest.fixture
def lingering(monkeypatch):
    """Descriptors take as long to close as one likes: until the event that this is."""
    may_close = threading.Event()
    close, closing = os.close, socket.socket.close

    def linger():
        if threading.current_thread().name == "closer":
            may_close.wait(10)

    monkeypatch.setattr(os, "close", lambda fd: (linger(), close(fd)))
    monkeypatch.setattr(socket.socket, "close", lambda sock: (linger(), closing(sock)))
    yield may_close
    may_close.set()
    wait_for_closers()


def wait_for_closers():
    for thread in threading.enumerate():
        if thread.name == "closer":
            thread.join(10)


@pytest.mark.row("server", 9)
def test_who_comes_while_the_last_client_s_descriptors_are_being_closed_waits_for_that(listening, lingering):
    first = listening.connect("dma0")
    listening.answer(first)
    with open(os.devnull) as kept:
        socket.send_fds(first, [Header(8, Command.DEVICE_RESET, Header.SIZE, 0, 0).pack()], [kept.fileno()])
        listening.turns(2)
    first.close()
    listening.turns(2)
    second = listening.connect("dma0")
    listening.say(second)
    listening.turns(3)
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    lingering.set()
    wait_for_closers()
    listening.turns(2)
    assert Header.unpack(second.recv(Header.SIZE)).error == 0


@pytest.mark.row("server", 9)
def test_a_client_that_comes_and_goes_while_its_descriptors_linger_is_kept_out(listening, lingering):
    """What waits to be closed is bounded, however often it comes."""
    closer = listening.server.transport._closers["dma0"]
    first = listening.connect("dma0")
    with open(os.devnull) as kept:
        socket.send_fds(first, [b"x"], [kept.fileno()])
        listening.turns(2)
    first.close()
    listening.turns(1)
    for _ in range(3 * MOST_LEFT):
        sock = listening.connect("dma0")
        sock.sendall(b"never read")
        listening.turns(1)
        sock.close()
        listening.turns(1)
    assert closer.full
    assert len(closer._left) <= MOST_LEFT + 1
    assert listening.answer(listening.connect("iommu")) == 0, "nobody else waits"
    lingering.set()
    for _ in range(10 * MOST_LEFT):  # works off those that came and went
        wait_for_closers()
        listening.driver.inputs.time += REST_NS
        listening.turns(1)
    assert listening.answer(listening.connect("dma0")) == 0


@pytest.mark.row("server", 9)
def test_a_client_whose_descriptors_are_being_closed_is_not_read_and_goes_on_afterwards(listening, lingering):
    sock, other = listening.connect("dma0"), listening.connect("iommu")
    assert listening.answer(sock) == 0
    header = Header(8, Command.DEVICE_RESET, Header.SIZE, 0, 0).pack()
    with open(os.devnull) as kept:
        socket.send_fds(sock, [header], [kept.fileno()])
        listening.turns(2)
    assert len(sock.recv(Header.SIZE)) == Header.SIZE
    sock.sendall(header)
    assert listening.answer(other) == 0, "nobody else waits"
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    lingering.set()
    wait_for_closers()
    listening.turns(3)
    assert len(sock.recv(Header.SIZE)) == Header.SIZE


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
    close_all(sockets)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.row("server", 85)
def test_the_file_of_another_server_in_the_place_of_ours_stays(make_driver, tmp_path):
    sockets = listen_all(make_driver().machine, tmp_path, {})
    path = tmp_path / "iommu.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        close_all(sockets)
    assert list(tmp_path.iterdir()) == [path]


# -- numbers of descriptors that come back ----------------------------------------------------------------------------


def served_by(listening, name):
    """The number of the descriptor by which the client of a function is served."""
    return next(fd for fd, served in listening.server.transport._connections.items() if served.function.name == name)


@pytest.fixture
def fill_below():
    """Take all numbers of descriptors below one."""
    taken = []

    def fill(number):
        while not taken or taken[-1] < number:
            taken.append(os.eventfd(0))
        os.close(taken.pop())

    yield fill
    for fd in taken:
        os.close(fd)


@pytest.mark.row("server", 34)
def test_what_the_end_of_a_client_takes_is_no_debt_of_the_next_one(listening, fill_below, monkeypatch):
    """Who connects next gets the number of the last one's descriptor, and nothing else of it."""
    inputs, device = listening.driver.inputs, listening.driver.machine.endpoints["dma0"]
    disconnected, received = device.disconnected, []

    def take_long():
        inputs.time += 300_000_000
        disconnected()

    monkeypatch.setattr(inputs, "worked_ns", lambda: inputs.time)
    monkeypatch.setattr(device, "disconnected", take_long)
    receive = inputs.receive
    monkeypatch.setattr(inputs, "receive", lambda sock, size: received.append(sock.fileno()) or receive(sock, size))
    busy, first, second = listening.connect("iommu"), listening.connect("dma0"), socket.socket(socket.AF_UNIX)
    assert (listening.answer(busy), listening.answer(first)) == (0, 0)
    number = served_by(listening, "dma0")
    first.shutdown(socket.SHUT_RDWR)
    listening.turns(2)
    fill_below(number)
    second.connect(str(listening.folder / "dma0.sock"))
    listening.turns(2)
    assert served_by(listening, "dma0") == number

    received.clear()
    inputs.time_step = SOCKETS_NS // 20
    busy.sendall(Header(8, Command.DEVICE_RESET, Header.SIZE, HeaderFlags.NO_REPLY, 0).pack() * 200)
    listening.say(second)
    listening.turns(3)
    assert number in received
    second.close()


@pytest.mark.row("server", 7)
def test_what_was_seen_of_a_client_that_is_closed_is_not_taken_for_the_next_one_s(
    listening, lingering, fill_below, monkeypatch
):
    """In one look at the sockets: a client is closed, another gets its number, and then what was seen comes up."""
    gone, first = listening.connect("dma1"), listening.connect("dma0")
    again, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    assert (listening.answer(gone), listening.answer(first)) == (0, 0)
    number = served_by(listening, "dma1")
    with open(os.devnull) as kept:
        socket.send_fds(first, [Header(8, Command.DEVICE_RESET, Header.SIZE, 0, 0).pack()], [kept.fileno()])
        listening.turns(2)
    first.shutdown(socket.SHUT_RDWR)  # what it has sent is still being closed
    listening.turns(2)
    fill_below(number)
    monkeypatch.setattr(listening.driver.machine.endpoints["dma1"], "disconnected", lambda: None)  # takes numbers, too
    gone.shutdown(socket.SHUT_RDWR)
    again.connect(str(listening.folder / "dma1.sock"))
    second.connect(str(listening.folder / "dma0.sock"))
    listeners = [listening.sockets[name].fileno() for name in ("dma1", "dma0")]
    monkeypatch.setattr(
        listening.server.loop.watches._fairness,
        "order",
        lambda ready: sorted(ready, key=lambda watch: [*listeners, number].index(watch.fd)),
    )
    listening.turns(1)
    assert served_by(listening, "dma0") == number
    lingering.set()
    wait_for_closers()
    monkeypatch.undo()
    assert listening.answer(second) == 0
    for sock in (again, second):
        sock.close()


# -- more that the system does not give --------------------------------------------------------------------------------


@pytest.mark.row("server", 2)
def test_to_find_out_who_hung_up_no_descriptor_is_needed(listening, monkeypatch):
    first = listening.connect("dma0")
    assert listening.answer(first) == 0

    def no_room():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(select, "epoll", no_room)
    second = listening.connect("dma0")
    assert listening.answer(second) == errno.EBUSY
    first.shutdown(socket.SHUT_RDWR)
    assert listening.answer(listening.connect("dma0")) == 0


@pytest.mark.row("server", 2)
def test_clients_are_served_although_no_descriptor_is_left_to_tell_their_processes_apart(listening, monkeypatch):
    def no_room(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    peers._pidfds_have_inodes.cache_clear()
    with monkeypatch.context() as full:
        full.setattr(os, "pidfd_open", no_room)
        assert listening.answer(listening.connect("dma0")) == 0
    assert listening.answer(listening.connect("dma1")) == 0


@pytest.mark.row("server", 9)
def test_closing_that_cannot_begin_for_want_of_a_thread_is_tried_again(listening, monkeypatch):
    def no_thread(_):
        raise RuntimeError("can't start new thread")

    sock = listening.connect("dma0")
    assert listening.answer(sock) == 0
    listening.driver.inputs.time_step = 0
    request = Header(8, Command.DEVICE_RESET, Header.SIZE, 0, 0).pack()
    with open(os.devnull) as kept, monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_thread)
        socket.send_fds(sock, [request], [kept.fileno()])
        listening.turns(3)
        sock.sendall(request)
        listening.driver.inputs.waits.clear()
        listening.turns(3)
        assert set(listening.driver.inputs.waits) == {REST_NS / 1e6}, "it neither sleeps for ever nor not at all"
    listening.driver.inputs.time += REST_NS
    listening.turns(1)
    wait_for_closers()
    listening.turns(2)
    assert len(sock.recv(3 * Header.SIZE)) == 2 * Header.SIZE
