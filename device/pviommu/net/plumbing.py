"""What is around a tap that a server makes: its settings, a bridge that it joins, a pair of veth interfaces, netem.

A tap goes with its process. Bridges and veth pairs stay, so each carries in its alias who has made it: whatever belongs
to a server that has ended is taken away, or taken over, by the next one that looks.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .errors import NEEDS_ROOT, explained
from .namespace import NAMESPACE_ADVICE, Maker, Namespace, lock

__all__ = ["Plan", "Plumbing", "existing"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_MARK = "pviommu"
_ROOT, _NETEM, _TBF = 0xFFFFFFFF, 1, 2
"""Handles of queueing disciplines."""
_BURST = 64 << 10
"""Bytes that a limited rate lets through at once, at least: one frame that is to be segmented."""
_ADVICE = {errno.EPERM: NEEDS_ROOT}
_NETEM_ADVICE = {**_ADVICE, errno.ENOENT: "modprobe sch_netem: this kernel has no netem, or does not load it"}


@dataclass(frozen=True)
class Plan:
    """What a tap that is made gets; see :class:`pviommu.endpoints.virtio_net.VirtioNetOptions`."""

    mtu: int
    address: str | None = None
    bridge: str | None = None
    veth: str | None = None
    veth_netns: str | None = None
    veth_address: str | None = None
    delay_us: int = 0
    loss_percent: int = 0
    rate_kbit: int = 0

    @property
    def netem(self) -> dict[str, int]:
        """Arguments of netem, microseconds and percent; empty if it is not wanted."""
        wanted = {"delay": self.delay_us, "loss": self.loss_percent}
        return {key: value for key, value in wanted.items() if value}


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """What pyroute2 raises of its own is no OSError."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
    except struct.error as error:  # a number that has no place in the message
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE)) from error


class _Route:
    """Netlink in the namespace of the thread, whose errors are OSErrors that name what failed."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute  # only who has such a link needs it

        self._route = IPRoute()

    def __enter__(self) -> _Route:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def change(self, what: str, call: str, *args: object, **values: object) -> None:
        """Carry out a request; ``what`` it is for."""
        with explained(what, _NETEM_ADVICE if call == "tc" else _ADVICE), _as_os_errors():
            getattr(self._route, call)(*args, **values)

    def find(self, name: str) -> int | None:
        """The number of an interface."""
        found: list[int] = self._route.link_lookup(ifname=name)
        return found[0] if found else None

    def links(self) -> list[Any]:
        """All interfaces."""
        return list(self._route.get_links())

    def link(self, index: int) -> Any:
        """An interface. Raises OSError if it is gone."""
        with _as_os_errors():
            found = list(self._route.get_links(index))
        if not found:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return found[0]

    def addresses(self, index: int) -> list[str]:
        """Those of an interface, each with the length of its prefix."""
        rows = self._route.get_addr(index=index)
        return [f"{row.get_attr('IFA_ADDRESS')}/{row['prefixlen']}" for row in rows]

    def add_address(self, index: int, address: str) -> None:
        """Unless it has it already."""
        given = ipaddress.ip_interface(address)
        if str(given) not in self.addresses(index):
            where = {"address": str(given.ip), "prefixlen": given.network.prefixlen}
            self.change(f"address {address}: ", "addr", "add", index=index, **where)

    def queueing(self, index: int, parent: int, handle: int, kind: str, **values: object) -> Any:
        """Have frames that leave an interface pass a queueing discipline: its options, as the kernel tells them."""
        said = ", ".join(f"{key} {value}" for key, value in values.items())
        self.change(f"{kind} {said}: ", "tc", "add", kind, index, parent=parent, handle=handle << 16, **values)
        with _as_os_errors():
            made = [each for each in self._route.get_qdiscs(index) if each["parent"] == parent]
        if [each.get_attr("TCA_KIND") for each in made] != [kind]:
            raise OSError(errno.EIO, f"{kind} {said}: the kernel has not made it")
        return made[0].get_attr("TCA_OPTIONS")


def existing(name: str, plan: Plan, queues: int) -> list[str]:
    """What of a plan a tap that exists does not have, though it stays as it is. Raises OSError for what would have to
    be made for it, and if there are more than these ``queues``, those of this process. Called in its namespace.
    """
    if plan.netem or plan.rate_kbit:
        text = "it exists: delay-us, loss-percent and rate-kbit are for a tap that the server makes; use `tc qdisc`"
        raise OSError(errno.EEXIST, text)
    try:
        opened = _Route()
    except OSError:  # who may not look needs no more than the tap
        if plan.bridge is None:
            return []
        raise
    with opened as route:
        index = route.find(name)
        if index is None:
            return []
        link = route.link(index)
        if _queues(link) > queues:
            raise OSError(errno.EBUSY, "another process uses it")
        if plan.bridge is not None:
            bridge = route.find(plan.bridge)
            if bridge is None or link.get_attr("IFLA_MASTER") != bridge:
                text = f"it exists, and is not in bridge {plan.bridge}: ip link set {name} master {plan.bridge}"
                raise OSError(errno.EEXIST, text)
        if plan.veth is not None:
            raise OSError(errno.EEXIST, "it exists: veth is for a tap that the server makes")
        found = []
        if (mtu := link.get_attr("IFLA_MTU")) != plan.mtu:
            found.append(f"its mtu is {mtu}, and the card's {plan.mtu}")
        if plan.address is not None and str(ipaddress.ip_interface(plan.address)) not in route.addresses(index):
            found.append(f"it does not have address {plan.address}")
        if not link["flags"] & 1:
            found.append(f"it is down: ip link set {name} up")
        return found


class Plumbing:
    """What was made around one tap."""

    def __init__(self, plan: Plan, tap: str, inside: Callable[[Callable[[], _T]], _T]) -> None:
        """``inside`` carries out a call in the namespace of the tap."""
        self._plan, self._tap = plan, tap
        self._inside: Callable[[Callable[[], Any]], Any] = inside
        self._target: Namespace | None = None
        self._has_veth = False
        self._mark = " ".join((_MARK, *map(str, Maker.this())))
        self._veth_end = {"ifalias": self._mark, "mtu": plan.mtu, "state": "up"}

    def make(self) -> None:
        """All of it. Raises OSError, and leaves nothing then that :meth:`close` does not take away."""
        if self._plan.veth_netns is not None:
            with explained(f"veth-netns {self._plan.veth_netns}: ", NAMESPACE_ADVICE):
                self._target = Namespace(self._plan.veth_netns)
        own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _locked():
                self._in_target(_swept)
                self._inside(lambda: self._make(own))
                if self._plan.veth is not None:
                    self._in_target(self._set_veth_up)
        finally:
            os.close(own)

    def _in_target(self, call: Callable[[], _T]) -> _T:
        return self._target.inside(call) if self._target else call()

    def _make(self, own: int) -> None:
        plan = self._plan
        with _Route() as route:
            _sweep(route)
            index = route.find(self._tap)
            if index is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            route.change(f"mtu {plan.mtu}: ", "link", "set", index=index, mtu=plan.mtu)
            bridge = self._bridge(route, plan.bridge) if plan.bridge is not None else None
            if bridge is not None:
                self._join(route, index, bridge)
            if plan.address and (bridge is None or self._is_marked(route, bridge)):
                route.add_address(index if bridge is None else bridge, plan.address)
            elif plan.address and bridge and str(ipaddress.ip_interface(plan.address)) not in route.addresses(bridge):
                log.warning("bridge %s exists, and stays as it is: it does not have %s", plan.bridge, plan.address)
            if plan.veth is not None and bridge is not None:
                self._veth(route, plan.veth, bridge, own)
            self._impair(route, index)
            route.change("set up: ", "link", "set", index=index, state="up")

    def _bridge(self, route: _Route, name: str) -> int:
        """A bridge of that name, which exists, or is made."""
        index = route.find(name)
        if index is None:
            route.change(f"bridge {name}: ", "link", "add", ifname=name, kind="bridge")
            index = route.find(name)
            assert index is not None
            route.change(f"bridge {name}: ", "link", "set", index=index, ifalias=self._mark, state="up")
        if (kind := _kind(route.link(index))) != "bridge":
            raise OSError(errno.EEXIST, f"bridge {name}: that is no bridge, but {kind or 'an interface of its own'}")
        return index

    def _is_marked(self, route: _Route, index: int) -> bool:
        return bool(route.link(index).get_attr("IFLA_IFALIAS") == self._mark)

    def _join(self, route: _Route, index: int, bridge: int) -> None:
        what = f"bridge {self._plan.bridge}: "
        route.change(what, "link", "set", index=index, master=bridge)
        if route.link(index).get_attr("IFLA_MASTER") != bridge:
            raise OSError(errno.EIO, f"{what}the tap has not become part of it")

    def _veth(self, route: _Route, name: str, bridge: int, own: int) -> None:
        """A pair, one end in the bridge, the other one in another namespace."""
        port = _port(name)
        target = self._plan.veth_netns or own
        peer = {"ifname": name, "net_ns_fd": target}
        self._has_veth = True
        try:
            route.change(f"veth {name}: ", "link", "add", ifname=port, kind="veth", peer=peer)
        except OSError:
            self._has_veth = False
            raise
        index = route.find(port)
        if index is None or _kind(route.link(index)) != "veth":
            raise OSError(errno.EIO, f"veth {name}: it was not made")
        route.change(f"veth {name}: ", "link", "set", index=index, **self._veth_end, master=bridge)

    def _set_veth_up(self) -> None:
        name, address = self._plan.veth or "", self._plan.veth_address
        with _Route() as route:
            index = route.find(name)
            if index is None:
                raise OSError(errno.EIO, f"veth {name}: it is not where it was to be")
            route.change(f"veth {name}: ", "link", "set", index=index, **self._veth_end)
            if address:
                with explained(f"veth {name}: ", {}):
                    route.add_address(index, address)

    def _impair(self, route: _Route, index: int) -> None:
        """Delay, lose and hold up frames. netem has a rate, too, but pyroute2 0.9.7 cannot ask for it."""
        plan, parent = self._plan, _ROOT
        if plan.netem:
            made = route.queueing(index, parent, _NETEM, "netem", **plan.netem)
            loss = round(plan.loss_percent * 0xFFFFFFFF / 100)
            if bool(made["delay"]) is not bool(plan.delay_us) or abs(made["loss"] - loss) > 1:
                raise OSError(errno.EIO, f"netem: the kernel has made delay {made['delay']}, loss {made['loss']} of it")
            parent = _NETEM << 16 | 1
        if plan.rate_kbit:
            burst = max(_BURST, plan.rate_kbit * 125 // 100)
            given = {"rate": f"{plan.rate_kbit}kbit", "burst": burst, "latency": "50ms"}
            made = route.queueing(index, parent, _TBF, "tbf", **given)
            rate = made.get_attr("TCA_TBF_PARMS")["rate"]
            if rate != plan.rate_kbit * 125:
                raise OSError(errno.EIO, f"tbf: the kernel has made {rate} bytes a second of {plan.rate_kbit} kbit")

    def close(self) -> None:
        """The tap is gone: take away the veth pair, and a bridge that nobody else is in."""
        with _locked():
            for call in (self._take_away_veth, self._take_away_bridge):
                with contextlib.suppress(OSError):  # of a namespace that is gone, with all that was in it
                    call()
        if self._target is not None:
            self._target.close()
            self._target = None

    def _take_away_veth(self) -> None:
        if self._has_veth:
            self._in_target(self._delete_veth)
            self._has_veth = False

    def _delete_veth(self) -> None:
        with _Route() as route:
            index = route.find(self._plan.veth or "")
            if index is not None and _kind(route.link(index)) == "veth":
                route.change("", "link", "del", index=index)

    def _take_away_bridge(self) -> None:
        if self._plan.bridge is not None:
            self._inside(partial(_swept, self._plan.bridge))


def _swept(bridge: str | None = None) -> None:
    with _Route() as route:
        _sweep(route, bridge)


def _port(veth: str) -> str:
    """The name of the other end of a pair, which is in the bridge."""
    return f"{veth}-pv"


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    kind: str | None = info.get_attr("IFLA_INFO_KIND") if info else None
    return kind


def _queues(tap: Any) -> int:
    """How many queues of a tap processes have; 0 if the kernel does not tell."""
    info = tap.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    names = ("IFLA_TUN_NUM_QUEUES", "IFLA_TUN_NUM_DISABLED_QUEUES")
    return sum(data.get_attr(name) or 0 for name in names) if data else 0


def _sweep(route: _Route, bridge: str | None = None) -> None:
    """Take away what servers have made that have ended: veth pairs, and bridges that nobody is in; ``bridge`` as well,
    whichever server has made it, if nobody is in it.
    """
    for link in route.links():
        maker = _maker(link)
        if maker is None or not (maker.has_ended() or link.get_attr("IFLA_IFNAME") == bridge):
            continue
        if not any(each.get_attr("IFLA_MASTER") == link["index"] for each in route.links()):
            with contextlib.suppress(OSError):  # somebody else was faster, or it is not ours to take away
                route.change("", "link", "del", index=link["index"])


def _maker(link: Any) -> Maker | None:
    """The server that has made an interface."""
    with contextlib.suppress(ValueError):
        mark, process, began, boot, processes = (link.get_attr("IFLA_IFALIAS") or "").split()
        if mark == _MARK:
            return Maker(int(process), began, boot, processes)
    return None


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """No other server makes or takes away anything meanwhile. Who may not lock out others has a network of its own."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(lock())
        yield
