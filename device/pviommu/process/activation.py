"""Inherited sockets: named by ``--fd``, or passed by systemd.

Source of the variables: ``sd_listen_fds(3)``. The first descriptor is 3; ``LISTEN_PID`` says whom they are for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["given_sockets"]

_FIRST = 3
_STDERR = 2
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def given_sockets(
    options: Iterable[str], names: Sequence[str], environment: MutableMapping[str, str] = os.environ
) -> dict[str, int]:
    """Descriptors by the name of the function in ``names`` that they serve: from ``NAME=N`` options and from systemd.

    systemd's variables are taken out of ``environment``, as they concern nobody else. Raises :class:`ValueError` for
    one that is no Unix stream socket, neither listens nor is connected, is given twice, or belongs to no function.
    """
    given: dict[str, int] = {}
    sockets: dict[int, str] = {}
    for what, name, fd in (*_of_options(options, names), *_of_systemd(names, environment)):
        inode, _ = _look_at(what, fd)
        if name in given:
            raise ValueError(f"{what}: function {name} has a socket already, descriptor {given[name]}")
        if inode in sockets:
            raise ValueError(f"{what}: the same socket as that of function {sockets[inode]}")
        given[name], sockets[inode] = fd, name
    return given


def _of_options(options: Iterable[str], names: Sequence[str]) -> Iterable[tuple[str, str, int]]:
    for option in options:
        name, _, number = option.partition("=")
        if name not in names or not (number.isascii() and number.isdecimal()):
            raise ValueError(f"--fd {option}: must be NAME=N with NAME one of {', '.join(sorted(names))}")
        if int(number) == _STDERR:
            raise ValueError(f"--fd {option}: {_STDERR} is standard error, where errors are written")
        yield f"--fd {option}", name, int(number)


def _of_systemd(names: Sequence[str], environment: MutableMapping[str, str]) -> Iterable[tuple[str, str, int]]:
    process, count, labels = (environment.pop(variable, "") for variable in _VARIABLES)
    if process != str(os.getpid()):
        return
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS {count}: must be a number of descriptors")
    called = labels.split(":") if labels else []
    for place in range(int(count)):
        fd = _FIRST + place
        label = called[place] if place < len(called) else ""
        what = f"descriptor {fd} of LISTEN_FDS"
        _, address = _look_at(what, fd)
        yield what, label if label in names else _name_of_path(what, label, address, names), fd


def _name_of_path(what: str, label: str, address: Any, names: Sequence[str]) -> str:
    """The function whose socket has the file name of ``address``."""
    path = PurePath(address) if isinstance(address, str) else PurePath()
    if path.suffix == ".sock" and path.stem in names:
        return path.stem
    raise ValueError(
        f"{what}, named {label or 'nothing'}, at {path if path.name else 'no path'}: its name (FileDescriptorName=) "
        f"must be a function, or its path end in FUNCTION.sock; functions are {', '.join(sorted(names))}"
    )


def _look_at(what: str, fd: int) -> tuple[int, Any]:
    """Inode and address of a Unix stream socket that listens or is connected; ValueError if ``fd`` is anything else."""
    import socket  # only what is asked for costs start-up time

    try:
        status = os.fstat(fd)
    except (OSError, OverflowError) as error:
        raise ValueError(f"{what}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ValueError(f"{what}: must be a Unix stream socket, this is no socket")
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            kind = " ".join(str(getattr(value, "name", value)) for value in (sock.family, sock.type))
            raise ValueError(f"{what}: must be a Unix stream socket, this is {kind}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            try:
                sock.getpeername()
            except OSError as error:
                raise ValueError(f"{what}: the socket neither listens nor is connected") from error
        return status.st_ino, sock.getsockname()
