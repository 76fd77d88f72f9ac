"""A network card: virtio-net on PCI, not transitional (virtio 1.2, section 5.1)."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

from ..dma.fault import DmaRefusedError
from ..dma.plan import Span
from ..hosted import NAP_MS, Helper, MayGoOn, Watch
from ..net.capture import Capture
from ..net.link import Link
from ..net.offload import (
    GSO_TCPV4,
    GSO_TYPE,
    HEADER_BYTES,
    NEEDS_CSUM,
    PLAIN,
    VLAN_TYPES,
    FrameError,
    Header,
)
from ..net.reception import MAC_TABLE, MIN_FRAME, Filter, flow
from ..pci.config_space import Identity
from ..virtio.features import IN_ORDER, INDIRECT_DESC, RING_EVENT_IDX, RING_PACKED, RING_RESET
from ..virtio.layout import DEVICE_ID_BASE, VENDOR_ID
from ..virtio.ring import Ring
from ..virtio.split import SplitRing
from .endpoint import EndpointState, Options, Surroundings
from .options import text_like
from .plain_traffic import CHECKSUM, SEGMENTS_4, SEGMENTS_6, Accepts, PlainTraffic, Rules, eventfd_of, os_error
from .virtio_device import VirtioDevice

__all__ = ["VirtioNet", "VirtioNetOptions"]

CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20
GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR, SPEED_DUPLEX = 1 << 21, 1 << 22, 1 << 23, 1 << 63
"""``VIRTIO_NET_F_...``"""
ALWAYS = MTU | MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR
OFFLOADS = CSUM | HOST_TSO4 | HOST_TSO6
GUEST_OFFLOADS = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6
NEEDS = {
    GUEST_TSO4: GUEST_CSUM,
    GUEST_TSO6: GUEST_CSUM,
    HOST_TSO4: CSUM,
    HOST_TSO6: CSUM,
    CTRL_RX: CTRL_VQ,
    CTRL_VLAN: CTRL_VQ,
    GUEST_ANNOUNCE: CTRL_VQ,
    MQ: CTRL_VQ,
    CTRL_MAC_ADDR: CTRL_VQ,
}
"""Features that need another one (section 5.1.3.1)."""
_RINGS = INDIRECT_DESC | RING_EVENT_IDX | RING_RESET | IN_ORDER

HEADER = HEADER_BYTES + 2
"""bytes before a frame: with ``num_buffers``"""
MAX_FRAME = MIN_FRAME + 8 + 0xFFFF
"""the longest frame: two VLAN tags, and an IP packet, which segmentation may be left for"""
INBOX_FRAMES, INBOX_BYTES = 256, 2 << 20
"""What waits for buffers of one receive queue, at most; what comes then is dropped."""
BATCH = 16
"""Frames of one queue before those of another."""
MAX_COMMAND = 4 + 2 * (4 + 6 * 4096)
"""bytes of a command, at most: addresses"""
DEVICE_ID, NETWORK_CLASS = DEVICE_ID_BASE + 1, 0x020000
_SPEED, _FULL_DUPLEX = 10_000, 1
_OK, _ERROR = b"\0", b"\1"
_MAC = re.compile(r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")
_MAC_RULE = "an address as 52:54:00:12:34:56, in lower-case hexadecimal digits, of one card: its second digit is even"


_INTERFACE = re.compile(r"^[!-$&-.0-9;-~]{1,15}$")
_INTERFACE_RULE = "a name of an interface: 1 to 15 characters of ASCII, without blanks and / : %"
_NAMESPACE = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_NAMESPACE_RULE = "1 to 64 characters a-z, A-Z, 0-9, _, . and -, not beginning with . or -"
_VETH = re.compile(r"^[!-$&-.0-9;-~]{1,12}$")
_VETH_RULE = "a name of an interface: 1 to 12 characters of ASCII, without blanks and / : %"
_AROUND = ("address", "bridge", "veth", "veth_netns", "veth_address", "delay_us", "loss_percent", "rate_kbit")
"""Options for what is around a tap: :class:`.net.plumbing.Plan`."""
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+/[0-9]{1,3}")


class NetStatus(BitFields, width=16):
    """``virtio_net_config.status``."""

    LINK_UP = BitField(0, doc="frames may arrive")
    ANNOUNCE = BitField(1, doc="the driver should send packets that tell where it is now")


CONFIG = RegisterMap(
    Register("MAC", 0x00, AccessKind.RO, "its address, byte by byte", 6, width=8),
    Register("STATUS", 0x06, AccessKind.RO, "of its link", width=16, holds=NetStatus, reset=None),
    Register("MAX_VIRTQUEUE_PAIRS", 0x08, AccessKind.RO, "pairs of queues", width=16),
    Register("MTU", 0x0A, AccessKind.RO, "the longest packet in bytes", width=16),
    Register("SPEED", 0x0C, AccessKind.RO, "in Mbit/s", width=32, reset=_SPEED),
    Register("DUPLEX", 0x10, AccessKind.RO, "1: full", width=8, reset=_FULL_DUPLEX),
)
"""``virtio_net_config`` (section 5.1.4)."""


class VirtioNetOptions(Options, frozen=True):
    link: Annotated[
        Literal["none", "peer", "tap"],
        Meta(description="where frames go: nowhere, with the link down; to another card; to a tap of the host"),
    ] = "none"
    peer: Annotated[str, Meta(description="name of the card at the other end of a peer link")] | None = None
    tap: (
        Annotated[
            str,
            text_like(_INTERFACE, _INTERFACE_RULE, "name of the tap of a tap link; one that does not exist is made"),
        ]
        | None
    ) = None
    netns: (
        Annotated[
            str,
            text_like(
                _NAMESPACE,
                _NAMESPACE_RULE,
                "network namespace of the tap, if it is another one; one that does not exist is made",
            ),
        ]
        | None
    ) = None
    address: (
        Annotated[str, Meta(description="IP address of a tap that is made, or of its bridge, as 10.0.0.1/24")] | None
    ) = None
    mac: (
        Annotated[str, text_like(_MAC, _MAC_RULE, "its address; 02:70:76:69 and the stream if it is not given")] | None
    ) = None
    mtu: Annotated[int, Meta(ge=68, le=0xFFFF, description="longest packet in bytes")] = 1500
    queue_pairs: Annotated[int, Meta(ge=1, le=4, description="queues for each direction")] = 1
    queue_size: Annotated[Literal[16, 32, 64, 128, 256, 512, 1024], Meta(description="entries of a queue, at most")] = (
        256
    )
    packed: Annotated[bool, Meta(description="whether packed rings are offered")] = False
    offloads: Annotated[bool, Meta(description="whether checksums and segmentation of TCP may be left to it")] = True
    pcap: Annotated[str, Meta(description="file for all frames that it sends and receives")] | None = None
    pcap_limit: Annotated[int, Meta(ge=4096, le=1 << 40, description="bytes of that file, at most")] = 1 << 30
    link_state: Annotated[
        Literal["up", "down"], Meta(description="how the link is set at first; `pviommu ctl link` sets it")
    ] = "up"
    bridge: (
        Annotated[
            str,
            text_like(
                _INTERFACE,
                _INTERFACE_RULE,
                "bridge that a tap that is made joins, in its namespace; one that does not exist is made",
            ),
        ]
        | None
    ) = None
    veth: (
        Annotated[
            str,
            text_like(
                _VETH, _VETH_RULE, "interface that is made in another namespace, connected to the bridge (a veth pair)"
            ),
        ]
        | None
    ) = None
    veth_netns: (
        Annotated[
            str,
            text_like(
                _NAMESPACE,
                _NAMESPACE_RULE,
                "network namespace of `veth`, if it is not that of the server; one that does not exist is made",
            ),
        ]
        | None
    ) = None
    veth_address: Annotated[str, Meta(description="IP address of `veth`, as 10.0.0.2/24")] | None = None
    delay_us: Annotated[
        int,
        Meta(ge=0, le=10_000_000, description="microseconds by which a tap that is made delays frames for the guest"),
    ] = 0
    loss_percent: Annotated[
        int, Meta(ge=0, le=100, description="how many of a hundred frames for the guest it loses, by chance")
    ] = 0
    rate_kbit: Annotated[
        int,
        Meta(ge=0, le=34_000_000, description="kilobits a second for the guest that it lets through, 0: no limit"),
    ] = 0

    def check(self, name: str, others: Mapping[str, object]) -> None:
        for key, pattern, rule in (
            ("tap", _INTERFACE, _INTERFACE_RULE),
            ("netns", _NAMESPACE, _NAMESPACE_RULE),
            ("bridge", _INTERFACE, _INTERFACE_RULE),
            ("veth", _VETH, _VETH_RULE),
            ("veth_netns", _NAMESPACE, _NAMESPACE_RULE),
            ("mac", _MAC, _MAC_RULE),
        ):
            if (value := getattr(self, key)) is not None and not pattern.fullmatch(value):  # "$" lets "\n" follow
                raise ValueError(f"{key.replace('_', '-')} {value!r}: must be {rule}")
        for other_name, other in others.items():
            if other_name != name and self.pcap and getattr(other, "pcap", None) == self.pcap:
                raise ValueError(f"pcap {self.pcap!r}: that is the file of {other_name}")
        for key, link in (("peer", "peer"), *((key, "tap") for key in ("tap", "netns", *_AROUND))):
            if self.link != link and (value := getattr(self, key)):
                raise ValueError(f'{key.replace("_", "-")} {value!r}: only with link = "{link}"')
        for key, needed in (("veth", "bridge"), ("veth_netns", "veth"), ("veth_address", "veth")):
            if (value := getattr(self, key)) is not None and getattr(self, needed) is None:
                raise ValueError(f"{key.replace('_', '-')} {value!r}: only with {needed}")
        if self.rate_kbit == 1:  # how long a frame takes is told to the kernel in 32 bits
            raise ValueError("rate-kbit 1: must be 0, or 2 and more")
        if self.link == "tap":
            self._check_tap(name, others)
        if self.link == "peer":
            self._check_peer(name, others)

    def _check_tap(self, name: str, others: Mapping[str, object]) -> None:
        if self.tap is None:
            raise ValueError('link = "tap" needs tap, the name of an interface')
        for other_name, other in others.items():
            if other_name != name and (getattr(other, "tap", None), getattr(other, "netns", None)) == (
                self.tap,
                self.netns,
            ):
                raise ValueError(f"tap {self.tap!r}: that is the one of {other_name}")
        for key, address in (("address", self.address), ("veth-address", self.veth_address)):
            try:
                if address is not None and not _ADDRESS.fullmatch(address):
                    raise ValueError
                ipaddress.ip_interface(address or "::1/128")
            except ValueError:
                raise ValueError(f"{key} {address!r}: must be as 10.0.0.1/24 or fd00::1/64") from None

    def _check_peer(self, name: str, others: Mapping[str, object]) -> None:
        other = others.get(self.peer or "")
        if self.peer == name or not isinstance(other, VirtioNetOptions):
            raise ValueError(f"peer {self.peer!r}: must be the name of another endpoint of kind virtio-net")
        if other.link != "peer" or other.peer != name:
            raise ValueError(f'peer {self.peer!r}: that must have link = "peer" and peer = {name!r}')


class Traffic(msgspec.Struct):
    """Frames since the last reset."""

    sent: int = 0
    received: int = 0
    not_sent: int = 0
    """with a header that does not fit, of a wrong length, with memory that the IOMMU refused, or that the link did not
    take"""
    not_received: int = 0
    """for want of a buffer, longer than the MTU, or with memory that the IOMMU refused"""
    filtered: int = 0
    """that the driver does not want"""


class _Peer(Link):
    """The link to another card of the machine: one cable, which is pulled for both where one end is set down."""

    def __init__(self, name: str, siblings: Mapping[str, object], on_change: Callable[[], None]) -> None:
        self._name, self._siblings, self._on_change = name, siblings, on_change

    def _other(self) -> VirtioNet | None:
        other = self._siblings.get(self._name)
        return other if isinstance(other, VirtioNet) else None

    @property
    def is_up(self) -> bool:  # type: ignore[override]
        other = self._other()
        return not self.is_gone and (other is None or other.is_plugged)

    def carry(self, is_up: bool) -> None:
        if other := self._other():
            other.link_changed()

    def transmit(self, header: bytes, frame: bytes, pair: int) -> bool:
        other = self._other()
        if self.is_gone or (other and not other.is_plugged):
            return False
        if other:
            other.attempts.make("a frame of its peer", other.receive, header, frame)
        return True

    def end(self) -> None:
        self.is_gone = True
        self._on_change()
        self.carry(False)

    def again(self) -> None:
        self.is_gone = False
        self.carry(True)


class VirtioNet(VirtioDevice):
    """One card. Queues are those of receive and transmit, pair by pair, and the control queue after them.

    Memory of a frame that the IOMMU refuses costs that frame: the buffer goes back, empty if it was to be written. The
    driver counts it as an error of that frame, and the card goes on.
    """

    IDENTITY = Identity(VENDOR_ID, DEVICE_ID, NETWORK_CLASS)
    OPTIONS = VirtioNetOptions

    class State(VirtioDevice.State):
        own_mac: bytes = b""
        """in a saved state: the one that somebody has given it, if it is not that of the topology"""
        mac: bytes = b""
        """that the driver has given it, if it has, and nobody another one since"""
        former_macs: set[bytes] = msgspec.field(default_factory=set)
        """that it had while this driver was there, before somebody gave it another one"""
        filter: Filter = msgspec.field(default_factory=Filter)
        pairs: int = 1
        """in use"""
        guest_offloads: int = 0
        """features of :data:`GUEST_OFFLOADS` that the driver has turned on"""
        announce: bool = False
        inboxes: list[list[tuple[bytes, bytes]]] = msgspec.field(default_factory=list)
        """frames that wait for buffers, each with its header, by pair; empty ones at the end may be missing"""
        traffic: Traffic = msgspec.field(default_factory=Traffic)

    state: State

    def __init__(self, surroundings: Surroundings) -> None:
        options: VirtioNetOptions = surroundings.options
        self._pairs = options.queue_pairs
        features = ALWAYS | GUEST_ANNOUNCE | SPEED_DUPLEX | _RINGS
        features |= OFFLOADS | GUEST_OFFLOADS | CTRL_GUEST_OFFLOADS if options.offloads else 0
        features |= MQ if self._pairs > 1 else 0
        features |= RING_PACKED if options.packed else 0
        queues = 2 * self._pairs + 1
        super().__init__(surroundings, queues=queues, queue_size=options.queue_size, config=CONFIG, features=features)
        self._first_mac = self._mac = _address(options.mac, self.stream)
        """its own address: as the topology says, and as somebody has set it"""
        self.registers["MAX_VIRTQUEUE_PAIRS"] = self._pairs
        self.registers["MTU"] = options.mtu
        self._before = Traffic()
        """before the last reset"""
        self._bytes = {True: 0, False: 0}
        """of frames sent (True) and received"""
        self._drops: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        """frames that were not sent (True) or not received, by reason"""
        self.is_set_down = options.link_state == "down"
        """whether somebody has set its link down, as by pulling the cable"""
        self.times_set = 0
        """how often somebody has set its link up or down"""
        self._link = self._linked(options, surroundings.siblings)
        self._plain: PlainTraffic | None = None
        """what leaves traffic to native code, if there is such code for this link"""
        self._rules: Rules | None = None
        """for it; None: they are to be made anew"""
        self._may_be_plain = False
        if options.link == "tap" and self._pairs == 1 and not options.pcap and (helper := surroundings.helper()):
            self._plain, self.standby = PlainTraffic(helper), self
            self.probes.bound(self._follow_rules)
        if self.is_set_down:
            self._link.carry(False)
        self._was_up = self.link_is_up
        self.probes.bind(self._link, "transmit", "link.send", self.name, self)
        self.probes.bind(self, "receive", "link.receive", self.name, self)
        sends, receives = (
            [partial(step, pair) for pair in range(self._pairs)] for step in (self._send_next, self._receive_next)
        )
        self._steps: list[Callable[[], bool]] = [self._obey, *sends, self._hear_link, *receives]
        """in this order, as the host answers a frame often at once, while it is sent"""
        self._inbox_bytes = [0] * self._pairs
        """how much waits in each inbox"""
        self._flows: dict[int, int] = {}
        """the pair by which a flow was last sent, which is the one that should receive it"""
        self._commands: dict[tuple[int, int], Callable[[bytes], bool]] = {
            **{(0, number): self._receive_mode(name) for number, name in enumerate(_MODES)},
            (1, 0): self._set_mac_table,
            (1, 1): self._set_mac,
            (2, 0): self._add_vlan,
            (2, 1): self._remove_vlan,
            (3, 0): self._announced,
            (4, 0): self._set_pairs,
            (5, 0): self._set_guest_offloads,
        }
        try:
            self._capture = None
            if options.pcap:
                self._capture = Capture(options.pcap, self.name, self.inputs, options.pcap_limit)
        except OSError:
            self._link.close()
            raise
        self.power_on()

    def _linked(self, options: VirtioNetOptions, siblings: Mapping[str, object]) -> Link:
        if options.link == "peer" and options.peer:
            return _Peer(options.peer, siblings, self.link_changed)
        if options.link == "tap" and options.tap:
            from ..net.tap import Tap  # most cards have none

            around = {key: getattr(options, key) for key in _AROUND}
            size: dict[str, Any] = {"mtu": options.mtu, "pairs": options.queue_pairs}
            return Tap(self.name, self.inputs, options.tap, netns=options.netns, **size, **around)
        return Link()

    @property
    def descriptors(self) -> int:
        return super().descriptors + self._link.descriptors + bool(self._capture)

    def close(self) -> None:
        super().close()
        self._link.close()
        if self._capture:
            self._capture.close()

    def fits(self, features: int) -> bool:
        return all(features & needed for feature, needed in NEEDS.items() if features & feature)

    def write_device_status(self, index: int, value: int) -> None:
        was_live = self.is_live
        super().write_device_status(index, value)
        if self.is_live and not was_live:
            self.state.guest_offloads = self.state.driver_features & GUEST_OFFLOADS
            self._rules = None
            self._start_link()

    def _start_link(self) -> None:
        offloads = self.state.guest_offloads
        self._link.accept(bool(offloads & GUEST_CSUM), bool(offloads & GUEST_TSO4), bool(offloads & GUEST_TSO6))
        self._link.use(self.state.pairs)
        self._link.start(self._watch, self.link_changed)

    def _watch(self, fd: int, callback: Callable[[int, MayGoOn], None]) -> Watch:
        return self.host.watch(fd, callback)

    def set_link(self, is_up: bool) -> None:
        """Set the link up or down: the driver is told. While it is down, frames are lost both ways. A link that is gone
        is made anew when it is set up; raises OSError if that does not succeed.
        """
        self.times_set += 1
        if is_up and self._link.is_gone:
            self._link.again()
            if self.is_live:
                self._start_link()
        if is_up is self.is_set_down:
            self.is_set_down = not is_up
            self._link.carry(is_up)
        self.link_changed()

    def set_mac(self, text: str) -> None:
        """Give it another address of its own, for good; the driver is told. One that does not look, as Linux' until it
        is bound anew, goes on with what it has: frames for that come until then. Raises ValueError, which says the
        rule.
        """
        if not _MAC.fullmatch(text):
            raise ValueError(f"must be {_MAC_RULE}")
        before, self._mac = self.mac, _address(text, self.stream)
        if before != self._mac:
            if self.state.status:  # the driver may have read it
                self.state.former_macs.add(before)
            self.state.mac = b""
            self._rules = None
            self.attempts.make("a change of its address", self.config_change)

    def save(self) -> EndpointState:
        self.state.own_mac = b"" if self._mac == self._first_mac else self._mac
        return super().save()

    def judge(self, error: OSError) -> None:
        """What a frame met that was sent late."""
        self._link.judge(error)

    def link_report(self) -> dict[str, Any]:
        """What an operator is told: names and values that :data:`.control.commands.COMMANDS` describes."""
        options, traffic, before = self.options, self.state.traffic, self._before
        return {
            "name": self.name,
            "link": options.link,
            "other": options.tap or options.peer,
            "up": self.link_is_up,
            "set": "down" if self.is_set_down else "up",
            "mac": self.mac.hex(":"),
            "sent": before.sent + traffic.sent,
            "sent_bytes": self._bytes[True],
            "received": before.received + traffic.received,
            "received_bytes": self._bytes[False],
            "sent_dropped": dict(sorted(self._drops[True].items())),
            "received_dropped": dict(sorted(self._drops[False].items())),
        }

    def link_changed(self) -> None:
        """Frames have arrived, or the link has gone up or down."""
        if self.link_is_up != self._was_up:
            self._was_up = self.link_is_up
            self.attempts.make("a change of its link", self.config_change)
        self.on_ready()

    def on_load(self) -> None:
        """The rest of the network may look for the card elsewhere: the driver is asked to tell it."""
        super().on_load()
        self._rules = None
        self._mac = self.state.own_mac or self._first_mac
        self._before.sent -= self.state.traffic.sent  # which another server has counted
        self._before.received -= self.state.traffic.received
        for pair, inbox in enumerate(self.state.inboxes):
            self._inbox_bytes[pair] = sum(len(frame) for _, frame in inbox)
        if self.is_live:
            self._start_link()
            self.state.announce |= self.has(GUEST_ANNOUNCE)
            self.config_change()  # how its link is set is no part of the state

    def _forget(self) -> None:
        before, now = self._before, self.state.traffic
        before.sent, before.received = before.sent + now.sent, before.received + now.received
        super()._forget()
        self._inbox_bytes = [0] * self._pairs
        self._flows.clear()
        self._rules = None
        self._link.stop()

    # -- configuration ----------------------------------------------------------------------------------------------

    @property
    def mac(self) -> bytes:
        """Its address at present."""
        return self.state.mac or self._mac

    @property
    def link_is_up(self) -> bool:
        return self._link.is_up and not self.is_set_down

    @property
    def is_plugged(self) -> bool:
        """Whether its own end of the link is up."""
        return not self.is_set_down and not self._link.is_gone

    def read_mac(self, index: int) -> int:
        return self.mac[index]

    def read_status(self, _: int) -> int:
        return NetStatus(LINK_UP=self.link_is_up, ANNOUNCE=self.state.announce)

    # -- steps ------------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        self._link.look()
        goes_on = super().work()
        if not goes_on or (self.may_nap and self.nap_ms == NAP_MS):  # in a short nap nothing gets late
            self._link.rest()
        return goes_on

    def serve(self, deadline_ns: int) -> bool:
        """Each queue and the link in turn; where time runs out, the next step goes on with the one that follows."""
        busy = self._plain is not None and self._serve_plain(self._plain, deadline_ns)
        turns = deque(self._steps)
        while turns:
            step = turns.popleft()
            for _ in range(BATCH):
                if not step():
                    break
                busy = True
                if self.inputs.now_ns() > deadline_ns:
                    first = self._steps.index(step) + 1
                    self._steps = [*self._steps[first:], *self._steps[:first]]
                    return True
            else:
                turns.append(step)
        return busy

    # -- what native code does --------------------------------------------------------------------------------------

    def _follow_rules(self) -> None:
        """Whether nobody watches what native code does."""
        self._may_be_plain = not any(map(self.probes.is_watched, _OF_TRAFFIC))

    def stand_by(self) -> Helper | None:
        return self.attempts.quietly("its rest", self._lend) if self._may_be_plain and not self._kicked else None

    def stood_by(self) -> None:
        if self.attempts.quietly("what was done while it rested", self._take_back):
            self.on_ready()

    def _serve_plain(self, plain: PlainTraffic, deadline_ns: int) -> bool:
        """Have the helper do what it can. Whether there was anything."""
        if not self._may_be_plain or self._lend(is_asleep=False) is None:
            return False
        plain.helper.step(max(deadline_ns - self.inputs.now_ns(), 0))
        return self._take_back()

    def _lend(self, *, is_asleep: bool = True) -> Helper | None:
        """Hand rings and link over, if all is as usual. ``is_asleep``: whether the loop sleeps meanwhile."""
        receiving, sending = self.ring(0), self.ring(1)
        if self._plain is None or not isinstance(receiving, SplitRing) or not isinstance(sending, SplitRing):
            return None
        if not self.is_live or self.is_set_down or receiving.is_untold or sending.is_untold:
            return None
        link, lent = self._link.lend(), self.dma.lend()
        if link is None or lent is None:
            return None
        self._rules = self._rules or self._usual_rules()
        rings = receiving, sending
        eventfds = (
            eventfd_of(self.interrupts, receiving.state.vector),
            eventfd_of(self.interrupts, sending.state.vector),
        )
        self._plain.begin(lent, self._rules, rings, eventfds, *link)
        may_send = not sending.state.asked
        # Of what was fetched before the driver was asked to notify of more there will be no notification.
        may_receive = not any(self.state.inboxes) and not (receiving.state.asked and receiving.fetched)
        answer_ns = 0 if may_send or not is_asleep else self.longest_answer_ns(1)
        self._plain.allow(send=may_send, receive=may_receive, answer_ns=answer_ns)
        for ring, is_lent in zip(rings, (may_receive, may_send), strict=True):
            if is_lent:
                ring.fetched.clear()
        return self._plain.helper

    def _take_back(self) -> bool:
        """Go on from what was done. Returns whether there was anything, or there is something to do here."""
        if self._plain is None:
            return False
        done = self._plain.end()
        state, counters = self.state, self.counters
        counters.dma_requests += done.requests
        counters.dma_bytes += done.moved
        counters.interrupts += done.interrupts
        state.traffic.sent += done.sent
        state.traffic.received += done.received
        self._bytes[True] += done.sent_bytes
        self._bytes[False] += done.received_bytes
        self._link.take_back(is_empty=done.is_empty)
        if done.held:
            self._arrived(done.held[:HEADER_BYTES], done.held[HEADER:])
        if done.error:
            self._link.judge(os_error(done.error))
            self._lose(True, "link")
        for queue, is_wanted in enumerate(done.wanted):
            ring = self.ring(queue)
            if is_wanted and ring is not None:
                self._interrupt_for(ring.state.vector)
        if done.expects:
            self.expected(1, self.inputs.now_ns() - done.expected_ns, done.expected_used)
        elif done.received:
            self.expect(1)
        return bool(done.sent or done.received or done.is_unusual)

    def _usual_rules(self) -> Rules:
        wanted, offloads, has = self.state.filter, self.state.guest_offloads, self.has
        accepts = Accepts.EVERYTHING if wanted.promiscuous else 0
        accepts |= 0 if wanted.no_unicast else Accepts.UNICAST
        accepts |= 0 if wanted.no_broadcast else Accepts.BROADCAST
        accepts |= Accepts.MULTICAST if wanted.all_multicast and not wanted.no_multicast else 0
        accepts |= 0 if has(CTRL_VLAN) else Accepts.TAGGED
        return Rules(
            has(MRG_RXBUF),
            _left_undone(has(CSUM), has(HOST_TSO4), has(HOST_TSO6)),
            _left_undone(bool(offloads & GUEST_CSUM), bool(offloads & GUEST_TSO4), bool(offloads & GUEST_TSO6)),
            accepts,
            self.mac,
            MIN_FRAME + self.registers["MTU"] if has(MTU) else MAX_FRAME,
        )

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send_next(self, pair: int) -> bool:
        """The next frame of a transmit queue. Returns whether there was one."""
        queue = 2 * pair + 1
        found = self.buffers(queue)
        ring = self.ring(queue)
        if not found or ring is None:
            return False
        spans = found[0].readable
        data, reason = b"", "malformed"
        if HEADER + MIN_FRAME <= sum(length for _, length in spans) <= HEADER + MAX_FRAME:
            try:
                data = self.dma.read(spans)
            except DmaRefusedError:  # the guest has been told
                reason = "refused"
        ring.use(0)
        try:
            self._send(pair, data[:HEADER_BYTES], data[HEADER:])
        except FrameError:
            self._lose(True, reason)
        return True

    def _lose(self, sent: bool, reason: str) -> None:
        """A frame is not sent, or not received."""
        traffic = self.state.traffic
        traffic.not_sent += sent
        traffic.not_received += not sent
        self._drops[sent][reason] += 1

    def _send(self, pair: int, header: bytes, frame: bytes) -> None:
        header, frame = self._checked(header, frame)
        if header != PLAIN:
            if not self.has(CSUM):
                raise FrameError("a checksum that was not negotiated")
            kind = header[GSO_TYPE]
            if kind and not self.has(HOST_TSO4 if kind == GSO_TCPV4 else HOST_TSO6):
                raise FrameError("segmentation that was not negotiated")
        if self._capture:
            self._capture.frame(frame, outbound=True)
        if self._pairs > 1:
            self._flows[flow(frame)] = pair
        if self.is_set_down or not self._link.send(header, frame, pair):
            self._lose(True, "link")
            return
        self.state.traffic.sent += 1
        self._bytes[True] += len(frame)

    # -- receiving --------------------------------------------------------------------------------------------------

    def receive(self, header: bytes, frame: bytes) -> None:
        """A frame from the link, with what is left to do of its checksum and segmentation, which :class:`.Header` has
        checked."""
        state = self.state
        if not self.is_live:
            return
        if self.is_set_down:
            self._lose(False, "link")
            return
        if not state.filter.accepts(frame, (self.mac, *state.former_macs), by_vlan=self.has(CTRL_VLAN)):
            state.traffic.filtered += 1
            self._drops[False]["filtered"] += 1
            return
        pair = self._flows.get(flow(frame), 0) if state.pairs > 1 else 0
        if pair >= state.pairs or not self.ring(2 * pair):
            pair = 0
        try:
            for item in self._adapted(header, frame):
                if self._is_too_long(*item):
                    self._lose(False, "too-long")
                else:
                    self._keep(pair, item)
        except FrameError:
            self._lose(False, "malformed")

    def _keep(self, pair: int, item: tuple[bytes, bytes]) -> None:
        """A frame is to wait for buffers, or dropped if too many do."""
        inbox, size = self._inbox(pair), self._inbox_bytes[pair] + len(item[1])
        if len(inbox) >= INBOX_FRAMES or size > INBOX_BYTES:
            self._lose(False, "no-buffer")
        else:
            inbox.append(item)
            self._inbox_bytes[pair] = size

    def _hear_link(self) -> bool:
        """The next frame that arrived at the link, if there is room for it. Returns whether there was one."""
        for inbox, size in zip(self.state.inboxes, self._inbox_bytes, strict=False):
            if len(inbox) >= INBOX_FRAMES // 2 or size > INBOX_BYTES // 2:
                return False
        arrived = self._link.receive()
        if arrived is None:
            return False
        self._arrived(*arrived)
        return True

    def _arrived(self, header: bytes, frame: bytes) -> None:
        """What arrived at the link, which nobody has checked."""
        try:
            self.receive(*self._checked(header, frame))
        except FrameError:
            self._lose(False, "malformed")

    def is_frame(self, header: bytes, frame: bytes) -> bool:
        """Whether a frame may be one, and has a header that fits it."""
        try:
            self._checked(header, frame)
        except FrameError:
            return False
        return True

    @staticmethod
    def _checked(header: bytes, frame: bytes) -> tuple[bytes, bytes]:
        """A frame and its header, if they fit each other. Raises FrameError."""
        if not MIN_FRAME <= len(frame) <= MAX_FRAME:
            raise FrameError(f"a frame of {len(frame)} bytes")
        if header != PLAIN:
            read = Header.unpack(header)
            read.check(frame)
            header = header if read.flags & NEEDS_CSUM else PLAIN
        return header, frame

    def _is_too_long(self, header: bytes, frame: bytes) -> bool:
        """Whether a frame exceeds what the driver knows as the longest."""
        if header[GSO_TYPE] or not self.has(MTU):
            return False
        is_tagged = int.from_bytes(frame[12:14], "big") in VLAN_TYPES
        return len(frame) > MIN_FRAME + (4 if is_tagged else 0) + self.registers["MTU"]

    def _inbox(self, pair: int) -> list[tuple[bytes, bytes]]:
        inboxes = self.state.inboxes
        while len(inboxes) <= pair:
            inboxes.append([])
        return inboxes[pair]

    def _adapted(self, header: bytes, frame: bytes) -> Iterable[tuple[bytes, bytes]]:
        """The frame, or several, with no more left to do than the driver accepts. Raises FrameError."""
        if header == PLAIN:
            return [(PLAIN, frame)]
        kind, offloads = header[GSO_TYPE], self.state.guest_offloads
        if kind and not offloads & (GUEST_TSO4 if kind == GSO_TCPV4 else GUEST_TSO6):
            return [(PLAIN, each) for each in Header.unpack(header).segments(frame)]
        if not offloads & GUEST_CSUM:
            return [(PLAIN, Header.unpack(header).complete(frame))]
        return [(header, frame)]

    def _receive_next(self, pair: int) -> bool:
        """The next frame of an inbox goes into buffers, if there are enough. Returns whether one is done with."""
        inbox = self.state.inboxes[pair] if pair < len(self.state.inboxes) else []
        if not inbox:
            return False
        queue = 2 * pair
        ring = self.ring(queue)
        if ring is None:
            inbox.clear()
            self._inbox_bytes[pair] = 0
            return False
        header, frame = inbox[0]
        merges = self.has(MRG_RXBUF)
        spans: list[Span] = []
        lengths: list[int] = []
        left = HEADER + len(frame)
        while left and (merges or not lengths):
            taken = len(lengths)
            found = self.buffers(queue, taken + 1)
            if len(found) <= taken:
                if not ring.is_full:
                    return False
                break
            for buffer in islice(found, taken, len(found) if merges else 1):
                before = left
                for address, length in buffer.writable:
                    if length >= left:
                        spans.append((address, left))
                        left = 0
                        break
                    spans.append((address, length))
                    left -= length
                lengths.append(before - left)
                if not left:
                    break
        fits, reason = not left, "too-long"
        if fits:
            data = b"".join((header, (len(lengths) if merges else 1).to_bytes(2, "little"), frame))
            fits, reason = self._fill(ring, spans, lengths, data), "refused"
        if fits:
            self.state.traffic.received += 1
            self._bytes[False] += len(frame)
        else:
            self._lose(False, reason)
        del inbox[0]
        self._inbox_bytes[pair] -= len(frame)
        if fits and self._capture:
            self._capture.frame(frame, outbound=False)
        if fits:
            self.expect(queue + 1)  # DMA, which may have to wait: the frame is done with
        return True

    def _fill(self, ring: Ring, spans: Sequence[Span], lengths: Sequence[int], data: bytes) -> bool:
        """Write ``data`` to the next buffers, all of it or nothing, and give them back: so much of each, at ``spans``.
        Returns whether it was written.
        """
        try:
            self.dma.write(spans, data)
        except DmaRefusedError:  # the guest has been told
            ring.use(*[0] * len(lengths))
            return False
        ring.use(*lengths)
        return True

    # -- control queue ----------------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """The next command. Returns whether there was one."""
        queue = 2 * self._pairs if self.has(MQ) else 2
        found = self.buffers(queue)
        ring = self.ring(queue)
        if not found or ring is None:
            return False
        buffer = found[0]
        length = sum(length for _, length in buffer.readable)
        written = 0
        try:
            command = self.dma.read(buffer.readable) if 2 <= length <= MAX_COMMAND else b""
            done = self._command(command)
            if buffer.writable:
                self.dma.write([(buffer.writable[0][0], 1)], _OK if done else _ERROR)
                written = 1
        except DmaRefusedError:  # the guest has been told
            pass
        ring.use(written)
        self._rules = None
        return True

    def _command(self, command: bytes) -> bool:
        """Carry out a command: class, number, data. Whether it is one, and its data are right."""
        obey = self._commands.get((command[0], command[1])) if len(command) >= 2 else None
        return obey is not None and obey(command[2:])

    def _receive_mode(self, name: str) -> Callable[[bytes], bool]:
        is_extra = name not in ("promiscuous", "all_multicast")

        def set_mode(data: bytes) -> bool:
            if data not in (b"\0", b"\1") or not self.has(CTRL_RX) or (is_extra and not self.has(CTRL_RX_EXTRA)):
                return False
            setattr(self.state.filter, name, data == b"\1")
            return True

        return set_mode

    def _set_mac_table(self, data: bytes) -> bool:
        tables = []
        for _ in range(2):
            count = int.from_bytes(data[:4], "little")
            rows = data[4 : 4 + 6 * count]
            if len(data) < 4 or len(rows) < 6 * count:
                return False
            table = {rows[place : place + 6] for place in range(0, len(rows), 6)}
            tables.append(table if len(table) <= MAC_TABLE else None)
            data = data[4 + 6 * count :]
        if data or not self.has(CTRL_RX):
            return False
        self.state.filter.unicast, self.state.filter.multicast = tables
        return True

    def _set_mac(self, data: bytes) -> bool:
        if len(data) != 6 or not self.has(CTRL_MAC_ADDR):
            return False
        self.state.mac = data
        self.state.former_macs.clear()
        return True

    def _add_vlan(self, data: bytes) -> bool:
        return self._vlan(data, self.state.filter.vlans.add)

    def _remove_vlan(self, data: bytes) -> bool:
        return self._vlan(data, self.state.filter.vlans.discard)

    def _vlan(self, data: bytes, change: Callable[[int], None]) -> bool:
        number = int.from_bytes(data, "little")
        if len(data) != 2 or number > 0xFFF or not self.has(CTRL_VLAN):
            return False
        change(number)
        return True

    def _announced(self, data: bytes) -> bool:
        if data or not self.has(GUEST_ANNOUNCE):
            return False
        self.state.announce = False
        return True

    def _set_pairs(self, data: bytes) -> bool:
        pairs = int.from_bytes(data, "little")
        if len(data) != 2 or not 1 <= pairs <= self._pairs or not self.has(MQ):
            return False
        self.state.pairs = pairs
        self._link.use(pairs)
        for pair, inbox in enumerate(self.state.inboxes[pairs:], pairs):  # nothing may arrive there any more
            waiting = inbox.copy()
            inbox.clear()
            self._inbox_bytes[pair] = 0
            for item in waiting:
                self._keep(0, item)
        return True

    def _set_guest_offloads(self, data: bytes) -> bool:
        offloads = int.from_bytes(data, "little")
        negotiated = self.state.driver_features & GUEST_OFFLOADS
        if len(data) != 8 or offloads & ~negotiated or not self.has(CTRL_GUEST_OFFLOADS):
            return False
        self.state.guest_offloads = offloads
        self._start_link()
        return True


_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
"""Commands of VIRTIO_NET_CTRL_RX: fields of :class:`.reception.Filter`."""


_OF_TRAFFIC = ("link.send", "link.receive", "dma.translate", "dma.read", "dma.write", "interrupt", "endpoint.work")
"""Probes that a frame passes."""


def _left_undone(checksum: bool, segments_4: bool, segments_6: bool) -> int:
    return CHECKSUM * checksum | SEGMENTS_4 * segments_4 | SEGMENTS_6 * segments_6


def _address(given: str | None, stream: int) -> bytes:
    if given:
        return bytes.fromhex(given.replace(":", ""))
    return bytes.fromhex("02707669") + (stream & 0xFFFF).to_bytes(2, "big")
