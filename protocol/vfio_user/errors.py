"""The errors of the vfio-user package: one each for a refused request, a refused peer and a remote refusal."""

from __future__ import annotations

import os

__all__ = ["ProtocolError", "RemoteError", "RequestError"]


class RequestError(Exception):
    """A request that the server refuses; the client gets ``errno`` in an error reply and the session goes on.

    ``errno`` is a positive Linux errno, ``text`` says what was asked, the limit and the rule.
    """

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(errno, text)
        self.errno = errno
        self.text = text

    def __str__(self) -> str:
        return self.text


class ProtocolError(Exception):
    """The peer sent something after which the connection cannot be trusted."""


class RemoteError(OSError):
    """The server answered a request of ours with an error reply; ``errno`` is what it said."""

    def __init__(self, errno: int, request: str) -> None:
        super().__init__(errno, f"{request} refused: {os.strerror(errno)}")
