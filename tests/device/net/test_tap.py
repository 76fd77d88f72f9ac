"""Taps of this host, in network namespaces of the tests' own."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pviommu.inputs import LiveInputs
from pviommu.net import namespace, tap
from pviommu.net.namespace import Namespace
from pviommu.net.offload import NEEDS_CSUM, PLAIN
from pviommu.net.plumbing import Plumbing
from pviommu.net.tap import Tap

BROADCAST = b"\xff" * 6
FRAME = BROADCAST + b"\2\0\0\0\0\1" + b"\x88\xb5" + bytes(range(100))


def _can_make_taps() -> str:
    """What this host lacks."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "this host has no /dev/net/tun"
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "this host allows no network namespaces"


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a namespace that there is not, before and after."""
    if lack := _can_make_taps():
        pytest.skip(lack)
    from pyroute2 import netns

    name = f"pviommu-test-{os.getpid()}"
    assert name not in netns.listnetns()
    yield name
    left = name in netns.listnetns()
    if left:
        netns.remove(name)
    assert not left, "the namespace was left behind"
    assert not (namespace.NOTES / name).exists()


class Watched:
    """A loop that watches one descriptor, and looks when it is told."""

    def __init__(self) -> None:
        self.events = 1
        self.fd = -1
        self.changes = 0
        self.callback: Callable[[int, Callable[[], bool]], None] | None = None
        self.has_more = False

    def watch(self, fd: int, callback: Callable[[int, Callable[[], bool]], None]) -> Watched:
        self.fd, self.callback = fd, callback
        return self

    def close(self) -> None:
        self.callback = None

    def changed(self) -> None:
        self.changes += 1

    def look(self, events: int = 1) -> None:
        if self.callback:
            self.callback(events, lambda: True)


@pytest.fixture
def card(name: str) -> Iterator[Tap]:
    made = Tap("net0", LiveInputs(), "tap0", netns=name, mtu=1400, address="10.9.8.1/24")
    yield made
    made.close()


def inside(name: str, call: Callable[[], Any]) -> Any:
    return Namespace(name).inside(call)


def packets(name: str) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        made.bind(("tap0", 0x88B5))
        made.settimeout(10)
        return made

    found: socket.socket = inside(name, opened)
    return found


def received(card: Tap, watched: Watched, wanted: Callable[[bytes], bool]) -> tuple[bytes, bytes]:
    """The first frame that is wanted; the kernel sends some of its own."""
    for _ in range(1000):
        watched.look()
        while (found := card.receive()) is not None:
            if wanted(found[1]):
                return found
        time.sleep(0.005)
    raise AssertionError("it did not arrive")


def test_a_tap_that_is_made_is_set_up_and_gone_afterwards(name: str, card: Tap) -> None:
    def seen() -> tuple[str, str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("10.9.8.1", 0))
        from pyroute2 import IPRoute

        with IPRoute() as route:
            [link] = route.get_links(route.link_lookup(ifname="tap0"))
            return link.get_attr("IFLA_MTU"), link["state"]

    assert inside(name, seen) == (1400, "up")
    card.close()
    card.close()


def test_frames_go_both_ways(name: str, card: Tap) -> None:
    watched = Watched()
    card.start(watched.watch, watched.changed)
    with packets(name) as host:
        assert card.send(PLAIN, FRAME)
        assert host.recv(2000) == FRAME

        host.send(FRAME[::-1][:12] + FRAME[12:])
        header, frame = received(card, watched, lambda frame: frame[12:14] == b"\x88\xb5")

    assert (header, frame) == (PLAIN, FRAME[::-1][:12] + FRAME[12:])
    assert watched.changes > 0


def test_a_tap_without_frames_is_watched_and_one_with_frames_is_not(name: str, card: Tap) -> None:
    watched = Watched()
    card.start(watched.watch, watched.changed)
    watched.look()
    assert watched.events == 0
    while card.receive() is not None:
        pass
    assert watched.events == 0
    card.rest()
    assert watched.events == 1


def test_a_card_that_looks_again_finds_what_came_without_epoll(name: str, card: Tap) -> None:
    watched = Watched()
    card.start(watched.watch, watched.changed)
    watched.look()
    while card.receive() is not None:
        pass
    with packets(name) as host:
        host.send(FRAME)
        assert card.receive() is None  # nobody has looked anew
        found = []
        for _ in range(1000):
            card.look()
            found += iter(card.receive, None)
            if (PLAIN, FRAME) in found:
                break
            time.sleep(0.005)

    assert (PLAIN, FRAME) in found
    assert watched.events == 0


@pytest.mark.parametrize("accepts", [False, True])
def test_a_checksum_is_left_to_a_card_that_accepts_that(name: str, card: Tap, accepts: bool) -> None:
    watched = Watched()
    card.start(watched.watch, watched.changed)
    card.accept(accepts, accepts, accepts)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"data" * 10, ("10.9.8.255", 4242))

    inside(name, send)
    header, frame = received(card, watched, lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 17)

    assert bool(header[0] & NEEDS_CSUM) is accepts
    assert frame.endswith(b"data" * 10)


@pytest.mark.row("virtio", 45)
def test_a_tap_that_is_deleted_underneath_is_a_link_that_is_down(name: str, card: Tap) -> None:
    watched = Watched()
    card.start(watched.watch, watched.changed)

    def delete() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link("del", index=route.link_lookup(ifname="tap0")[0])

    inside(name, delete)
    watched.look()

    assert card.send(PLAIN, FRAME) is False
    assert card.is_up is False
    assert watched.callback is None
    assert watched.changes == 2
    assert card.receive() is None


@pytest.mark.row("virtio", 45)
def test_a_tap_that_is_deleted_is_down_though_nobody_reads_it(name: str, card: Tap) -> None:
    """A card that may not master the bus reads nothing, and epoll says EPOLLERR whatever it is asked for."""
    watched = Watched()
    card.start(watched.watch, watched.changed)
    watched.look()

    def delete() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link("del", index=route.link_lookup(ifname="tap0")[0])

    inside(name, delete)
    with select.epoll() as epoll:
        epoll.register(watched.fd, 0)
        [(_, events)] = epoll.poll(5)
    watched.look(events)

    assert (card.is_up, watched.callback, watched.changes) == (False, None, 2)


@pytest.mark.row("virtio", 44)
def test_a_tap_that_is_down_loses_frames_and_stays(name: str, card: Tap) -> None:
    def set_down() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname="tap0")[0], state="down")

    inside(name, set_down)
    watched = Watched()
    card.start(watched.watch, watched.changed)
    with select.epoll() as epoll:
        epoll.register(watched.fd, select.EPOLLIN)
        for _, events in epoll.poll(0):
            watched.look(events)

    assert card.send(PLAIN, FRAME) is False
    assert card.is_up is True


def test_a_namespace_that_exists_stays(name: str) -> None:
    from pyroute2 import netns

    netns.create(name)
    try:
        Tap("net0", LiveInputs(), "tap0", netns=name).close()
        assert name in netns.listnetns()
    finally:
        netns.remove(name)


def test_a_tap_that_exists_is_used_and_stays(name: str) -> None:
    ours = Namespace(name)

    def make() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            given = {"kind": "tuntap", "mode": "tap", "ifr": {"vnet_hdr": 1, "no_pi": 1}}
            route.link("add", ifname="tap0", **given)

    ours.inside(make)
    card = Tap("net0", LiveInputs(), "tap0", netns=name, mtu=1400)
    with pytest.raises(OSError, match="net0: link tap tap0: Device or resource busy \\(another process uses it\\)"):
        Tap("net0", LiveInputs(), "tap0", netns=name)
    card.close()

    assert _has_tap(ours)
    ours.close()


def _has_tap(ours: Namespace) -> bool:
    from pyroute2 import IPRoute

    def look() -> bool:
        with IPRoute() as route:
            return bool(route.link_lookup(ifname="tap0"))

    return ours.inside(look)


def test_a_tap_of_another_kind_is_named(name: str) -> None:
    ours = Namespace(name)

    def make() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link(
                "add", ifname="tap0", kind="tuntap", mode="tap", ifr={"multi_queue": 1, "vnet_hdr": 1, "no_pi": 1}
            )

    ours.inside(make)
    with pytest.raises(OSError, match=r"net0: link tap tap0: Invalid argument .*ip tuntap add NAME mode tap vnet_hdr"):
        Tap("net0", LiveInputs(), "tap0", netns=name)
    ours.close()


def test_what_a_killed_server_left_behind_is_made_anew(name: str) -> None:
    script = (
        "import os, signal, sys; from pviommu.inputs import LiveInputs; from pviommu.net.tap import Tap\n"
        "card = Tap('net0', LiveInputs(), 'tap0', netns=sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, name], check=False)
    assert killed.returncode == -signal.SIGKILL
    from pyroute2 import netns

    assert name in netns.listnetns()

    again = Namespace(name)

    assert again.is_ours
    assert not _has_tap(again)
    again.close()


def _killed(name: str) -> None:
    """A server that made a namespace and was killed."""
    script = (
        "import os, signal, sys; from pviommu.net.namespace import Namespace\n"
        "Namespace(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, name], check=False).returncode == -signal.SIGKILL


def test_a_namespace_of_that_name_that_somebody_else_made_later_stays(name: str) -> None:
    from pyroute2 import netns

    _killed(name)
    netns.remove(name)
    netns.create(name)
    try:
        again = Namespace(name)
        again.close()

        assert not again.is_ours
        assert name in netns.listnetns()
    finally:
        netns.remove(name)
        (namespace.NOTES / name).unlink()


def test_a_namespace_that_took_the_place_of_ours_is_not_removed(name: str) -> None:
    from pyroute2 import netns

    ours = Namespace(name)
    netns.remove(name)
    netns.create(name)
    try:
        ours.close()

        assert name in netns.listnetns()
        assert not (namespace.NOTES / name).exists()
    finally:
        netns.remove(name)


def test_a_note_of_another_server_is_not_removed(name: str) -> None:
    from pyroute2 import netns

    one = Namespace(name)
    netns.remove(name)
    two = Namespace(name)
    one.close()

    assert two.is_ours
    assert name in netns.listnetns()
    assert (namespace.NOTES / name).exists()
    two.close()


@pytest.mark.parametrize("field", [2, 3, 4])
def test_a_server_that_cannot_be_judged_from_here_counts_as_running(name: str, field: int) -> None:
    """Of another boot, another PID namespace, or for another network namespace."""
    from pyroute2 import netns

    _killed(name)
    note = namespace.NOTES / name
    fields = note.read_text().split()
    fields[field] = "1"
    note.write_text(" ".join(fields))
    try:
        assert Namespace(name).is_ours is False
    finally:
        netns.remove(name)
        note.unlink()


def test_servers_that_start_together_make_one_namespace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyroute2 import netns

    create = netns.create
    monkeypatch.setattr(netns, "create", lambda name: (time.sleep(0.2), create(name)))
    made: list[Namespace] = []
    threads = [threading.Thread(target=lambda: made.append(Namespace(name))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(each.is_ours for each in made) == [False, True]
    assert made[0].inside(os.getpid) == os.getpid()
    for each in made:
        each.close()


def test_who_may_not_write_notes_uses_what_there_is_and_makes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    ours = Namespace(name)
    with monkeypatch.context() as without_rights:
        without_rights.setattr(namespace, "lock", refuse)
        assert Namespace(name).is_ours is False
    ours.close()
    monkeypatch.setattr(namespace, "lock", refuse)
    with pytest.raises(
        OSError, match=rf"net0: link tap tap0: netns {name}: Permission denied \(this needs root, and .*\)$"
    ):
        Tap("net0", LiveInputs(), "tap0", netns=name)


def test_a_namespace_that_cannot_be_made_leaves_no_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where files may be made in /run/netns, and nothing may be mounted."""
    from pyroute2 import netns

    def create(name: str) -> None:
        (Path(netns.NETNS_RUN_DIR) / name).touch(exist_ok=False)
        raise OSError(errno.EPERM, "mount failed")

    Path(netns.NETNS_RUN_DIR).mkdir(exist_ok=True)
    monkeypatch.setattr(netns, "create", create)
    with pytest.raises(OSError, match="mount failed"):
        Namespace(name)

    assert name not in netns.listnetns()
    (Path(netns.NETNS_RUN_DIR) / name).touch()
    try:
        with pytest.raises(OSError, match=rf"netns {name}: Invalid argument \(that is no network namespace\)$"):
            Tap("net0", LiveInputs(), "tap0", netns=name)
    finally:
        netns.remove(name)


def test_a_namespace_that_is_gone_is_not_made_by_looking_into_it(name: str) -> None:
    from pyroute2 import netns

    ours = Namespace(name)
    netns.remove(name)
    with pytest.raises(OSError, match=f"netns {name}: No such file or directory"):
        ours.inside(os.getpid)
    ours.close()

    assert name not in netns.listnetns()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mtu": 65536}, "mtu 65536: Invalid argument, in netns {name}"),
        ({"address": "ff02::1/64"}, "address ff02::1/64: .*, in netns {name}"),
    ],
)
def test_what_cannot_be_set_is_named_and_nothing_is_left(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OSError, match=f"^.*net0: link tap tap0: {text.format(name=name)}$"):
        Tap("net0", LiveInputs(), "tap0", netns=name, **options)


def test_a_namespace_is_not_left_behind_whatever_goes_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(Plumbing, "make", fail)
    with pytest.raises(RuntimeError, match="surprise"):
        Tap("net0", LiveInputs(), "tap0", netns=name)


def test_a_tun_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "_TUN", "/missing/tun")
    with pytest.raises(OSError, match=r"tap7: /missing/tun: No such file or directory \(modprobe tun"):
        Tap("net0", LiveInputs(), "tap7")


def test_a_server_that_is_told_to_end_leaves_nothing(name: str, tmp_path: Path) -> None:
    topology = tmp_path / "tap.toml"
    card = f'kind = "virtio-net"\nstream = 1\nlink = "tap"\ntap = "tap0"\nnetns = "{name}"\n'
    topology.write_text(f'[[endpoint]]\nname = "net0"\n{card}')
    command = [Path(sys.executable).with_name("pviommu"), "serve", topology, "--socket-dir", tmp_path]
    with subprocess.Popen([*command, "--core", "python"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        assert any("listening" in line for line in server.stderr)
        assert _has_tap(Namespace(name))
        server.send_signal(signal.SIGTERM)
        server.stderr.read()

    assert server.returncode == 0


def test_a_namespace_of_a_server_that_runs_is_shared(name: str) -> None:
    one, two = Namespace(name), Namespace(name)

    assert (one.is_ours, two.is_ours) == (True, False)
    two.close()
    one.close()


def test_who_may_not_make_a_tap_is_told_what_to_do() -> None:
    class Refused(LiveInputs):
        def of(self, source: Any, call: Callable[..., Any]) -> Callable[..., Any]:
            def refuse(*_: Any) -> Any:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))

            return refuse if getattr(call, "__name__", "") == "_open" else call

    with pytest.raises(OSError, match="net0: link tap tap7: Operation not permitted \\(making one needs CAP_NET_ADMIN"):
        Tap("net0", Refused(), "tap7")


@pytest.mark.row("virtio", 44)
def test_a_frame_that_the_kernel_cannot_take_is_lost() -> None:
    inputs = Full()
    card = Tap("net0", inputs, "tap7")
    for inputs.problem, is_up in (
        (errno.EAGAIN, True),
        (errno.ENOBUFS, True),
        (errno.EIO, True),
        (errno.EBADFD, False),
    ):
        assert card.send(PLAIN, FRAME) is False
        assert card.is_up is is_up
    card.close()


def test_a_tap_that_cannot_be_made_anew_stays_down() -> None:
    inputs = Full()
    inputs.problem = errno.EBADFD
    card = Tap("net0", inputs, "tap7")
    card.send(PLAIN, FRAME)
    inputs.fakes["_open"] = refuse
    with pytest.raises(OSError, match="net0: link tap tap7: Operation not permitted"):
        card.again()

    card.carry(False)
    card.use(2)
    assert (card.is_up, card.is_gone, card.send(PLAIN, FRAME), card.receive()) == (False, True, False, None)


def refuse(*_: Any) -> Any:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class Full(LiveInputs):
    """A tap that takes no frame."""

    problem = errno.EAGAIN

    def __init__(self) -> None:
        def write(*_: Any) -> Any:
            raise OSError(self.problem, os.strerror(self.problem))

        self.fakes: dict[str, Callable[..., Any]] = {
            "_open": lambda: 99,
            "_ioctl": lambda *_: struct.pack("16sH22x", b"tap7", 0x0800),
            "writev": write,
            "close": lambda _: None,
        }

    def of(self, source: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        return self.fakes.get(getattr(call, "__name__", ""), call)
