"""Notifications to a service manager: the datagrams of ``sd_notify(3)``, if it asked for them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["notify"]

log = logging.getLogger(__name__)

_PATIENCE_S = 0.5


def notify(*assignments: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send ``NAME=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names: a path, or ``@`` and an abstract name.

    One that cannot be reached, or whose reader does not read for half a second, is a line in the log.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        if address[0] not in "/@":
            raise OSError(0, "must be an absolute path, or @ and a name")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE_S)
            sock.connect(f"\0{address[1:]}" if address[0] == "@" else address)
            sock.send("\n".join(assignments).encode())
    except OSError as error:
        log.warning("NOTIFY_SOCKET %s: %s", address, error.strerror or error, extra={"event": "notify-failed"})
