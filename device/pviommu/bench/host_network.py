"""A network of this process's own, in which a tap disturbs nobody: it is gone with the last process in it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..lab.problems import EnvironmentProblem

__all__ = ["ADDRESS", "GUEST_ADDRESS", "PREFIX", "TAP", "own_network", "set_up_tap"]

TAP = "bench0"
ADDRESS, GUEST_ADDRESS, PREFIX = "10.77.0.1", "10.77.0.2", 24
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUN = Path("/dev/net/tun")
_HOW = "run it as root, or where users may have namespaces and /dev/net/tun (`unshare --user --map-root-user --net`)"


def own_network() -> None:
    """Move to a new network namespace; processes that are started from now on are in it too. Without root that takes
    a user namespace, in which this process is root. Raises EnvironmentProblem.
    """
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise EnvironmentProblem(f"{_TUN} cannot be opened, so that no tap can be made", _HOW)
    user, group = os.geteuid(), os.getegid()
    problem = _unshare(_CLONE_NEWNET)
    if problem == errno.EPERM:
        problem = _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        if not problem:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    if problem:
        raise EnvironmentProblem(f"no network namespace can be made: {os.strerror(problem)}", _HOW)


def _unshare(flags: int) -> int:
    """Returns errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) else 0


def set_up_tap() -> None:
    """Give :data:`TAP`, which somebody has made, its address. Raises EnvironmentProblem."""
    from pyroute2 import IPRoute  # other benchmarks do without
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        found = route.link_lookup(ifname=TAP)
        if not found:
            raise EnvironmentProblem(f"nobody has made the tap {TAP}", _HOW)
        try:
            route.addr("replace", index=found[0], address=ADDRESS, prefixlen=PREFIX)
            route.link("set", index=found[0], state="up")
        except NetlinkError as error:
            raise EnvironmentProblem(f"the tap {TAP} cannot be set up: {error}", _HOW) from error
