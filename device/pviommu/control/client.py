"""The other end of the control socket: one call after the other, for ``pviommu ctl`` and the lab."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from vfio_user import transport

from .description import CommandError

__all__ = ["Client", "ConnectionLostError"]

_CHUNK = 64 << 10
_MOST_REPLY = 16 << 20


class ConnectionLostError(Exception):
    """The server is not there, or not any more; the text says what happened."""


class Client:
    """A connection. A context manager."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 30.0) -> None:
        """``timeout_s``: for each call. Raises :class:`ConnectionLostError`."""
        self._path = os.fspath(path)
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        try:
            self._sock = transport.connect(self._path, timeout_s)
        except OSError as error:
            raise ConnectionLostError(f"{self._path}: {error.strerror or error}") from error
        try:
            greeting = self._message()
            if "QMP" not in greeting:
                raise ConnectionLostError(
                    f"{self._path}: {greeting.get('error', {}).get('desc', 'not a control socket')}"
                )
            self.call("qmp_capabilities")
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a command; its result. Raises :class:`CommandError`, :class:`ConnectionLostError`."""
        message = {"execute": name, "arguments": dict(arguments or {})}
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ConnectionLostError(f"{self._path}: {error.strerror or error}") from error
        while "event" in (reply := self._message()):
            pass
        if "error" in reply:
            raise CommandError(reply["error"].get("desc", "?"), reply["error"].get("class", "GenericError"))
        return reply.get("return")

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MOST_REPLY:
                raise ConnectionLostError(f"{self._path}: a reply has more than {_MOST_REPLY} bytes")
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(_CHUNK)
            except TimeoutError:
                raise ConnectionLostError(f"{self._path}: no answer within {self._timeout_s:g} s") from None
            except OSError as error:
                raise ConnectionLostError(f"{self._path}: {error.strerror or error}") from error
            if not data:
                raise ConnectionLostError(f"{self._path}: the server hung up")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ConnectionLostError(f"{self._path}: not a control socket: {error}") from error
        if not isinstance(message, dict):
            raise ConnectionLostError(f"{self._path}: not a control socket")
        return message
