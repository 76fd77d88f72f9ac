"""Queues of a tap, and what a server makes around it: bridges, veth pairs, limits; all in namespaces of the tests."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pviommu.inputs import LiveInputs
from pviommu.net import namespace, plumbing
from pviommu.net.namespace import Namespace
from pviommu.net.offload import PLAIN
from pviommu.net.tap import Tap

from .test_tap import FRAME, name

__all__ = ["name"]


@pytest.fixture
def place(name: str) -> Iterator[Namespace]:
    """A namespace that stays when taps in it are gone."""
    made = Namespace(name)
    yield made
    made.close()


@pytest.fixture
def other(name: str) -> Iterator[str]:
    """The name of another one."""
    yield f"{name}-b"
    from pyroute2 import netns

    left = f"{name}-b" in netns.listnetns()
    if left:
        netns.remove(f"{name}-b")
    assert not left, "the other namespace was left behind"


def interfaces(where: Namespace) -> dict[str, Any]:
    """All but lo, by name."""

    def look() -> dict[str, Any]:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            links = {link.get_attr("IFLA_IFNAME"): link for link in route.get_links()}
            for each in links.values():
                each["addresses"] = [
                    f"{row.get_attr('IFA_ADDRESS')}/{row['prefixlen']}"
                    for row in route.get_addr(index=each["index"], family=socket.AF_INET)
                ]
            return links

    found = where.inside(look)
    del found["lo"]
    return found


def kind(link: Any) -> str:
    return str(link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND"))


def change(where: Namespace, *arguments: Any, **values: Any) -> None:
    def do() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            for key in ("index", "master"):
                if isinstance(values.get(key), str):
                    values[key] = route.link_lookup(ifname=values[key])[0]
            route.link(*arguments, **values)

    where.inside(do)


def tap(where: Namespace, name: str = "tap0", card: str = "net0", **options: Any) -> Tap:
    return Tap(card, LiveInputs(), name, netns=where.name, **options)


def listening(where: Namespace, name: str) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        made.bind((name, 0x88B5))
        made.settimeout(10)
        return made

    return where.inside(opened)


class Loop:
    """Watches descriptors, as the server's does."""

    def __init__(self) -> None:
        self.watches: dict[int, Watched] = {}
        self.changes = 0

    def watch(self, fd: int, callback: Callable[[int, Callable[[], bool]], None]) -> Watched:
        self.watches[fd] = Watched(self, fd, callback)
        return self.watches[fd]

    def changed(self) -> None:
        self.changes += 1

    def turn(self, seconds: float = 10) -> list[int]:
        """Tell of what is ready: which descriptors."""
        with select.epoll() as epoll:
            for fd, watch in self.watches.items():
                epoll.register(fd, watch.events)
            ready = epoll.poll(seconds)
        for fd, events in ready:
            self.watches[fd].callback(events, lambda: True)
        return [fd for fd, _ in ready]


class Watched:
    def __init__(self, loop: Loop, fd: int, callback: Callable[[int, Callable[[], bool]], None]) -> None:
        self.loop, self.fd, self.callback, self.events = loop, fd, callback, 1

    def close(self) -> None:
        del self.loop.watches[self.fd]


# -- queues ----------------------------------------------------------------------------------------------------------


def queues(where: Namespace) -> tuple[int, int]:
    """How many a tap has, attached and detached."""
    data = interfaces(where)["tap0"].get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return data.get_attr("IFLA_TUN_NUM_QUEUES"), data.get_attr("IFLA_TUN_NUM_DISABLED_QUEUES")


def test_a_tap_has_a_queue_for_each_pair_and_those_in_use_are_attached(place: Namespace) -> None:
    card = tap(place, pairs=4)
    assert card.descriptors == 4
    seen = [queues(place)]
    for pairs in (3, 4, 1, 2):
        card.use(pairs)
        seen.append(queues(place))
    card.close()

    assert seen == [(1, 3), (3, 1), (4, 0), (1, 3), (2, 2)]
    assert interfaces(place) == {}


def test_frames_of_a_connection_come_by_the_queue_that_sends_it(place: Namespace) -> None:
    """The kernel's choice, which it learns from what is sent."""
    card, loop = tap(place, pairs=2, address="10.9.8.1/24"), Loop()
    card.start(loop.watch, loop.changed)
    card.use(2)
    assert len(loop.watches) == 2
    second = list(loop.watches)[1]

    def ping(sequence: int) -> bytes:
        icmp = bytes([8, 0, 0, 0, 0, 1, 0, sequence])
        icmp = icmp[:2] + checksum(icmp) + icmp[4:]
        ip = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0\x0a\x09\x08\x02\x0a\x09\x08\x01"
        return mac(place) + b"\2\0\0\0\0\1\x08\0" + ip[:10] + checksum(ip) + ip[12:] + icmp

    change_neighbour(place)
    by: set[int] = set()
    for sequence in range(20):  # the kernel learns of a flow with its first packets
        assert card.send(PLAIN, ping(sequence), 1)
        for _ in range(10):
            card.rest()
            ready = loop.turn(1)
            found = [frame for _, frame in iter(card.receive, None) if frame[12:14] == b"\x08\0" and frame[34] == 0]
            if found:
                by = set(ready)
                break
    card.close()

    assert second in by


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def mac(where: Namespace) -> bytes:
    return bytes.fromhex(interfaces(where)["tap0"].get_attr("IFLA_ADDRESS").replace(":", ""))


def change_neighbour(where: Namespace) -> None:
    """The kernel need not ask who has 10.9.8.2."""

    def do() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            index = route.link_lookup(ifname="tap0")[0]
            route.neigh("replace", dst="10.9.8.2", lladdr="02:00:00:00:00:01", ifindex=index, state="permanent")

    where.inside(do)


def test_a_queue_that_is_not_in_use_is_not_watched(place: Namespace) -> None:
    card, loop = tap(place, pairs=4), Loop()
    card.use(3)
    card.start(loop.watch, loop.changed)
    assert len(loop.watches) == 3
    card.use(1)
    assert len(loop.watches) == 1
    assert loop.turn(0) is not None
    assert card.is_up
    card.use(4)
    assert len(loop.watches) == 4
    card.stop()
    assert loop.watches == {}
    card.close()


def test_frames_leave_by_a_tap_whatever_queue_they_are_sent_by(place: Namespace) -> None:
    card = tap(place, pairs=3)
    card.use(2)
    with listening(place, "tap0") as host:
        for pair in (0, 1, 2):  # the third is not in use
            assert card.send(PLAIN, FRAME + bytes([pair]), pair)
        assert sorted(host.recv(2000)[-1] for _ in range(3)) == [0, 1, 2]
    card.close()


def test_a_tap_that_exists_with_one_queue_serves_all_pairs(place: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    change(place, "add", ifname="tap0", kind="tuntap", mode="tap", ifr={"vnet_hdr": 1, "no_pi": 1})
    change(place, "set", index="tap0", state="up")
    card = tap(place, pairs=4)
    card.use(4)
    assert card.send(PLAIN, FRAME, 3)
    card.close()

    assert [record.message for record in caplog.records] == [
        "net0: link tap tap0: it has one queue, which all pairs share"
    ]


def test_a_tap_that_exists_with_several_queues_has_them(place: Namespace) -> None:
    ifr = {"vnet_hdr": 1, "no_pi": 1, "multi_queue": 1}
    change(place, "add", ifname="tap0", kind="tuntap", mode="tap", ifr=ifr)
    card = tap(place, pairs=3)
    assert card.descriptors == 3
    card.close()
    assert list(interfaces(place)) == ["tap0"]


def test_a_tap_that_is_deleted_is_made_anew(place: Namespace) -> None:
    card, loop = tap(place, pairs=2, bridge="br0"), Loop()
    card.start(loop.watch, loop.changed)
    change(place, "del", index="tap0")
    assert not card.send(PLAIN, FRAME)
    assert (card.is_up, card.is_gone, loop.watches) == (False, True, {})

    card.again()

    assert (card.is_up, card.is_gone, card.descriptors) == (True, False, 2)
    assert set(interfaces(place)) == {"tap0", "br0"}
    assert card.send(PLAIN, FRAME)
    card.close()


def test_an_interface_whose_card_is_set_down_has_no_carrier(place: Namespace) -> None:
    card = tap(place)
    carriers = [interfaces(place)["tap0"].get_attr("IFLA_CARRIER")]
    for is_up in (False, True):
        card.carry(is_up)
        carriers.append(interfaces(place)["tap0"].get_attr("IFLA_CARRIER"))
    card.close()

    assert carriers == [1, 0, 1]


def test_a_tap_that_is_made_anew_is_in_the_namespace_that_it_was_in(name: str) -> None:
    card = tap_in_a_new_one(name)
    place = Namespace(name)
    assert not place.is_ours
    change(place, "del", index="tap0")
    card.send(PLAIN, FRAME)
    change(place, "add", ifname="mine", kind="veth", peer={"ifname": "yours"})
    card.again()

    assert set(interfaces(place)) == {"tap0", "mine", "yours"}
    card.close()


def tap_in_a_new_one(name: str) -> Tap:
    return Tap("net0", LiveInputs(), "tap0", netns=name)


# -- one that exists ---------------------------------------------------------------------------------------------------


@pytest.fixture
def existing(place: Namespace) -> Namespace:
    change(place, "add", ifname="tap0", kind="tuntap", mode="tap", ifr={"vnet_hdr": 1, "no_pi": 1})
    return place


def test_what_a_tap_that_exists_lacks_of_the_topology_is_told(
    existing: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    tap(existing, mtu=9000, address="10.9.8.1/24").close()

    assert [record.message for record in caplog.records] == [
        f"net0: link tap tap0 exists, and stays as it is: {what}"
        for what in (
            "its mtu is 1500, and the card's 9000",
            "it does not have address 10.9.8.1/24",
            "it is down: ip link set tap0 up",
        )
    ]
    found = interfaces(existing)["tap0"]
    assert (found.get_attr("IFLA_MTU"), found["addresses"], found["flags"] & 1) == (1500, [], 0)


def test_of_a_tap_that_is_as_the_topology_says_nothing_is_told(
    existing: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    def address() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.addr("add", index=route.link_lookup(ifname="tap0")[0], address="10.9.8.1", prefixlen=24)

    existing.inside(address)
    change(existing, "add", ifname="br0", kind="bridge")
    change(existing, "set", index="tap0", state="up", mtu=1400)
    change(existing, "set", index="tap0", master="br0")
    tap(existing, mtu=1400, address="10.9.8.1/24", bridge="br0").close()

    assert caplog.records == []
    assert set(interfaces(existing)) == {"tap0", "br0"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay_us": 1}, "it exists: delay-us, loss-percent and rate-kbit are for a tap that the server makes"),
        ({"rate_kbit": 1}, "it exists: delay-us, loss-percent and rate-kbit are for a tap that the server makes"),
        ({"bridge": "br0"}, "it exists, and is not in bridge br0: ip link set tap0 master br0"),
    ],
)
def test_what_would_have_to_be_made_for_a_tap_that_exists_is_refused(
    existing: Namespace, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OSError, match=f"net0: link tap tap0: {text}"):
        tap(existing, **options)
    assert set(interfaces(existing)) == {"tap0"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_tap_with_several_queues_that_another_process_uses_is_not_shared(place: Namespace, exists: bool) -> None:
    """The kernel would let it: frames would go to either of them."""
    if exists:
        ifr = {"vnet_hdr": 1, "no_pi": 1, "multi_queue": 1}
        change(place, "add", ifname="tap0", kind="tuntap", mode="tap", ifr=ifr)
    first = tap(place, pairs=2)
    with pytest.raises(OSError, match=r"net1: link tap tap0: .*another process uses it"):
        tap(place, card="net1", pairs=2, mtu=9000)

    assert queues(place) == (1, 1)
    assert interfaces(place)["tap0"].get_attr("IFLA_MTU") == 1500
    first.close()
    assert set(interfaces(place)) == ({"tap0"} if exists else set())


def test_an_interface_that_is_gone_meanwhile_is_an_error_of_the_host(place: Namespace) -> None:
    """pyroute2's own errors are no OSError: they would end a server instead of a line that says what failed."""

    def look() -> None:
        with plumbing._Route() as route:
            route.link(1 << 20)

    with pytest.raises(OSError, match="No such device"):
        place.inside(look)


def test_a_namespace_of_a_veth_that_cannot_be_made_is_named(
    place: Namespace, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyroute2 import netns

    def refuse(_name: str) -> None:
        raise OSError(errno.EPERM, "mount rundir failed")

    monkeypatch.setattr(netns, "create", refuse)
    with pytest.raises(
        OSError, match=f"link tap tap0: veth-netns {other}: Operation not permitted .this needs root, and"
    ):
        tap(place, bridge="br0", veth="pvt0", veth_netns=other)
    assert interfaces(place) == {}


@pytest.mark.parametrize("rate", [1, 40_000_000])
def test_a_rate_that_the_kernel_cannot_be_told_is_named_and_nothing_is_left(place: Namespace, rate: int) -> None:
    with pytest.raises(OSError, match=rf"net0: link tap tap0: tbf rate {rate}kbit, .*: Numerical result out of range"):
        tap(place, rate_kbit=rate)
    assert interfaces(place) == {}


# -- namespaces --------------------------------------------------------------------------------------------------------


def test_a_namespace_of_a_killed_server_stays_as_long_as_others_have_taps_in_it(name: str) -> None:
    """Otherwise the next start would put its card into another network than theirs."""
    script = (
        "import sys; from pviommu.net.namespace import Namespace\n"
        "made = Namespace(sys.argv[1]); print('made', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout
        assert maker.stdout.readline() == "made\n"
        other = Tap("net1", LiveInputs(), "tap1", netns=name)
        maker.kill()
    again = Namespace(name)

    assert set(interfaces(again)) == {"tap1"}
    assert again.is_ours
    other.close()
    again.close()


# -- bridges -----------------------------------------------------------------------------------------------------------


def test_a_bridge_that_is_made_has_the_tap_and_the_address_and_is_gone_afterwards(place: Namespace) -> None:
    card = tap(place, bridge="br0", address="10.9.8.1/24")
    found = interfaces(place)
    assert kind(found["br0"]) == "bridge"
    assert found["tap0"].get_attr("IFLA_MASTER") == found["br0"]["index"]
    assert (found["br0"]["addresses"], found["tap0"]["addresses"]) == (["10.9.8.1/24"], [])
    assert found["br0"]["flags"] & found["tap0"]["flags"] & 1
    card.close()

    assert interfaces(place) == {}


def test_a_bridge_that_exists_is_joined_and_stays(place: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    change(place, "add", ifname="br0", kind="bridge")
    card = tap(place, bridge="br0", address="10.9.8.1/24")
    found = interfaces(place)
    assert found["tap0"].get_attr("IFLA_MASTER") == found["br0"]["index"]
    assert found["br0"]["addresses"] == []
    card.close()

    assert set(interfaces(place)) == {"br0"}
    assert [record.message for record in caplog.records] == [
        "bridge br0 exists, and stays as it is: it does not have 10.9.8.1/24"
    ]


def test_a_bridge_stays_until_the_last_card_has_left_it(place: Namespace) -> None:
    one, two = tap(place, bridge="br0"), tap(place, "tap1", "net1", bridge="br0")
    with listening(place, "br0") as host:
        assert one.send(PLAIN, FRAME)
        assert host.recv(2000) == FRAME
    one.close()
    assert set(interfaces(place)) == {"tap1", "br0"}
    two.close()

    assert interfaces(place) == {}


def test_a_bridge_that_is_none_is_named_and_nothing_is_left(place: Namespace) -> None:
    change(place, "add", ifname="br0", kind="veth", peer={"ifname": "br1"})
    with pytest.raises(OSError, match=r"net0: link tap tap0: bridge br0: that is no bridge, but veth, in netns"):
        tap(place, bridge="br0")

    assert set(interfaces(place)) == {"br0", "br1"}


def test_what_a_server_that_was_killed_has_made_is_taken_away_at_the_next_start(place: Namespace, other: str) -> None:
    beside = Namespace(other)
    script = (
        "import os, signal, sys; from pviommu.inputs import LiveInputs; from pviommu.net.tap import Tap\n"
        "options = dict(bridge='br0', veth='pvt0', veth_netns=sys.argv[2])\n"
        "card = Tap('net0', LiveInputs(), 'tap0', netns=sys.argv[1], **options)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, place.name, other], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert set(interfaces(place)) == {"br0", "pvt0-pv"}
    assert set(interfaces(beside)) == {"pvt0"}

    tap(place, bridge="br1", veth="pvt0", veth_netns=other).close()

    assert interfaces(place) == {}
    assert interfaces(beside) == {}
    beside.close()


def test_a_bridge_of_a_server_that_was_killed_stays_while_somebody_is_in_it(place: Namespace) -> None:
    script = (
        "import os, signal, sys; from pviommu.inputs import LiveInputs; from pviommu.net.tap import Tap\n"
        "card = Tap('net0', LiveInputs(), 'tap0', netns=sys.argv[1], bridge='br0')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, place.name], check=False)
    change(place, "add", ifname="v0", kind="veth", peer={"ifname": "v1"})
    change(place, "set", index="v0", master="br0")
    tap(place, bridge="br1").close()
    assert set(interfaces(place)) == {"br0", "v0", "v1"}

    change(place, "del", index="v0")
    tap(place, bridge="br0").close()
    assert interfaces(place) == {}


# -- veth --------------------------------------------------------------------------------------------------------------


def test_a_veth_pair_leads_from_the_bridge_into_another_namespace(place: Namespace, other: str) -> None:
    options = {"veth": "pvt0", "veth_netns": other, "veth_address": "10.9.8.2/24", "mtu": 1400}
    card = tap(place, bridge="br0", **options)
    beside = Namespace(other)
    assert not beside.is_ours
    here, there = interfaces(place), interfaces(beside)["pvt0"]
    assert kind(there) == kind(here["pvt0-pv"]) == "veth"
    assert here["pvt0-pv"].get_attr("IFLA_MASTER") == here["br0"]["index"]
    assert (there["addresses"], there.get_attr("IFLA_MTU"), there["flags"] & 1) == (["10.9.8.2/24"], 1400, 1)
    with listening(beside, "pvt0") as far:
        assert card.send(PLAIN, FRAME)
        assert far.recv(2000) == FRAME
    card.close()

    assert interfaces(place) == {}
    from pyroute2 import netns

    assert other not in netns.listnetns()


def test_a_veth_pair_whose_name_is_taken_is_named_and_nothing_is_left(place: Namespace, other: str) -> None:
    beside = Namespace(other)
    change(beside, "add", ifname="pvt0", kind="veth", peer={"ifname": "mine"})
    with pytest.raises(OSError, match=r"net0: link tap tap0: veth pvt0: File exists, in netns"):
        tap(place, bridge="br0", veth="pvt0", veth_netns=other)

    assert set(interfaces(beside)) == {"pvt0", "mine"}
    assert interfaces(place) == {}
    beside.close()


# -- limits ------------------------------------------------------------------------------------------------------------


def queueing(where: Namespace) -> list[Any]:
    def look() -> list[Any]:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            return list(route.get_qdiscs(route.link_lookup(ifname="tap0")[0]))

    return where.inside(look)


def test_frames_for_the_guest_are_held_up_at_a_rate(place: Namespace) -> None:
    card = tap(place, rate_kbit=8000)
    [found] = queueing(place)
    card.close()

    assert found.get_attr("TCA_KIND") == "tbf"
    assert found.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"] == 1_000_000


def test_frames_for_the_guest_are_delayed_and_lost(place: Namespace) -> None:
    options: dict[str, Any] = {"delay_us": 5000, "loss_percent": 3, "rate_kbit": 8000}
    if not _has_netem(place):
        text = r"netem delay 5000, loss 3: No such file or directory \(modprobe sch_netem: "
        with pytest.raises(OSError, match=text):
            tap(place, **options)
        assert interfaces(place) == {}
        pytest.skip("this kernel has no netem")
    card = tap(place, **options)
    kinds = [each.get_attr("TCA_KIND") for each in queueing(place)]
    card.close()

    assert kinds == ["netem", "tbf"]


def _has_netem(where: Namespace) -> bool:
    def ask() -> bool:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        with IPRoute() as route:
            try:
                route.tc("add", "netem", route.link_lookup(ifname="lo")[0])
            except NetlinkError:
                return False
        return True

    return where.inside(ask)


def test_who_may_not_lock_others_out_makes_what_is_around_a_tap_all_the_same(
    place: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a user namespace, whose network is its own."""
    monkeypatch.setattr(namespace, "NOTES", namespace.NOTES / "missing" / os.devnull)
    card = tap(place, bridge="br0")
    assert set(interfaces(place)) == {"tap0", "br0"}
    card.close()

    assert interfaces(place) == {}
