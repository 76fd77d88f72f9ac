"""One client of the control socket, without the socket: bytes of JSON in, lines of JSON out.

As QEMU's QMP (docs/interop/qmp-spec.rst): a greeting; ``qmp_capabilities`` first; then ``execute`` with ``arguments``
and ``id``; each is answered by ``return`` or by ``error`` with ``class`` and ``desc``. Of :data:`MOST_MESSAGE` bytes at
most. Messages need not be lines: `.framing` says where they end.

What a client may cost is bounded: one reply at a time is kept for it, and nothing more is read or done for it until
that is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import msgspec

from .answers import Answer, Pause, qmp_version
from .description import CommandError
from .framing import MOST_MESSAGE, Framing, TooLongError

__all__ = ["MOST_EVENT_BYTES", "Session"]

log = logging.getLogger(__name__)

MOST_EVENT_BYTES = 64 << 10
"""Bytes that wait for a client, beyond which events are not told it."""
_KEYS = frozenset(("execute", "arguments", "id"))
_GREETING = msgspec.json.encode({"QMP": {"version": qmp_version(), "capabilities": []}}) + b"\r\n"


class Commands(Protocol):
    """See :class:`.answers.Answers`."""

    def begin(self, name: str, arguments: Mapping[str, Any]) -> Answer: ...


class Session:
    """What was received, what is being done, and what is to be sent."""

    def __init__(self, commands: Commands) -> None:
        self.outgoing = bytearray(_GREETING)
        """to be sent, and taken away as far as it is"""
        self.is_negotiated = False
        """whether the client may execute commands, and hears of events"""
        self._commands = commands
        self._incoming = Framing()
        self._steps: Generator[Pause | None, None, dict[str, Any]] | None = None
        self.pause: Pause | None = None
        """what the command in progress waits for"""
        self._id: dict[str, Any] = {}

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` has something to do."""
        if self.pause is not None and not self.pause.is_over:
            return False
        return not self.outgoing and (self._steps is not None or self._incoming.has_message)

    @property
    def is_read(self) -> bool:
        """Whether more may be received."""
        return not self.outgoing and self._steps is None and not self._incoming.has_message

    def receive(self, data: bytes) -> None:
        """Take bytes of the client, a few KiB at most."""
        self._incoming.receive(data)

    def step(self) -> None:
        """Go on with a command, or begin the next one; bounded."""
        if self._steps is None:
            if self._incoming.has_message:
                self._take()
            return
        self.pause = None
        try:
            self.pause = next(self._steps)
        except StopIteration as end:
            self._steps = None
            self._reply({"return": end.value})
        except Exception as error:
            self._steps = None
            self._failed(error)

    def event(self, line: bytes) -> bool:
        """Tell the client, unless it does not read. Whether it is told."""
        if len(self.outgoing) + len(line) > MOST_EVENT_BYTES:
            return False
        self.outgoing += line
        return True

    def _take(self) -> None:
        self._id = {}
        try:
            self._execute(_decoded(self._incoming.take()))
        except TooLongError:
            self._failed(CommandError(f"a message has more than {MOST_MESSAGE} bytes"))
        except Exception as error:
            self._failed(error)

    def _execute(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise CommandError("a message must be an object")
        if "id" in message:
            self._id = {"id": message["id"]}
        name, arguments = message.get("execute"), message.get("arguments", {})
        if not isinstance(name, str):
            raise CommandError("a message must have a text 'execute', the name of a command")
        if not isinstance(arguments, dict):
            raise CommandError("'arguments' must be an object")
        if unknown := message.keys() - _KEYS:
            raise CommandError(f"a message has no member {min(unknown)[:40]!r}; it has execute, arguments and id")
        if name == "qmp_capabilities":
            if arguments.get("enable"):
                raise CommandError("there are no capabilities to enable")
            self.is_negotiated = True
            self._reply({"return": {}})
        elif not self.is_negotiated:
            raise CommandError("qmp_capabilities comes first, before any other command", "CommandNotFound")
        else:
            answer = self._commands.begin(name, arguments)
            if isinstance(answer, Generator):
                self._steps = answer
            else:
                self._reply(answer if name.startswith("query-") else {"return": answer})

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, CommandError):
            log.exception("a command failed", exc_info=error, extra={"event": "command-failed"})
            error = CommandError("the command failed, and the server's log says how")
        self._reply({"error": {"class": error.kind, "desc": error.text}})

    def _reply(self, message: dict[str, Any]) -> None:
        self.outgoing += msgspec.json.encode(message | self._id) + b"\r\n"


def _decoded(message: bytes) -> Any:
    try:
        return msgspec.json.decode(message)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CommandError(f"not JSON: {error}"[:200]) from None
