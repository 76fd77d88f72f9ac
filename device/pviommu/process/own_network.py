"""A network of the server's own, for which nobody needs privileges: a user namespace with a network namespace in it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

__all__ = ["own_network"]

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_FORBIDDEN = (
    "this host, or a sandbox, does not let it: look at the sysctls user.max_user_namespaces, user.max_net_namespaces, "
    "kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns and at RestrictNamespaces= of a "
    "systemd unit, or run it as root with `netns`"
)


def own_network() -> None:
    """Leave the network of the host for one with nothing but ``lo``, which is up, where this process may do everything.

    User and group keep their numbers; all other ones look like nobody's from now on. The process must have no other
    thread yet. Raises OSError, with a text that says what to do.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for file, content in maps.items():
            Path("/proc/self", file).write_text(content, encoding="ascii")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} ({_FORBIDDEN})") from error


def _unshare(flags: int) -> None:
    """unshare(2), which Python has from 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
